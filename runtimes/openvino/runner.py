"""Converts ONNX to OpenVINO IR, and runs IR on the CPU.

OpenVINO's CPU plugin picks bfloat16 by itself where the processor has it, and answers a request for
a precision that the processor lacks with another one (fp16 becomes bf16), without a word. So
the precision is always requested, and the one that really ran is read back from the compiled model.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.runner import Runner, forked_error
from tokexport.runtimes.errors import BuildError, OperatorRefusedError, RunError
from tokexport.runtimes.files.ir_contents import weights_beside
from tokexport.runtimes.importing import import_runtime
from tokexport.runtimes.memory import FIX, lacking, lacks_memory
from tokexport.runtimes.native_library import PROBLEM, Kernels, openvino_kernels
from tokexport.runtimes.node_times import NodeTime, medians
from tokexport.runtimes.openvino.folding import folds_too_far
from tokexport.runtimes.openvino.kernels import put_kernels
from tokexport.runtimes.openvino.layers import attentions, layer_precisions
from tokexport.runtimes.openvino.requests import Requests

FLAVOUR = "openvino-cpu"
_NAME = "OpenVINO"

# A precision in this project's words and in OpenVINO's.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

# The precision to request: the integers of an int8 model are in its graph, the rest is float32.
HINTS = {**PRECISIONS, "int8": "f32"}

_DTYPES = {
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "boolean": "bool",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}

_NO_SPACE = 1 << 20  # bytes: less than this free counts as a full disk

_TELEMETRY = "openvino_telemetry"
_import_lock = threading.Lock()


def convert(onnx_path: Path, xml_path: Path) -> RuntimeInfo:
    """Converts an ONNX file to OpenVINO IR: ``xml_path`` and the ``.bin`` of weights beside it.

    Weights keep their types (no compression to fp16), inputs and outputs keep their names. The
    model must hold no model-local functions: OpenVINO does not look into them.

    Args:
        onnx_path: The model; its external data lies beside it.
        xml_path: Where to write the IR; the name ends in ``.xml``.

    Returns:
        What built it.

    Raises:
        RuntimeMissingError: openvino is not installed.
        OperatorRefusedError: OpenVINO lacks an operator; names it and its node.
        BuildError: The file is not a model, or an operator in it is not valid.
        OSError: The IR cannot be written; of errno ENOSPC when the disk is full.
    """
    if not onnx_path.is_file():
        raise BuildError("The model file does not exist.", where=str(onnx_path))
    openvino = import_openvino()
    where = str(onnx_path)
    front_end = _front_end(openvino, "onnx")
    try:
        loaded = front_end.load(str(onnx_path))
        model = front_end.convert(loaded)
    except Exception as error:  # OpenVINO raises classes of its own and plain RuntimeError
        if lacks_memory(error):
            raise BuildError(lacking(_NAME, "reading the model"), where=where, fix=FIX) from error
        raise _convert_error(front_end, onnx_path, str(error)) from error
    if not model.outputs:
        raise BuildError("OpenVINO cannot read the model: there is no graph in it.", where=where)
    _order_stably(model)
    try:
        openvino.save_model(model, str(xml_path), compress_to_fp16=False)
    except Exception as error:  # a plain RuntimeError that says no more than "iostream error"
        raise _write_error(xml_path, str(error)) from error
    return RuntimeInfo("openvino", FLAVOUR, _version(openvino))


def _order_stably(model: Any) -> None:
    """Makes TopK, ArgMax and ArgMin take the lower index first among equals, as ONNX does."""
    for node in model.get_ops():
        if node.get_type_name() == "TopK" and "stable" in node.get_attributes():
            node.set_attribute("stable", True)


class OpenVinoRunner(Runner):
    """Runs OpenVINO IR on the CPU; made by ``from_file``.

    A forked child of a process that loaded a model cannot load one: OpenVINO shares its threads
    among all models, and waits for ever for the threads of the parent.

    Args:
        compiled: An ``openvino.CompiledModel``.
        where: What it was made from, for messages.
        runtime: What runs it.

    Raises:
        BuildError: An input or output is of a type that numpy does not have.
    """

    _loaded_in: ClassVar[int | None] = None  # the id of the process

    def __init__(self, compiled: Any, where: str, runtime: RuntimeInfo) -> None:
        super().__init__(
            inputs=tuple(_spec(port, where) for port in compiled.inputs),
            outputs=tuple(_spec(port, where) for port in compiled.outputs),
            runtime=runtime,
        )
        self._requests: Requests | None = Requests(compiled)
        self._where = where

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        native: bool = True,
        profile: bool = False,
    ) -> Self:
        """Compiles a model for this CPU, for the least latency of one request.

        Args:
            path: The ``.xml`` of an IR whose ``.bin`` lies beside it.
            precision: ``fp32``, ``bf16`` or ``fp16``: what to compute in; ``int8`` for a quantised
                model. A processor without it computes in another:
                ``runtime.details["inference_precision"]`` is what ran.
            threads: Number of threads; None leaves the choice to OpenVINO (one a core).
            native: Whether the project's kernels run, where they are installed for this version
                of OpenVINO.
            profile: Whether every node is timed, for ``node_times``.

        Raises:
            RuntimeMissingError: openvino is not installed.
            BuildError: The model cannot be read or compiled, or the precision is unknown.
            RunError: This process was forked from one that had loaded a model.
        """
        if precision not in HINTS:
            raise BuildError(
                f"OpenVINO has no inference precision {precision!r}.",
                where=str(path),
                fix=f"Use one of {', '.join(HINTS)}.",
            )
        if not path.is_file():
            raise BuildError("The model file does not exist.", where=str(path))
        openvino = import_openvino()
        if OpenVinoRunner._loaded_in not in (None, os.getpid()):
            raise forked_error("OpenVINO")
        OpenVinoRunner._loaded_in = os.getpid()
        options: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        if profile:
            options["PERF_COUNT"] = "YES"
        # A processor that has fp16 turns the whole graph to it, and the kernels take float32.
        kernels = found_kernels() if native and precision != "fp16" else Kernels()
        try:
            model = _read(openvino, path)
            if large := folds_too_far(model, path):
                raise BuildError(
                    f"The model computes a constant that is larger than its weights: {large}.",
                    where=str(path),
                    fix="Make it a buffer of the model. Do not use a foreign bundle that has one.",
                )
            library = kernels.library
            calls = 0 if library is None else put_kernels(openvino, model, library)
            compiled = openvino.Core().compile_model(model, "CPU", options)
        except BuildError:
            raise
        except Exception as error:  # OpenVINO raises classes of its own and plain RuntimeError
            if lacks_memory(error):
                said = lacking(_NAME, "loading the model")
                raise BuildError(said, where=str(path), fix=FIX) from error
            raise BuildError(
                f"OpenVINO cannot load the model: {_last_lines(str(error))}", where=str(path)
            ) from error
        layers = compiled.get_runtime_model().get_ops()
        fused, apart = attentions(model, layers)
        details: dict[str, str | int | list[str]] = {
            "inference_precision": _our_name(
                compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            ),
            "layer_precisions": sorted(map(_our_name, layer_precisions(layers))),
            "fused_attentions": len(fused),
            "other_attentions": apart,
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "kernels": kernels.isa,
            "kernel_calls": calls,
        }
        if kernels.problem:
            details[PROBLEM] = kernels.problem
        runtime = RuntimeInfo("openvino", FLAVOUR, _version(openvino), details)
        return cls(compiled, str(path), runtime)

    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        requests = self._held()
        with self._failures():
            results = requests.run(list(arrays.values()))
        return {spec.name: results[index] for index, spec in enumerate(self.computed)}

    def _run_into(self, arrays: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
        requests, openvino = self._held(), import_openvino()
        with self._failures():
            tensors = [
                openvino.Tensor(out[spec.name], shared_memory=True) for spec in self.computed
            ]
            requests.run_into(list(arrays.values()), tensors)
        return out

    def _held(self) -> Requests:
        """Returns the requests; who holds them can end a run, whoever closes meanwhile."""
        requests = self._requests
        if requests is None:
            raise self._closed_error()
        return requests

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Reports in our words that a run failed."""
        try:
            yield
        except Exception as error:  # OpenVINO raises classes of its own and plain RuntimeError
            if lacks_memory(error):
                said = lacking(_NAME, "running the model")
                raise RunError(said, where=self._where, fix=FIX) from error
            raise RunError(
                f"OpenVINO failed: {_last_lines(str(error))}", where=self._where
            ) from error

    def node_times(self, arrays: dict[str, Array], runs: int) -> tuple[NodeTime, ...]:
        """Runs the model some times, and returns the median of each node; needs ``profile``.

        Args:
            arrays: An array for each input, by name.
            runs: How many runs count; one before them does not.
        """
        requests = self._held()
        given = [arrays[spec.name] for spec in self.inputs]
        return medians([requests.profiled(given) for _ in range(runs + 1)][1:])

    def _close_impl(self) -> None:
        self._requests = None


