"""Reads how much memory this process holds, and how much it held at most."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_SELF: Final = Path("/proc/self")
#: What resets the peak, proc(5) under clear_refs.
_FORGET_PEAK: Final = "5"


def resident_bytes(process: Path = _SELF) -> int | None:
    """Returns the bytes of memory that this process holds; None where the system does not say.

    Args:
        process: The folder in which Linux describes the process.
    """
    return _status(process, "VmRSS")


def peak_bytes(process: Path = _SELF) -> int | None:
    """Returns the most bytes that this process held, since ``forget_peak`` where that works.

    Args:
        process: The folder in which Linux describes the process.
    """
    found = _status(process, "VmHWM")
    if found is not None or sys.platform == "win32":
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak(process: Path = _SELF) -> None:
    """Makes Linux count the peak from now on; elsewhere it stays that of the whole process.

    Args:
        process: The folder in which Linux describes the process.
    """
    with suppress(OSError):
        (process / "clear_refs").write_text(_FORGET_PEAK, encoding="ascii")


def give_back_memory() -> None:
    """Gives freed memory back to the system, where its C library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(process: Path, name: str) -> int | None:
    try:
        lines = (process / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None
