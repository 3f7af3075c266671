"""Checks the installation: which runtimes work, what is missing, how to install it.

A runtime is probed by using it: a model is run where that takes no GPU, a library is loaded where
it does. The packages that only compiling needs are looked up, never imported.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import RunError, RuntimesError
from tokexport.runtimes.importing import install_command, is_installed
from tokexport.runtimes.native_library import NO_KERNELS, PROBLEM, VARIABLE
from tokexport.runtimes.openvino import runner as openvino
from tokexport.runtimes.ort.runner import OrtRunner
from tokexport.runtimes.trt.cuda_driver import CudaDriver, CudaDriverError, Gpu
from tokexport.runtimes.trt.engine import RTX_CAPABILITIES
from tokexport.runtimes.trt.libraries import load_full, load_rtx

# A serialised ONNX model of one node, y = Identity(x), x and y of shape (1,) in float32: so that a
# runtime can be probed without the onnx package. Each field is a tag (number << 3 | wire type),
# then its value or, for a text or a nested message, its length in bytes and its content.
_VALUE_INFO = "12 0a 0a 08 0801 12 04 0a020801"  # .type.tensor_type: FLOAT, shape of one size, 1
IDENTITY_MODEL = bytes.fromhex(
    "08 08"  # ir_version = 8
    "3a 37"  # graph, 55 bytes:
    "0a 10 0a0178 120179 2208 4964656e74697479"  # node: input "x", output "y", "Identity"
    "12 01 67"  # name = "g"
    f"5a 0f 0a0178 {_VALUE_INFO}"  # input "x"
    f"62 0f 0a0179 {_VALUE_INFO}"  # output "y"
    "42 04 0a00 100d"  # opset_import: domain "", version 13
)


@dataclass(frozen=True)
class Component:
    """A component that compiling, running or verifying needs.

    Attributes:
        name: Its name.
        used_for: What needs it.
        version: The installed version, or of kernels the instruction set they are for; None
            where it is not installed.
        works: Whether it was found to work; for what is only looked up, whether it is installed.
        missing: What is missing or broken, one sentence; empty where it works.
        install: The command or the step that fixes it; empty where it works.
    """

    name: str
    used_for: str
    version: str | None
    works: bool
    missing: str
    install: str

    def to_dict(self) -> dict[str, str | bool | None]:
        """The component as plain values, ready for JSON."""
        return dataclasses.asdict(self)


# Packages that compiling needs, by import name: the distribution's name and the extra it is in.
_COMPILE_PACKAGES = {
    "torch": ("torch", "compile"),
    "onnx": ("onnx", "compile"),
    "onnx_ir": ("onnx-ir", "compile"),
    "onnxscript": ("onnxscript", "compile"),
    "safetensors": ("safetensors", "compile"),
    "nncf": ("nncf", "int8"),
    "timm": ("timm", "timm"),
    "transformers": ("transformers", "transformers"),
}
_COMPILING = "compile"
_GPU = "NVIDIA GPU and driver"
_GPU_USED_FOR = "run and verify for trt"
_GPU_DRIVER = "On a machine with an NVIDIA GPU, install its driver, r580 or newer (CUDA 13)."
#: How to install the library of kernels of each target; OpenVINO's fits one version of it.
_KERNELS_BUILT = {
    "ort": "Where there is a C++ compiler: pip install --force-reinstall --no-deps .",
    "openvino": "Where there are a C++ compiler, scikit-build-core, cmake and ninja: "
    "TOKEXPORT_OPENVINO=1 pip install --force-reinstall --no-deps --no-build-isolation .",
}


def diagnose() -> tuple[Component, ...]:
    """Checks every component, in the order in which a user meets them."""
    full_tensorrt = _full_tensorrt()
    return (
        Component("numpy", "everything", np.__version__, True, "", ""),
        *_cpu_runtime("onnxruntime", "ort", _run_onnxruntime),
        *_cpu_runtime("openvino", "openvino", _run_openvino),
        full_tensorrt,
        _probe(
            "TensorRT-RTX",
            "compile for trt without a GPU",
            "tensorrt_rtx_cu13_bindings",
            "trt-rtx",
            _load_tensorrt_rtx,
        ),
        _gpu(full_tensorrt),
        *(
            _look_up(module, distribution, extra)
            for module, (distribution, extra) in _COMPILE_PACKAGES.items()
        ),
    )


def summary(components: Sequence[Component]) -> str:
    """Returns a sentence: what a machine with these components compiles for, runs and verifies."""
    works = {component.name: component.works for component in components}
    engines = works.get("TensorRT", False) or works.get("TensorRT-RTX", False)
    here = {"ort": works["onnxruntime"], "openvino": works["openvino"], "trt": engines}
    compiles = all(
        works[name] for name, (_, extra) in _COMPILE_PACKAGES.items() if extra == _COMPILING
    )
    runs = here | {"trt": engines and works[_GPU]}
    return (
        f"This machine compiles for {_listed(here if compiles else {})}; "
        f"it runs and verifies {_listed(runs)}."
    )


def _listed(able: Mapping[str, bool]) -> str:
    names = [name for name, is_able in able.items() if is_able]
    if not names:
        return "nothing"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(
    name: str, used_for: str, distribution: str, extra: str, use: Callable[[], str]
) -> Component:
    """Checks a runtime with ``use``, which returns its version or raises an error."""
    try:
        return Component(name, used_for, use(), True, "", "")
    except RuntimesError as error:
        return _broken(name, used_for, distribution, extra, error)


def _broken(
    name: str, used_for: str, distribution: str, extra: str, error: RuntimesError
) -> Component:
    missing = " ".join(part for part in (error.what, error.where) if part)
    version = _version(distribution)
    return Component(name, used_for, version, False, missing, install_command(extra))


def _cpu_runtime(
    name: str, target: str, use: Callable[[], RuntimeInfo]
) -> tuple[Component, Component]:
    """Uses a runtime of the CPU once, with the native kernels for it where they load."""
    used_for = f"compile, run and verify for {target}"
    try:
        info = use()
    except RuntimesError as error:
        runtime = _broken(name, used_for, name, target, error)
        return runtime, _kernels(target, None, runtime.missing, runtime.install)
    runtime = Component(name, used_for, info.version, True, "", "")
    found = str(info.details["kernels"])
    if found != NO_KERNELS:
        return runtime, _kernels(target, found)
    wanted, problem = os.environ.get(VARIABLE), info.details.get(PROBLEM)
    if wanted == "off":
        said, remedy = f"{VARIABLE}=off leaves them out.", f"Unset the variable {VARIABLE}."
    elif wanted:
        said = f"{VARIABLE} leads to no library for {name} {runtime.version}: {problem or wanted}"
        remedy = f"Unset the variable {VARIABLE}, or let it name one that loads."
    elif problem:
        said, remedy = str(problem), _KERNELS_BUILT[target]
    else:
        said = f"No library of them for {name} {runtime.version} is installed."
        remedy = _KERNELS_BUILT[target]
    return runtime, _kernels(target, None, said, remedy)


def _kernels(target: str, found: str | None, missing: str = "", install: str = "") -> Component:
    used_for = f"speed of what runs on {target}"
    return Component(f"kernels for {target}", used_for, found, not missing, missing, install)


def _check_identity(runner: Runner) -> RuntimeInfo:
    """Runs the identity model once, and returns the runtime."""
    with runner:
        sent = np.array([0.5], np.float32)
        returned = runner.run({"x": sent})["y"]
        if not np.array_equal(sent, returned):
            raise RunError(f"The identity model returned {returned} for {sent}.")
        return runner.runtime


def _run_onnxruntime() -> RuntimeInfo:
    return _check_identity(OrtRunner.from_bytes(IDENTITY_MODEL, threads=1))


def _run_openvino() -> RuntimeInfo:
    with tempfile.TemporaryDirectory() as folder:
        onnx_path, xml_path = Path(folder, "identity.onnx"), Path(folder, "identity.xml")
        onnx_path.write_bytes(IDENTITY_MODEL)
        openvino.convert(onnx_path, xml_path)
        return _check_identity(openvino.OpenVinoRunner.from_file(xml_path, threads=1))


def _load_tensorrt_rtx() -> str:
    return load_rtx().version


def _full_tensorrt() -> Component:
    used_for = "compile, run and verify for trt on this machine's GPU"
    try:
        return Component("TensorRT", used_for, load_full().version, True, "", "")
    except RuntimesError as error:
        said = [error.what, error.where, "It builds only where there is an NVIDIA GPU."]
        missing = " ".join(part for part in said if part)
        version = _version("tensorrt")
        return Component("TensorRT", used_for, version, False, missing, "pip install tensorrt")


def _gpu(full_tensorrt: Component) -> Component:
    try:
        gpu = CudaDriver().gpu()
    except CudaDriverError as error:
        return Component(_GPU, _GPU_USED_FOR, None, False, error.what, _GPU_DRIVER)
    return gpu_component(gpu, builds_here=full_tensorrt.works)


def gpu_component(gpu: Gpu, *, builds_here: bool) -> Component:
    """Checks whether engines run on a GPU.

    Args:
        gpu: What the driver shows.
        builds_here: Whether full TensorRT works here, which builds for any GPU that is there.
            TensorRT-RTX builds only for the GPUs that it lists.
    """
    cuda = ".".join(map(str, gpu.cuda_version))
    found = f"CUDA {cuda}, {gpu.name}, compute capability {gpu.compute_capability}"
    if gpu.cuda_version < (13, 0):
        missing = "The driver is older than CUDA 13."
        return Component(_GPU, _GPU_USED_FOR, found, False, missing, _GPU_DRIVER)
    if not builds_here and gpu.compute_capability not in RTX_CAPABILITIES:
        missing = (
            f"TensorRT-RTX does not list compute capability {gpu.compute_capability}: its engines "
            "do not run on this GPU. Full TensorRT builds for it."
        )
        return Component(_GPU, _GPU_USED_FOR, found, False, missing, "pip install tensorrt")
    return Component(_GPU, _GPU_USED_FOR, found, True, "", "")


def _look_up(module: str, distribution: str, extra: str) -> Component:
    """Checks for a package without importing it."""
    if is_installed(module):
        return Component(module, _COMPILING, _version(distribution), True, "", "")
    missing = f"{module} is not installed."
    return Component(module, _COMPILING, None, False, missing, install_command(extra))
