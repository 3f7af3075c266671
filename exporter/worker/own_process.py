"""Sets up a started process that answers its parent: its pipes, its end, its memory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import Final

_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


def pipes() -> tuple[int, int]:
    """Takes stdin and stdout for messages, and replaces them by an empty input and stderr."""
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return questions, answers


def end_with(parent: int) -> None:
    """Ends this process with its parent, also in the middle of native code; Linux only.

    Args:
        parent: The id of the process that started it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def leave_no_core() -> None:
    """Lets a crash of native code leave no dump of its memory."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def be_the_first_to_go() -> None:
    """Makes Linux end this process, and not its parent, if memory runs out."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
