"""Says what this processor can do: its instruction set, its cores, how it sums bytes."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Final

#: What a processor is called by: the widest of its instruction sets, by the flag that Linux has.
_INSTRUCTION_SETS: Final = (
    ("amx_int8", "amx"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512f", "avx512"),
    ("avx_vnni", "avx_vnni"),
    ("avx2", "avx2"),
    ("sve", "sve"),
    ("i8mm", "i8mm"),
    ("asimddp", "dotprod"),
    ("asimd", "neon"),
)
#: How the line of what a processor can do begins; an emulator shows the file of another one.
_LINES: Final = {"x86_64": "flags", "amd64": "flags", "aarch64": "Features", "arm64": "Features"}


#: The flags of which an x86 processor needs one to add products of bytes in 32 bits.
BYTE_SUMS: Final = ("avx512_vnni", "avx_vnni")


def instruction_set(processors: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the widest instruction set of this processor, or its architecture if none is known.

    Args:
        processors: The file in which Linux describes the processors.
    """
    flags = _flags(processors)
    return next((name for flag, name in _INSTRUCTION_SETS if flag in flags), platform.machine())


def sums_saturate(processors: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns whether products of bytes are added in 16 bits here: x86 without VNNI, as Linux says.

    Two products of an unsigned and a signed byte then leave the range of the sum, unless the signed
    one has 7 bits.

    Args:
        processors: The file in which Linux describes the processors.
    """
    return lacks_all(BYTE_SUMS, processors)


def lacks_all(names: Collection[str], processors: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns whether this is an x86 processor that has none of some instruction sets.

    Args:
        names: Their flags in Linux; without any, nothing is lacking.
        processors: The file in which Linux describes the processors.
    """
    if not names or _LINES.get(platform.machine().lower()) != "flags":
        return False
    flags = _flags(processors)
    return bool(flags) and flags.isdisjoint(names)


def _flags(processors: Path) -> set[str]:
    """Returns the names of what the first processor can do; empty where the system says none."""
    try:
        lines = processors.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    beginning = _LINES.get(platform.machine().lower(), ("flags", "Features"))
    named = (line for line in lines if line.startswith(beginning))
    return set(next(named, "").split())


def usable_cores() -> int:
    """Returns how many cores this process may use: as many threads as ORT takes by itself."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
