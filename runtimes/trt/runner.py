"""Runs a TensorRT engine on a GPU that the engine was built for."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import (
    IncompatibleError,
    NoDeviceError,
    RunError,
    RuntimeMissingError,
)
from tokexport.runtimes.importing import install_command
from tokexport.runtimes.trt.cuda_driver import CudaDriver, CudaDriverError, DeviceBuffers, Gpu
from tokexport.runtimes.trt.libraries import FULL, RTX, TensorRt, load_full, load_rtx

NO_GPU = "Engine built; running it needs a GPU and a CUDA 13 driver (r580 or newer)."

#: The form of a version; other text of a manifest never gets into a command.
_VERSION = re.compile(r"\d+(\.\w+)*")
PRODUCTS = {FULL: "TensorRT", RTX: "TensorRT-RTX"}
_RTX_CUDA = (13, 0)  # what the RTX wheels of CUDA 13 need of the driver


class TrtRunner(Runner):
    """Runs an engine on the first GPU; made by ``from_file``.

    Args:
        loader: The ``trt.Runtime`` that loaded the engine, which must outlive it.
        engine: An ``ICudaEngine``.
        buffers: Device memory for every input and output.
        inputs: The engine's inputs.
        outputs: The engine's outputs.
        tensorrt: The library that the engine was loaded by.
        runtime: What runs it.

    Raises:
        RunError: The engine cannot be prepared for running.
    """

    def __init__(
        self,
        loader: Any,
        engine: Any,
        buffers: DeviceBuffers,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        tensorrt: TensorRt,
        runtime: RuntimeInfo,
    ) -> None:
        super().__init__(inputs, outputs, runtime)
        self._lock = threading.Lock()  # of the buffers, which hold one run at a time
        self._buffers = buffers
        self._loader = loader
        self._engine = engine
        self._log = tensorrt.log
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RunError(f"TensorRT cannot run the engine: {'; '.join(self._log.errors)}")
        for spec in (*inputs, *outputs):
            self._context.set_tensor_address(spec.name, buffers.address(spec.name))

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        built: RuntimeInfo,
    ) -> Self:
        """Loads an engine, after checking that it was built for this machine.

        Args:
            path: The engine.
            inputs: Its inputs: without a GPU an engine cannot be asked for them.
            outputs: Its outputs.
            built: What built it.

        Raises:
            RuntimeMissingError: The flavour of TensorRT that built it is not installed.
            NoDeviceError: There is no GPU, or one that the engine was not built for.
            RunError: The engine is of another version; TensorRT cannot load it; its inputs or
                outputs are not those.
        """
        tensorrt = load_flavour(built)
        check_version(built, tensorrt.version)
        driver, gpu = require_gpu(built)
        sizes = {
            spec.name: int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
            for spec in (*inputs, *outputs)
        }
        buffers = DeviceBuffers(driver, sizes)
        try:
            with tensorrt.log.collecting():
                loader = tensorrt.api.Runtime(tensorrt.logger)
                engine = _deserialise(loader, tensorrt, path)
                _check_tensors(tensorrt, engine, inputs, outputs)
                runtime = RuntimeInfo(
                    "trt",
                    tensorrt.flavour,
                    tensorrt.version,
                    {
                        **built.details,
                        "gpu": gpu.name,
                        "compute_capability": gpu.compute_capability,
                    },
                )
                return cls(loader, engine, buffers, inputs, outputs, tensorrt, runtime)
        except BaseException:
            buffers.close()
            raise

    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return self._run_into(
            arrays, {spec.name: np.empty(spec.shape, spec.dtype) for spec in self.computed}
        )

    def _run_into(self, arrays: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
        with self._lock, self._log.collecting():
            if self._closed:
                raise self._closed_error()
            buffers = self._buffers.make_current()
            for name, array in arrays.items():
                buffers.upload(name, array)
            if not self._context.execute_async_v3(buffers.stream):
                raise RunError(f"TensorRT failed: {'; '.join(self._log.errors)}")
            for name, array in out.items():
                buffers.download(name, array)
            buffers.synchronise()
        return out

    def _close_impl(self) -> None:
        with self._lock:
            self._buffers.make_current()
            # Each refers to the next: they go in this order.
            del self._context
            del self._engine
            del self._loader
            self._buffers.close()


_NO_GPU_FIX = "Copy the bundle to a machine with both, and run or verify it there."


def require_gpu(built: RuntimeInfo) -> tuple[CudaDriver, Gpu]:
    """Returns the driver and the first GPU, which the engine was built for.

    Args:
        built: What built it.

    Raises:
        NoDeviceError: There is no GPU, or one that the engine was not built for.
    """
    try:
        driver = CudaDriver()
        gpu = driver.gpu()
    except CudaDriverError as error:
        raise NoDeviceError(NO_GPU, where=str(error), fix=_NO_GPU_FIX) from error
    check_gpu(built, gpu)
    return driver, gpu


def check_version(built: RuntimeInfo, installed: str) -> None:
    """Refuses an engine of another version: it would not load, and would not say why.

    Raises:
        IncompatibleError: The versions are not exactly the same.
    """
    if built.version != installed:
        product = PRODUCTS[built.flavour]
        raise IncompatibleError(
            f"The engine was built by {product} {built.version}, and {installed} is installed.",
            where="An engine runs on exactly the version that built it.",
            fix=f"Install {product} {built.version}, or compile the model anew with {installed}.",
        )


def check_gpu(built: RuntimeInfo, gpu: Gpu) -> None:
    """Refuses a GPU or a driver that the engine was not built for.

    Raises:
        NoDeviceError: The driver is too old for TensorRT-RTX, or the engine was not compiled for
            this compute capability.
    """
    if built.flavour == RTX and gpu.cuda_version < _RTX_CUDA:
        supported = ".".join(map(str, gpu.cuda_version))
        raise NoDeviceError(
            NO_GPU,
            where=f"The driver of this {gpu.name} supports CUDA {supported}.",
            fix="Update the driver.",
        )
    # one that has run, in bundles made before, says only where
    ran_on = built.details.get("compute_capability", "")
    listed = built.details.get("compute_capabilities", [ran_on] if isinstance(ran_on, str) else [])
    if isinstance(listed, list) and gpu.compute_capability in listed:
        return
    if built.flavour == RTX:
        raise NoDeviceError(
            f"TensorRT-RTX does not list compute capability {gpu.compute_capability}; "
            "use full TensorRT.",
            where=f"The GPU here: {gpu.name}; the engine is for {listed}.",
            fix="Install `tensorrt` on this machine, and compile the model here.",
        )
    raise NoDeviceError(
        f"The engine was built for compute capability {listed}, and this {gpu.name} has "
        f"{gpu.compute_capability}.",
        fix="Compile the model on this machine.",
    )


def load_flavour(built: RuntimeInfo) -> TensorRt:
    """Loads the flavour that built the engine, never the other.

    Args:
        built: What built it.

    Raises:
        RuntimeMissingError: It is not installed here.
    """
    try:
        return {FULL: load_full, RTX: load_rtx}[built.flavour]()
    except RuntimeMissingError as error:
        exactly = f"=={built.version}" if _VERSION.fullmatch(built.version) else ""
        install = {FULL: f"pip install tensorrt{exactly}", RTX: install_command("trt-rtx")}
        raise RuntimeMissingError(
            f"The engine was built by {PRODUCTS[built.flavour]} {built.version}, which is not "
            "ready here.",
            where=str(error),
            fix=f"Install it: {install[built.flavour]}",
        ) from error


def _deserialise(loader: Any, tensorrt: TensorRt, path: Path) -> Any:
    engine = loader.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise RunError(
            f"TensorRT cannot load the engine: {'; '.join(tensorrt.log.errors)}", where=str(path)
        )
    return engine


def _check_tensors(
    tensorrt: TensorRt,
    engine: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Checks the engine's inputs and outputs against the manifest's, for the memory of buffers."""
    modes = tensorrt.api.TensorIOMode
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = np.dtype(tensorrt.api.nptype(engine.get_tensor_dtype(name))).name
        shape = tuple(engine.get_tensor_shape(name))
        found[name] = (engine.get_tensor_mode(name), shape, dtype)
    wanted = {spec.name: (modes.INPUT, spec.shape, spec.dtype) for spec in inputs}
    wanted |= {spec.name: (modes.OUTPUT, spec.shape, spec.dtype) for spec in outputs}
    if found != wanted:
        raise RunError(
            "The engine's inputs and outputs are not the manifest's.",
            where=f"Engine: {found}; manifest: {wanted}",
            fix="Compile the model anew.",
        )
