"""Holds this machine to what the manifest of a bundle says that its artifact needs.

Nothing of the artifact is opened. A runtime is imported, and of TensorRT the library is loaded,
since only it says its version. A manifest without ``requires``, of an older version, is held to
what its ``runtime`` says; and every manifest is, whatever its ``requires`` leaves out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tokexport.runtimes.artifact_needs import PACKAGES, architecture, byte_sums_needed
from tokexport.runtimes.bundle.manifest import Manifest
from tokexport.runtimes.bundle.requirements import Requirements, release
from tokexport.runtimes.errors import (
    IncompatibleError,
    NoDeviceError,
    ProcessorError,
    RuntimesError,
)
from tokexport.runtimes.importing import import_runtime
from tokexport.runtimes.openvino.runner import import_openvino
from tokexport.runtimes.processor import instruction_set, lacks_all
from tokexport.runtimes.trt.libraries import FULL, RTX
from tokexport.runtimes.trt.runner import NO_GPU, check_version, load_flavour, require_gpu

#: What the runtimes are called in a sentence.
_TITLES: Final = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class Need:
    """One thing that an artifact needs of a machine.

    Attributes:
        name: What it is: ``runtime``, ``processor``, ``architecture``, ``system`` or ``GPU``.
        needed: What is needed, a clause.
        here: What is here; '' where it is missing.
        met: Whether that is enough.
        problem: Why it is not, a sentence; '' where it is.
        fix: What to do, a sentence; '' where it is met.
    """

    name: str
    needed: str
    here: str
    met: bool
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class _Check:
    """A need, and what looks whether it is met: it returns what is here, or raises the error."""

    name: str
    needed: str
    look: Callable[[], str]


def check_compatibility(manifest: Manifest) -> None:
    """Refuses a bundle whose artifact this machine cannot run, before anything of it is opened.

    Raises:
        RuntimeMissingError: Its runtime is not installed.
        IncompatibleError: Its runtime, the system or the architecture is another one.
        ProcessorError: This processor would answer wrongly.
        NoDeviceError: There is no GPU that its engine is for.
    """
    for check in _checks(manifest):
        _look(check, manifest)


def compare_with_machine(manifest: Manifest) -> tuple[Need, ...]:
    """Returns all that an artifact needs, and whether this machine has it.

    Args:
        manifest: The manifest of its bundle.
    """
    needs = []
    for check in _checks(manifest):
        try:
            here = _look(check, manifest)
            needs.append(Need(check.name, check.needed, here, True))
        except RuntimesError as error:
            problem = " ".join(part for part in (error.what, error.where) if part)
            needs.append(Need(check.name, check.needed, "", False, problem, error.fix))
    return tuple(needs)


def _look(check: _Check, manifest: Manifest) -> str:
    """Returns what is here; an error of one that can be built anew says so."""
    try:
        return check.look()
    except (IncompatibleError, NoDeviceError) as error:
        helps = not isinstance(error, ProcessorError) and error.what != NO_GPU
        if manifest.kept_onnx is None or not helps:
            raise
        fix = f"{error.fix} Or build the artifact anew here: tokexport rebuild with the bundle."
        raise type(error)(error.what, where=error.where, fix=fix) from error


def check_processor(manifest: Manifest) -> None:
    """Refuses a bundle whose sums of products saturate on this processor.

    Raises:
        ProcessorError: Its weights have 8 bits, and ONNX Runtime adds in 16 here.
    """
    _look_at_processor(_required(manifest).instruction_sets)


def _required(manifest: Manifest) -> Requirements:
    """Returns what is needed, with what the description of the runtime says beside it."""
    built = manifest.runtime
    package = PACKAGES.get(built.flavour, "")
    stated = manifest.requires or Requirements(package)
    sets = stated.instruction_sets or byte_sums_needed(built)
    exactly = built.version if built.flavour in (FULL, RTX) else stated.exactly
    return dataclasses.replace(stated, runtime=package, instruction_sets=sets, exactly=exactly)


def _checks(manifest: Manifest) -> Iterator[_Check]:
    """Yields the checks in the order in which what they ask for can be changed least."""
    needed, built = _required(manifest), manifest.runtime
    if not needed.runtime:  # of a flavour that this tokexport does not know, which loading says
        return
    if needed.systems:
        yield _Check("system", _any_of(needed.systems), lambda: _look_at_system(needed.systems))
    if needed.architectures:
        wanted = needed.architectures
        yield _Check("architecture", _any_of(wanted), lambda: _look_at_architecture(wanted))
    if needed.instruction_sets:
        said = f"on x86 {_any_of(needed.instruction_sets)}"
        yield _Check("processor", said, lambda: _look_at_processor(needed.instruction_sets))
    title = _TITLES[needed.runtime]
    because = f": {needed.why}" if needed.why else ""
    if built.flavour in (FULL, RTX):
        yield _Check("runtime", f"{title} {built.version}{because}", lambda: _look_at_trt(manifest))
        listed = built.details.get("compute_capabilities")
        capabilities = _any_of(tuple(listed)) if isinstance(listed, list) else "as it was built on"
        said = f"compute capability {capabilities}"
        yield _Check("GPU", said, lambda: _look_at_gpu(manifest))
        return
    version = f" {needed.at_least} or newer" if needed.at_least else ""
    yield _Check("runtime", f"{title}{version}{because}", lambda: _look_at_runtime(needed))


def _any_of(names: tuple[str, ...]) -> str:
    return " or ".join(map(str, names))


def _look_at_system(wanted: tuple[str, ...]) -> str:
    if sys.platform in wanted:
        return sys.platform
    raise IncompatibleError(
        f"The artifact was built for the system {_any_of(wanted)}, and this is {sys.platform}.",
        fix="Compile the model on this system.",
    )


def _look_at_architecture(wanted: tuple[str, ...]) -> str:
    here = architecture()
    if here in wanted:
        return here
    raise IncompatibleError(
        f"The artifact was built for {_any_of(wanted)} processors, and this is {here}.",
        fix="Compile the model on a machine of this architecture.",
    )


def _look_at_processor(wanted: tuple[str, ...]) -> str:
    if not lacks_all(wanted):
        return instruction_set()
    raise ProcessorError(
        "The bundle would answer wrongly here: sums of its int8 products saturate without VNNI.",
        where=f"It needs {_any_of(wanted)}; the processor has {instruction_set()}.",
        fix="Compile the model with --weight-bits 7, or run the bundle on a processor with VNNI.",
    )


def _look_at_runtime(needed: Requirements) -> str:
    """Returns the version of a CPU runtime that is new enough."""
    if needed.runtime == "openvino":
        found = str(import_openvino().__version__).partition("-")[0]
    else:
        found = str(getattr(import_runtime("onnxruntime", extra="ort"), "__version__", ""))
    here, least = release(found), release(needed.at_least)
    if here is None or least is None or here >= least:
        return found
    title = _TITLES[needed.runtime]
    because = f"The bundle: {needed.why}." if needed.why else ""
    raise IncompatibleError(
        f"The bundle needs {title} {needed.at_least} or newer, and {found} is installed.",
        where=because,
        fix=f"Install it: pip install '{needed.runtime}>={needed.at_least}'. Or compile the model "
        f"with {title} {found}.",
    )


def _look_at_trt(manifest: Manifest) -> str:
    found = load_flavour(manifest.runtime).version
    check_version(manifest.runtime, found)
    return found


def _look_at_gpu(manifest: Manifest) -> str:
    _, gpu = require_gpu(manifest.runtime)
    return f"{gpu.name}, {gpu.compute_capability}"
