"""Finds and loads the installed libraries of native kernels, and says why one does not load.

They are built with the package if a C++ compiler is found: one for ONNX Runtime, and if OpenVINO is
installed one for its version only. A bundle runs without them too, but slower: the runtime then
runs the bodies of the functions.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.errors import KernelsError
from tokexport.runtimes.printable import printable

#: Names another library for ONNX Runtime, beside which that for OpenVINO is looked for; with
#: ``off`` there is neither.
VARIABLE: Final = "TOKEXPORT_NATIVE"
#: Set to 1, a bundle does not run without the native kernels of its target.
REQUIRING_VARIABLE: Final = "TOKEXPORT_REQUIRE_KERNELS"
#: The entry of the manifest where the bodies of the functions ran.
NO_KERNELS: Final = "none"
#: The entry in the details of a runtime that says why a library does not load.
PROBLEM: Final = "kernels_problem"
#: What to do about a library that does not load.
FIX: Final = (
    f"Install tokexport anew, let {VARIABLE} name a library that loads, or compute in float32."
)
_PLACE: Final = "tokexport/runtimes/native/tokexport_native.so"


class KernelsWarning(UserWarning):
    """Native kernels are there and do not load: what runs is right, and slower."""


@dataclass(frozen=True)
class Kernels:
    """The native kernels for a runtime.

    Attributes:
        library: The loaded library; None if none is found or it does not load.
        isa: The instruction set that it chose on this processor, or ``NO_KERNELS``.
        problem: Why a library that is there, or was named, is not used; '' where nothing is wrong.
    """

    library: Path | None = None
    isa: str = NO_KERNELS
    problem: str = ""


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


def ort_kernels() -> Kernels:
    """Loads the kernels for ONNX Runtime."""
    library = native_library()
    return Kernels() if library is None else loaded(library)


def openvino_kernels(version: str) -> Kernels:
    """Loads the kernels for OpenVINO of a version, which has to be imported before."""
    library = openvino_library(version)
    if library is not None:
        return loaded(library)
    beside = native_library()
    if beside is None:
        return Kernels()
    if not beside.is_file():
        return Kernels(problem=_problem(beside, "the file does not exist"))
    others = sorted(beside.parent.glob("tokexport_openvino-*.so"))
    if not others:
        return Kernels()
    why = f"it fits that version of OpenVINO alone, and {version} is installed"
    return Kernels(problem=_problem(others[-1], why))


def loaded(library: Path) -> Kernels:
    """Loads a library, or says why it does not load."""
    try:
        return Kernels(library, kernels_of(library))
    except OSError as error:
        return Kernels(problem=_problem(library, str(error)))


def _problem(library: Path, why: str) -> str:
    return printable(f"The native kernels in {library} cannot be loaded: {why}.")


@cache
def kernels_of(library: Path) -> str:
    """Returns the instruction set whose kernels a library has chosen on this processor.

    It loads the library for good: OpenVINO's operators may live as long as the program. The library
    for OpenVINO needs OpenVINO to be imported before.

    Raises:
        OSError: The library cannot be loaded, or is another one.
    """
    try:
        function = ctypes.CDLL(str(library)).tokexport_kernels
    except AttributeError as error:
        raise OSError(str(error)) from error
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def require_kernels(runtime: RuntimeInfo, *, asked: bool) -> None:
    """Refuses a runtime that runs without native kernels, where they are required.

    Args:
        runtime: What runs a model; one for which there are no kernels is let through.
        asked: Whether they are required; the environment may require them too.

    Raises:
        KernelsError: Its target has kernels, and none were loaded.
    """
    if "kernels" in runtime.details:
        isa, problem = str(runtime.details["kernels"]), str(runtime.details.get(PROBLEM, ""))
        require_loaded(Kernels(isa=isa, problem=problem), asked=asked)


def require_loaded(kernels: Kernels, *, asked: bool) -> None:
    """Refuses kernels that were not loaded, where they are required.

    Raises:
        KernelsError: They were not loaded.
    """
    if not asked and os.environ.get(REQUIRING_VARIABLE, "0") in ("", "0"):
        return
    if kernels.isa != NO_KERNELS:
        return
    if kernels.problem:
        raise KernelsError(kernels.problem, where="The kernels are required.", fix=FIX)
    if os.environ.get(VARIABLE) == "off":
        raise KernelsError(
            f"The native kernels are required, and {VARIABLE}=off leaves them out.",
            fix=f"Unset the variable {VARIABLE}.",
        )
    raise KernelsError(
        "The native kernels are required, and the model runs without them.",
        where="No library for the runtime is installed, or its kernels do not take the model.",
        fix="Run tokexport doctor: it says whether a library is installed.",
    )