def import_openvino() -> ModuleType:
    """Imports openvino, without the usage statistics that its import would send."""
    with _import_lock, no_telemetry():
        openvino = import_runtime("openvino", extra="openvino")
        import_runtime("openvino.frontend", extra="openvino")
    return openvino


def found_kernels() -> Kernels:
    """Loads the native kernels for the installed OpenVINO.

    Raises:
        RuntimeMissingError: openvino is not installed.
    """
    return openvino_kernels(_version(import_openvino()))


def kernels_here() -> Path | None:
    """Returns the library of kernels for the installed OpenVINO; None if none loads."""
    return found_kernels().library


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Makes ``import openvino_telemetry`` fail meanwhile, so that OpenVINO uses its own stub."""
    if _TELEMETRY in sys.modules:
        yield
        return
    # The entry that makes an import fail is None, which the annotation of sys.modules leaves out.
    modules: dict[str, Any] = sys.modules
    modules[_TELEMETRY] = None
    try:
        yield
    finally:
        modules.pop(_TELEMETRY, None)


def _front_end(openvino: ModuleType, kind: str) -> Any:
    """The reader of one kind of model file, ``onnx`` or ``ir``.

    Asked to guess the kind, OpenVINO tries every reader on a broken file, and some of them write
    to stderr.
    """
    return openvino.frontend.FrontEndManager().load_by_framework(kind)


def _read(openvino: ModuleType, path: Path) -> Any:
    """Reads an IR with the weights that it has by itself, or shares with others."""
    weights = weights_beside(path)
    if weights.is_file() and weights != path.with_suffix(".bin"):
        return openvino.Core().read_model(str(path), str(weights))  # what no front end takes
    front_end = _front_end(openvino, "ir")
    return front_end.convert(front_end.load(str(path)))


def _version(openvino: ModuleType) -> str:
    """The version in its short form: 2025.1.0, of 2025.1.0-18503-6fec06580ab-releases/2025/1."""
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def _spec(port: Any, where: str) -> TensorSpec:
    """The spec of a port; a size that is not fixed becomes -1."""
    name = _port_name(port)
    # The type's own numpy dtype would call bfloat16 a float16.
    type_name = port.get_element_type().get_type_name()
    if type_name not in _DTYPES:
        raise BuildError(
            f"The tensor '{name}' is a {type_name}, which numpy has no dtype for.",
            where=where,
            fix="Let the model take and return float32, and cast inside it.",
        )
    sizes = port.get_partial_shape()
    shape = tuple(size.get_length() if size.is_static else -1 for size in sizes)
    return TensorSpec(name, shape, _DTYPES[type_name])


def _port_name(port: Any) -> str:
    """The name that the model gives a port.

    Where OpenVINO removes an operator without effect, its tensor's name joins that of the port;
    the node of the port, or the one that its result reads, is still called as in the model.
    """
    own: str = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return own if own in port.get_names() else str(port.get_any_name())


def _our_name(precision: str) -> str:
    """A precision of OpenVINO's in this project's words: fp32 for f32."""
    return {theirs: ours for ours, theirs in PRECISIONS.items()}.get(precision, precision)


def _write_error(xml_path: Path, said: str) -> OSError:
    """Returns the cause of a failed write, which OpenVINO does not report, as OSError."""
    full = shutil.disk_usage(xml_path.parent).free < _NO_SPACE
    number = errno.ENOSPC if full else errno.EIO
    return OSError(number, f"{os.strerror(number)} (OpenVINO: {said})", str(xml_path))


def _last_lines(text: str) -> str:
    """Returns OpenVINO's message without the lines about its source code."""
    noise = re.compile(
        r"^((Caught exception: )?Exception from |Check '|While validating|FrontEnd API failed)"
        r"|^\s*$"
    )
    lines = [line.strip() for line in text.splitlines() if not noise.match(line)]
    return " ".join(lines) or text.strip()


