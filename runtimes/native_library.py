"""Finds the installed libraries of native kernels.

They are built with the package if a C++ compiler is found: one for ONNX Runtime, and one for the
installed version of OpenVINO only. A bundle runs without them too, but slower: the runtime then
runs the bodies of the functions.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

#: Names another library for ONNX Runtime, beside which that for OpenVINO is looked for; with
#: ``off`` there is neither.
VARIABLE: Final = "TOKEXPORT_NATIVE"
#: The entry of the manifest where the bodies of the functions ran.
NO_KERNELS: Final = "none"
_PLACE: Final = "tokexport/runtimes/native/tokexport_native.so"


def native_library() -> Path | None:
    """Returns the library for ONNX Runtime; None if it is missing or switched off."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "off":
        return None
    if wanted:
        return Path(wanted)
    try:
        path = Path(str(distribution("tokexport").locate_file(_PLACE)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def openvino_library(version: str) -> Path | None:
    """Returns the library for a version of OpenVINO; None without one."""
    beside = native_library()
    if beside is None:
        return None
    path = beside.with_name(f"tokexport_openvino-{version}.so")
    return path if path.is_file() else None


@cache
def kernels_of(library: Path) -> str:
    """Returns the instruction set whose kernels a library has chosen on this processor.

    It loads the library for good: OpenVINO's operators may live as long as the program. The library
    for OpenVINO needs OpenVINO to be imported before.

    Raises:
        OSError: The library cannot be loaded.
    """
    function = ctypes.CDLL(str(library)).tokexport_kernels
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()
