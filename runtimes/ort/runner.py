"""Runs ONNX models on ONNX Runtime's CPU provider.

The session options stay at their defaults, which were the fastest in measurements: without
spinning 6 % slower, without prepacking 11 % slower.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.thread_count import MOST_THREADS
from tokexport.runtimes.errors import BuildError, KernelsError, OperatorRefusedError, RunError
from tokexport.runtimes.importing import import_runtime
from tokexport.runtimes.memory import FIX, lacking, lacks_memory
from tokexport.runtimes.native_library import PROBLEM, Kernels, ort_kernels
from tokexport.runtimes.processor import usable_cores

FLAVOUR = "onnxruntime-cpu"

_FATAL = 4  # What ORT logs below this severity is raised as an exception too.
_PROVIDERS = ["CPUExecutionProvider"]
#: The largest value that ORT computes while it loads a model, in bytes: that of the model, since
#: weights are transposed and cast so, or this number. Larger values are computed in a run.
_FOLDED = "optimization.constant_folding_max_output_size_in_bytes"
_SMALL = 1 << 26
#: Says to the kernels how many threads the session has, which its C interface does not.
_KERNEL_THREADS = "custom_op.tokexport.threads"

# ORT's own spelling of an element type, tensor(float), and numpy's.
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}

# Patterns of ORT's messages on a missing operator and its node.
_REFUSALS = (
    re.compile(r"Fatal error: (?P<operator>\S+?)\(-?\d+\) is not a registered function/op"),
    re.compile(r'In Node, \("(?P<node>[^"]*)", (?P<operator>[^,]+), .*No Op registered for'),
    re.compile(
        r"Could not find an implementation for (?P<operator>\S+?)\(\d+\) node with name "
        r"'(?P<node>[^']*)'"
    ),
)
# Patterns of ORT's messages that name the node of another failure.
_BLAMES = (
    re.compile(r"Node \((?P<node>[^)]*)\) Op \((?P<operator>[^)]+)\)"),
    re.compile(r"Optype \((?P<operator>[^)]+)\).*in node \((?P<node>[^)]*)\)"),
    re.compile(
        r"while running (?P<operator>\S+) node\. Name:'(?P<node>[^']*)'",
    ),
    re.compile(r'In Node, \("(?P<node>[^"]*)", (?P<operator>[^,]+),'),
)


class OrtRunner(Runner):
    """Runs an ONNX model on the CPU; made by ``from_file`` or ``from_bytes``.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        where: What the session was made from, for messages.
        runtime: What runs it.

    Raises:
        BuildError: An input or output is of a type that numpy does not have.
    """

    def __init__(self, session: Any, where: str, runtime: RuntimeInfo) -> None:
        super().__init__(
            inputs=tuple(_spec(node, where) for node in session.get_inputs()),
            outputs=tuple(_spec(node, where) for node in session.get_outputs()),
            runtime=runtime,
        )
        self._session: Any = session
        self._where = where
        self._names = [spec.name for spec in self.outputs]

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        threads: int | None = None,
        native: bool = True,
        profile: Path | None = None,
    ) -> Self:
        """Loads an ONNX file; its external data is looked for beside it.

        Args:
            path: The model.
            threads: Threads within an operator; None leaves the choice to ORT (one a core).
            native: Whether the project's kernels run, where they are installed; without them the
                bodies of the functions do.
            profile: The beginning of the path of a trace of every node, which ``end_profile``
                ends; None writes none.

        Raises:
            RuntimeMissingError: onnxruntime is not installed.
            OperatorRefusedError: ORT lacks an operator.
            BuildError: ORT cannot load the file.
        """
        if not path.is_file():
            raise BuildError("The model file does not exist.", where=str(path))
        return cls._load(str(path), str(path), threads, native, profile)

    @classmethod
    def from_bytes(cls, model: bytes, *, threads: int | None = None, native: bool = True) -> Self:
        """Loads a serialised ONNX model, of less than 2 GB and without external data.

        Args:
            model: The serialised ModelProto.
            threads: Threads within an operator; None leaves the choice to ORT (one a core).
            native: Whether the project's kernels run, where they are installed.

        Raises:
            RuntimeMissingError: onnxruntime is not installed.
            OperatorRefusedError: ORT lacks an operator.
            BuildError: ORT cannot load the model.
        """
        return cls._load(model, "a model in memory", threads, native)

    @classmethod
    def _load(
        cls,
        model: str | bytes,
        where: str,
        threads: int | None,
        native: bool,
        profile: Path | None = None,
    ) -> Self:
        ort = import_runtime("onnxruntime", extra="ort")

        def session(library: Path | None) -> Any:
            options = ort.SessionOptions()
            options.log_severity_level = _FATAL
            if profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(profile)
            options.add_session_config_entry(_FOLDED, str(max(_SMALL, _bytes_of(model))))
            if threads is not None:
                options.intra_op_num_threads = threads
            if library is not None:
                count = min(threads or usable_cores(), MOST_THREADS)
                options.add_session_config_entry(_KERNEL_THREADS, str(count))
                _register(options, library)
            return ort.InferenceSession(model, options, providers=_PROVIDERS)

        kernels = ort_kernels() if native else Kernels()
        try:
            try:
                made = session(kernels.library)
            except Exception as error:
                # The kernels take float32 only; the bodies take any type. They run everywhere.
                if kernels.library is None:
                    raise
                kernels, made = Kernels(problem=_left_out(error)), session(None)
        except Exception as error:  # ORT's errors share no base class but this
            raise _load_error(error, where) from error
        details: dict[str, str | int | list[str]] = {
            "providers": list(made.get_providers()),
            "kernels": kernels.isa,
        }
        if kernels.problem:
            details[PROBLEM] = kernels.problem
        details["threads"] = made.get_session_options().intra_op_num_threads or usable_cores()
        return cls(made, where, RuntimeInfo("ort", FLAVOUR, ort.__version__, details))

    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        session = self._held()
        with self._failures():
            results = session.run(self._names, arrays)
        return dict(zip(self._names, results, strict=True))

    def _run_into(self, arrays: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
        session = self._held()
        with self._failures():
            binding = session.io_binding()
            for name, array in arrays.items():
                place = array.dtype, array.shape, array.ctypes.data
                binding.bind_input(name, "cpu", 0, *place)
            for name in self._names:
                place = out[name].dtype, out[name].shape, out[name].ctypes.data
                binding.bind_output(name, "cpu", 0, *place)
            session.run_with_iobinding(binding)
        return out

    def _held(self) -> Any:
        """Returns the session; who holds it can end a run, whoever closes meanwhile."""
        session = self._session
        if session is None:
            raise self._closed_error()
        return session

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Names the node that a run failed at."""
        try:
            yield
        except Exception as error:  # ORT's errors share no base class but this
            said = _message(str(error))
            node, operator = _blamed(said, _BLAMES)
            lacks = lacks_memory(error)
            raise RunError(
                lacking("ONNX Runtime", "running the model")
                if lacks
                else f"ONNX Runtime failed: {said}",
                where=_node_text(node, operator) or self._where,
                fix=FIX if lacks else "",
                node=node,
                operator=operator,
            ) from error

    def end_profile(self) -> Path:
        """Ends the trace that ``profile`` of ``from_file`` began, and returns its file."""
        return Path(self._session.end_profiling())

    def _close_impl(self) -> None:
        self._session = None


