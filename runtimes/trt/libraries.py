"""Finds TensorRT on this machine: the full library, or TensorRT-RTX, and loads it.

| flavour        | Python API              | libraries                           | builds        |
|----------------|-------------------------|-------------------------------------|---------------|
| `tensorrt`     | `tensorrt`              | with it                             | on a GPU      |
| `tensorrt-rtx` | `tensorrt_rtx_bindings` | in `onnxruntime_ep_nv_tensorrt_rtx` | without a GPU |

An engine of one flavour cannot be read by the other, and needs exactly the version that built it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokexport.runtimes.errors import RuntimeMissingError
from tokexport.runtimes.importing import import_runtime, install_command, is_installed
from tokexport.runtimes.trt.cuda_driver import CudaDriver, CudaDriverError

FULL = "tensorrt"
RTX = "tensorrt-rtx"

_RTX_LIBRARIES_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_BINDINGS = "tensorrt_rtx_bindings"
_RTX_LIBRARY_PATTERNS = (
    ("tensorrt_rtx_1_*.dll", "tensorrt_onnxparser_rtx_1_*.dll")
    if sys.platform == "win32"
    else ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
)

_WARNING = 2  # Severities count up from INTERNAL_ERROR, 0, and ERROR, 1, to VERBOSE, 4.
_PARSING = re.compile(r"(?:Static check for parsing|Parsing) node: (?P<node>.*) \[(?P<kind>\S+)\]$")


class Log:
    """Collects TensorRT's messages in place of printing them.

    TensorRT has one logger in a process, the first that it was given; so this one is shared, and
    ``collecting`` gives it to one caller at a time.

    Attributes:
        errors: The errors since ``collecting`` began.
        parsing: The node that the ONNX parser was at last, and its operator.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.parsing = ("", "")
        self._lock = threading.Lock()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Clears the messages, and blocks other threads until the end."""
        with self._lock:
            self.errors.clear()
            self.parsing = ("", "")
            yield

    def record(self, severity: int, message: str) -> None:
        """Takes one message of TensorRT's."""
        if severity < _WARNING:
            self.errors.append(message.strip())
        elif found := _PARSING.match(message):
            self.parsing = (found["node"], found["kind"])


@dataclass(frozen=True)
class TensorRt:
    """One flavour of TensorRT, loaded.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: Its exact version.
        api: The Python API, the same in both flavours.
        logger: The ``ILogger`` to hand to that API.
        log: What the logger has collected.
    """

    flavour: str
    version: str
    api: Any
    logger: Any
    log: Log


def find_tensorrt() -> TensorRt:
    """Returns the TensorRT to build with: the full one if it works here with a GPU, else RTX.

    Raises:
        RuntimeMissingError: Neither is installed, or RTX is, but its parts do not fit together.
    """
    full_is_not_ready = ""
    try:
        CudaDriver()
        return load_full()
    except (CudaDriverError, RuntimeMissingError) as error:
        if is_installed(FULL):
            full_is_not_ready = f"`tensorrt` is installed, but not ready: {error}"
    if not is_installed(_RTX_LIBRARIES_PACKAGE) and not is_installed(_RTX_BINDINGS):
        raise RuntimeMissingError(
            "No TensorRT found.",
            where=full_is_not_ready,
            fix="Install `tensorrt` (needs an NVIDIA GPU), or the `trt-rtx` extra to build without "
            f"a GPU: {install_command('trt-rtx')}",
        )
    return load_rtx()


@functools.cache
def load_full() -> TensorRt:
    """Loads the full TensorRT.

    Raises:
        RuntimeMissingError: It is not installed, is a package without the library, or its builder
            cannot be made, for example without a GPU.
    """
    try:
        api = import_runtime("tensorrt", extra="trt-rtx")
    except RuntimeMissingError as error:
        raise RuntimeMissingError(
            "TensorRT is not installed.", where=error.where, fix="Install it: pip install tensorrt"
        ) from error
    log = Log()
    try:
        logger = _logger(api, log)
        api.Builder(logger)
    except Exception as error:  # a missing GPU gives a TypeError, a package without content others
        raise RuntimeMissingError(
            f"TensorRT is installed, but its builder does not start: {error}",
            where="; ".join(log.errors),
            fix="It needs an NVIDIA GPU and its driver; without them, use the `trt-rtx` extra: "
            + install_command("trt-rtx"),
        ) from error
    return TensorRt(FULL, str(api.__version__), api, logger, log)


@functools.cache
def load_rtx() -> TensorRt:
    """Loads TensorRT-RTX; no GPU is needed for that.

    Raises:
        RuntimeMissingError: One of its two packages is missing, or they are of two versions.
    """
    for package in (_RTX_LIBRARIES_PACKAGE, _RTX_BINDINGS):
        if not is_installed(package):
            raise RuntimeMissingError(
                f"TensorRT-RTX is not whole: the package {package} is not installed.",
                fix=f"Install it: {install_command('trt-rtx')}",
            )
    version = _load_rtx_libraries()
    # Loaded by their names, the libraries now satisfy the extension module that links to them.
    api = import_runtime(_RTX_BINDINGS, extra="trt-rtx")
    if version != api.__version__:
        raise RuntimeMissingError(
            f"TensorRT-RTX does not fit together: its library is {version}, and its Python "
            f"bindings are {api.__version__}.",
            fix=f"Install both of one version: {install_command('trt-rtx')} --force-reinstall",
        )
    log = Log()
    return TensorRt(RTX, version, api, _logger(api, log), log)


def _load_rtx_libraries() -> str:
    """Loads the library and its ONNX parser into the process; returns the library's version."""
    spec = importlib.util.find_spec(_RTX_LIBRARIES_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    loaded = []
    for pattern in _RTX_LIBRARY_PATTERNS:
        found = [path for folder in folders for path in sorted(Path(folder).glob(pattern))]
        if not found:
            raise RuntimeMissingError(
                f"TensorRT-RTX is not whole: there is no {pattern}.",
                where=", ".join(folders),
                fix=f"Install it anew: {install_command('trt-rtx')} --force-reinstall",
            )
        try:
            loaded.append(ctypes.CDLL(str(found[-1])))
        except OSError as error:
            raise RuntimeMissingError(
                "TensorRT-RTX does not load on this machine.",
                where=str(error),
                fix=f"Install it anew: {install_command('trt-rtx')} --force-reinstall",
            ) from error
    library = loaded[0]
    parts = ("Major", "Minor", "Patch", "Build")
    return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)


def _logger(api: Any, log: Log) -> Any:
    """An ILogger of this flavour that collects into ``log``."""

    class Collector(api.ILogger):  # type: ignore[misc]
        """Hands every message to the log."""

        def __init__(self) -> None:
            # pybind11 wants its own base called by name.
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any of its threads."""
            log.record(int(severity), message)

    return Collector()
