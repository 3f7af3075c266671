"""Finds the library of native kernels for ONNX Runtime, where the installation has one.

It is built with the package wherever there is a C++ compiler. A bundle runs without it too: ONNX
Runtime then takes the bodies of the functions, and is slower.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

#: Names another library, or with ``off`` none.
VARIABLE: Final = "TOKEXPORT_NATIVE"
#: What the manifest says where the bodies of the functions ran.
NO_KERNELS: Final = "none"
_PLACE: Final = "tokexport/runtimes/native/tokexport_native.so"


def native_library() -> Path | None:
    """Returns the library of kernels; None where there is none, or none is wanted."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "off":
        return None
    if wanted is not None:
        return Path(wanted)
    try:
        path = Path(str(distribution("tokexport").locate_file(_PLACE)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


@cache
def kernels_of(library: Path) -> str:
    """Returns the instruction set whose kernels a library has chosen on this processor."""
    function = ctypes.CDLL(str(library)).tokexport_kernels
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()