def _register(options: Any, library: Path) -> None:
    """Adds the kernels of a library to a session."""
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # ORT's errors share no base class but this
        said = f"ONNX Runtime does not take the native kernels in {library}: {_message(str(error))}"
        raise KernelsError(said) from error


def _left_out(error: Exception) -> str:
    """Returns why a model runs without the kernels that are there."""
    if isinstance(error, KernelsError):
        return error.what
    said = _message(str(error))
    return f"ONNX Runtime refuses the model with the native kernels, and runs it without: {said}"


def _bytes_of(model: str | bytes) -> int:
    """Returns the bytes of a model in memory, or of a file and the files beside it."""
    if isinstance(model, bytes):
        return len(model)
    return sum(entry.stat().st_size for entry in os.scandir(Path(model).parent) if entry.is_file())


def _spec(node: Any, where: str) -> TensorSpec:
    """The spec of an ORT NodeArg; a size that is a name or unknown becomes -1."""
    element = re.fullmatch(r"tensor\((\w+)\)", node.type)
    dtype = _DTYPES.get(element.group(1)) if element else None
    if dtype is None:
        raise BuildError(
            f"The tensor '{node.name}' is a {node.type}, which numpy has no dtype for.",
            where=where,
            fix="Let the model take and return float32, and cast inside it.",
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, shape, np.dtype(dtype).name)


def _message(text: str) -> str:
    """ORT's message without its prefix, ``[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : ``."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text).strip()


def _blamed(text: str, patterns: tuple[re.Pattern[str], ...]) -> tuple[str, str]:
    """The node and the operator that a message names; empty texts where it names none."""
    for pattern in patterns:
        if found := pattern.search(text):
            groups = found.groupdict()
            return groups.get("node") or "", groups["operator"]
    return "", ""


def _node_text(node: str, operator: str) -> str:
    return f"Node {node or '(without a name)'}, operator {operator}" if operator else ""


def _load_error(error: Exception, where: str) -> BuildError:
    said = _message(str(error))
    node, operator = _blamed(said, _REFUSALS)
    if operator:
        return OperatorRefusedError(
            f"ONNX Runtime has no operator {operator} for the CPU.",
            where=f"{_node_text(node, operator)}, in {where}: {said}",
            fix="Lower it to operators that ONNX Runtime has.",
            node=node,
            operator=operator,
        )
    node, operator = _blamed(said, _BLAMES)
    if lacks_memory(error):
        return BuildError(lacking("ONNX Runtime", "loading the model"), where=where, fix=FIX)
    if "External" in said and "nitializer" in said:
        return BuildError(
            f"The model's external data cannot be read: {said}",
            where=where,
            fix="Keep the data file beside the model, whole and under its own name.",
        )
    return BuildError(
        f"ONNX Runtime cannot load the model: {said}",
        where=f"{_node_text(node, operator)}, in {where}" if operator else where,
        node=node,
        operator=operator,
    )