def _convert_error(front_end: Any, onnx_path: Path, text: str) -> BuildError:
    """Returns the error of a failed conversion: an unknown or invalid operator, or no model."""
    unknown = re.search(r"No conversion rule found for operations: (.+)", text)
    if unknown:
        operators = [_operator(part) for part in unknown.group(1).split(", ")]
        nodes = _refused_nodes(front_end, onnx_path)
        node, operator = next(iter(nodes), ("", operators[0]))
        named = [f"node {name}, operator {kind}" for name, kind in nodes] or operators
        return OperatorRefusedError(
            f"OpenVINO has no operator {', '.join(sorted(operators))}.",
            where=f"In {onnx_path}: {'; '.join(named[:8])}",
            fix="Lower it to operators that OpenVINO has; inline model-local functions.",
            node=node,
            operator=operator,
        )
    invalid = re.search(r"ONNX node '<Node\((?P<operator>[^)]*)\): (?P<node>[^>]*)>'", text)
    if invalid:
        return BuildError(
            f"OpenVINO cannot convert an operator: {_last_lines(text)}",
            where=f"In {onnx_path}: node {invalid['node']}, operator {invalid['operator']}",
            node=invalid["node"],
            operator=invalid["operator"],
        )
    return BuildError(f"OpenVINO cannot read the model: {_last_lines(text)}", where=str(onnx_path))


def _operator(text: str) -> str:
    """An operator as ``domain:Type``; OpenVINO writes ``domain.Type`` or ``Type-opset``."""
    standard = re.fullmatch(r"(\w+)-\d+", text.strip())
    if standard:
        return standard.group(1)
    return ":".join(text.strip().rsplit(".", maxsplit=1))


def _refused_nodes(front_end: Any, onnx_path: Path) -> list[tuple[str, str]]:
    """The name and the operator of each node that has no conversion rule.

    OpenVINO's message does not name them; a partial conversion leaves them standing in the model.
    A node that makes an output of the model has that output's name there.
    """
    try:
        # The unconverted nodes point into the loaded file: it must outlive them.
        loaded = front_end.load(str(onnx_path))
        model = front_end.convert_partially(loaded)
    except Exception:  # the refusal is reported all the same; this only adds to it
        return []
    nodes = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ONNXFrameworkNode":
            attributes = node.get_attributes()
            parts = attributes.get("ONNX_META_domain"), attributes.get("ONNX_META_type", "")
            nodes.append((node.get_friendly_name(), ":".join(part for part in parts if part)))
    del model, loaded
    return nodes
