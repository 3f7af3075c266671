"""Finds whether sums of products of bytes saturate on this processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def sums_saturate(processors: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns whether products of bytes are added in 16 bits here: x86 without VNNI, as Linux says.

    Two products of an unsigned and a signed byte then leave the range of the sum, unless the signed
    one has 7 bits.

    Args:
        processors: The file in which Linux describes the processors.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        lines = processors.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool(flags) and not {"avx512_vnni", "avx_vnni"} & set(flags.split())


def usable_cores() -> int:
    """Returns how many cores this process may use: as many threads as ORT takes by itself."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
