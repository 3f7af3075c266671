"""Runs the worker: ``python -m tokexport.exporter.worker.main PARENT RUNTIME…``.

It reads questions from its stdin and writes answers to what was its stdout; everything that is
printed goes to its stderr, which the other process keeps the end of. It ends with its parent: at
the end of its stdin, and on Linux also in the middle of native code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.worker.messages import Message, described, read_message, write_message
from tokexport.exporter.worker.steps import Steps
from tokexport.runtimes.errors import RuntimesError

_SET_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


def main(parent: int, runtimes: Sequence[str]) -> None:
    """Answers questions until its stdin ends.

    Args:
        parent: The process that asks.
        runtimes: Those that it will be asked for, by their targets; they are imported at once.
    """
    _end_with(parent)
    _leave_no_core()
    _be_the_first_to_go()
    questions, answers = _pipes()
    with suppress(RuntimesError):  # the question that needs it will say so
        for name in runtimes:
            BACKENDS[name].import_runtime()
    write_message(answers, Message({"ready": True}))
    steps = Steps()
    with suppress(EOFError):
        while True:
            question = read_message(questions)
            write_message(answers, Message({"read": True}))
            write_message(answers, _answer(steps, question))


def _answer(steps: Steps, question: Message) -> Message:
    try:
        with _as_asked(question.fields["surroundings"]), _in(question.fields.get("scratch")):
            return steps.answer(question)
    except Exception as error:
        return Message({"error": described(error)})


@contextmanager
def _as_asked(surroundings: Mapping[str, Any]) -> Iterator[None]:
    """Takes over the environment, the working folder and the import path of the parent."""
    for name, value in surroundings["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    with suppress(OSError):  # it may be gone: all paths that are asked for are absolute
        os.chdir(surroundings["folder"])
    sys.path += [entry for entry in surroundings["path"] if entry not in sys.path]
    modules: dict[str, Any] = sys.modules
    hidden = {name: modules.get(name) for name in surroundings["missing"]}
    modules |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        for name, module in hidden.items():
            if module is None:
                modules.pop(name, None)
            else:
                modules[name] = module


@contextmanager
def _in(scratch: str | None) -> Iterator[None]:
    """Puts temporary files into a folder that the parent removes."""
    before = tempfile.tempdir
    tempfile.tempdir = scratch or before
    try:
        yield
    finally:
        tempfile.tempdir = before


def _pipes() -> tuple[int, int]:
    """Takes stdin and stdout for the messages, and replaces them by an empty input and stderr."""
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return questions, answers


def _end_with(parent: int) -> None:
    """Ends the process with its parent, also in the middle of native code; Linux only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _leave_no_core() -> None:
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def _be_the_first_to_go() -> None:
    """Makes Linux end this process, and not its parent, if memory runs out."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
