"""Calls the functions of the CUDA driver that running an engine needs, through ctypes.

The driver's own library (libcuda.so.1) is installed wherever a GPU can be used, so neither a CUDA
toolkit nor a Python package for CUDA is needed. TensorRT works in the device's primary context, and
so does this.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Self

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.errors import RunError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Values of CUdevice_attribute and CUstream_flags in cuda.h.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_STREAM_NON_BLOCKING = 1


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver shows.

    Attributes:
        name: The product's name.
        compute_capability: ``8.9``.
        cuda_version: The newest CUDA that the driver supports, (13, 0).
    """

    name: str
    compute_capability: str
    cuda_version: tuple[int, int]


class CudaDriverError(RunError):
    """The driver or the GPU is missing, or a call of the driver failed."""


class CudaDriver:
    """The driver, initialised.

    Raises:
        CudaDriverError: The machine has no driver, or the driver shows no GPU.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise CudaDriverError(f"There is no NVIDIA driver: {error}.") from error
        self.call("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise CudaDriverError("The NVIDIA driver shows no GPU.")

    def call(self, function: str, *arguments: object) -> None:
        """Calls a function of the driver, every argument a ctypes value.

        Raises:
            CudaDriverError: The driver lacks the function, or it returned an error.
        """
        try:
            status = getattr(self._library, function)(*arguments)
        except AttributeError as error:
            raise CudaDriverError(
                f"The NVIDIA driver has no {function}.", fix="Update the driver."
            ) from error
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            said = text.value.decode() if text.value else "unknown"
            raise CudaDriverError(f"The NVIDIA driver failed: {said} (CUDA error {status}).")

    def gpu(self) -> Gpu:
        """Describes the first GPU."""
        device = self.device()
        version, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        for value, attribute in (
            (major, _COMPUTE_CAPABILITY_MAJOR),
            (minor, _COMPUTE_CAPABILITY_MINOR),
        ):
            self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        return Gpu(
            name=name.value.decode(errors="replace"),
            compute_capability=f"{major.value}.{minor.value}",
            cuda_version=(version.value // 1000, version.value % 1000 // 10),
        )

    def device(self) -> ctypes.c_int:
        """The handle of the first GPU."""
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        return device


class DeviceBuffers:
    """Memory of the first GPU, by name, and the stream that copies to it and from it.

    Args:
        driver: The driver.
        sizes: Bytes to allocate for each name.

    Raises:
        CudaDriverError: The GPU has too little free memory.
    """

    def __init__(self, driver: CudaDriver, sizes: dict[str, int]) -> None:
        self._driver = driver
        self._device = driver.device()
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._pointers: dict[str, ctypes.c_uint64] = {}
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        try:
            self.make_current()
            driver.call(
                "cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(_STREAM_NON_BLOCKING)
            )
            for name, size in sizes.items():
                pointer = ctypes.c_uint64()
                # A tensor without elements still needs an address.
                driver.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
                self._pointers[name] = pointer
        except BaseException:
            self.close()
            raise

    def make_current(self) -> Self:
        """Makes the GPU's context the calling thread's own; needed once in every thread."""
        self._driver.call("cuCtxSetCurrent", self._context)
        return self

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return self._stream.value or 0

    def address(self, name: str) -> int:
        """Returns the address of a buffer on the device."""
        return self._pointers[name].value

    def upload(self, name: str, array: Array) -> None:
        """Queues a copy to the device; ``array`` must live until ``synchronise``."""
        self._driver.call(
            "cuMemcpyHtoDAsync_v2",
            self._pointers[name],
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def download(self, name: str, array: Array) -> None:
        """Queues a copy into ``array``, which holds it after ``synchronise``."""
        self._driver.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            self._pointers[name],
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def synchronise(self) -> None:
        """Waits until the stream has done all that was queued."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Frees the memory and the stream."""
        try:
            self.make_current()
            while self._pointers:
                self._driver.call("cuMemFree_v2", self._pointers.popitem()[1])
            if self._stream:
                self._driver.call("cuStreamDestroy_v2", self._stream)
        finally:
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
