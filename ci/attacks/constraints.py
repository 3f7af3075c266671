"""Limits a process: rights, room on disks, memory, files, cores and time."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from functools import cache
from pathlib import Path
from typing import Any, Final

_NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS
_PRIVATE: Final = (1 << 18) | (1 << 14)  # MS_PRIVATE | MS_REC
_READ_ONLY: Final = 1
_DROP_BOUNDING: Final = 24  # PR_CAPBSET_DROP
_CAPABILITIES: Final = 0x20080522  # version 3 of capset(2)
#: The capabilities that let the superuser ignore the modes of files.
_OVERRIDES: Final = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def part_mounts() -> bool:
    """Gives this process its own mounts; returns whether the system allows that."""
    try:
        _checked(_libc().unshare(_NEW_MOUNTS))
        _checked(_libc().mount(b"none", b"/", None, _PRIVATE, None))
    except OSError:
        return False
    return True


def mount_disk(place: Path, size: int, *, read_only: bool = False) -> None:
    """Puts a disk of so many bytes at a folder."""
    place.mkdir(exist_ok=True)
    flags = _READ_ONLY if read_only else 0
    _checked(_libc().mount(b"none", os.fsencode(place), b"tmpfs", flags, f"size={size}".encode()))


def unmount(place: Path) -> None:
    """Unmounts a disk."""
    _checked(_libc().umount2(os.fsencode(place), 2))


def keep_to_modes() -> None:
    """Makes this process and its children respect the modes of files, also as the superuser."""
    if os.getuid() != 0:
        return
    for number in _OVERRIDES:
        _checked(_libc().prctl(_DROP_BOUNDING, number, 0, 0, 0))
    header = struct.pack("<Ii", _CAPABILITIES, 0)
    data = ctypes.create_string_buffer(24)
    _checked(_libc().capget(header, data))
    words = list(struct.unpack("<6I", data.raw))
    mask = sum(1 << number for number in _OVERRIDES)
    words[:3] = [word & ~mask for word in words[:3]]
    _checked(_libc().capset(header, struct.pack("<6I", *words)))


def limit_memory(more: int) -> None:
    """Limits the address space of this process to a number of further bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limit(what: int, most: int) -> None:
    """Sets one of the system's limits."""
    resource.setrlimit(what, (most, most))
