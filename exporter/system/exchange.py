"""Exchanges two names in one step, if the system can."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, Final

_HERE: Final = -100  # AT_FDCWD
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two files or folders of one file system, so that both names exist all the time.

    Args:
        one: The first.
        other: The second.

    Returns:
        Whether it was done; where the system or the disk does not support the call, both are as
        they were.
    """
    call = _renameat2()
    if call is None:
        return False
    return bool(call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


@cache
def _renameat2() -> Any:
    try:
        found = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    text, number = ctypes.c_char_p, ctypes.c_int
    found.argtypes = [number, text, number, text, ctypes.c_uint]
    return found
