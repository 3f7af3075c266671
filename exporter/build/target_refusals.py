"""Finds which operators of a model each target refuses, and which attentions it fuses.

ONNX Runtime loads the lowered model, OpenVINO converts and loads it; for TensorRT the refused
operators are listed, and no engine is built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import onnx_ir as ir
from torch.export import ExportedProgram

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import BACKENDS, REFERENCE
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.errors import ModelNotSupportedError, WriteError
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.graph_passes import errors as graph_errors
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.graph.source_lines import lines_by_node
from tokexport.graph_passes.onnx_passes.targets.refuse_for_tensorrt import (
    RefuseForTensorRt,
    refusals,
)
from tokexport.graph_passes.ops.fused_functions import SOFTMAXES
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import PassReport
from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.errors import BuildError, OperatorRefusedError, RuntimeMissingError
from tokexport.runtimes.native_library import NO_KERNELS


@dataclass(frozen=True)
class Refusal:
    """An operator that a target refuses.

    Attributes:
        what: The operator, a sentence.
        where: The node and the line it came from.
        fix: What the user can do.
    """

    what: str
    where: str
    fix: str


@dataclass(frozen=True)
class Verdict:
    """Whether a target takes a model, and what it refuses.

    Attributes:
        target: ``ort``, ``openvino`` or ``trt``.
        refusals: What it refuses; nothing where it takes the model.
        note: How it was found out, or why it was not, a clause.
        asked: Whether the target was asked; False where its runtime is not installed.
        unfused: The places of the attentions that do not run as one kernel.
        passes: What each pass of the lowering did.
    """

    target: str
    refusals: tuple[Refusal, ...]
    note: str
    asked: bool = True
    unfused: tuple[str, ...] = ()
    passes: tuple[PassReport, ...] = ()


def emitted(program: ExportedProgram, input_names: Sequence[str]) -> ir.Model | Refusal:
    """Returns a rewritten program as ONNX, or the operator that has no ONNX form."""
    count = len(program.graph_signature.user_outputs)
    try:
        return emit(program, input_names, [f"output_{i}" for i in range(count)])
    except ModelNotSupportedError as error:
        return _refusal(error)


def ask(target: str, model: ir.Model | Refusal) -> Verdict:
    """Returns what a target refuses of an emitted model, which is left as it is.

    Args:
        target: ``ort``, ``openvino`` or ``trt``.
        model: The model, or the refusal that prevented it.
    """
    if isinstance(model, Refusal):
        return Verdict(target, (model,), "there is no ONNX model to ask it about")
    passes = BACKENDS[target].lowering(pipelines.FP32)
    ahead = [*takewhile(lambda one: not isinstance(one, RefuseForTensorRt), passes)]
    lines: dict[str, str] = {}
    lowered = pipelines.lower(model.clone(), ahead, lambda now: lines.update(lines_by_node(now)))
    if len(ahead) < len(passes):
        found = tuple(_refusal(error) for error in refusals(lowered.model))
        note = "by the operators known to be refused; nothing was built"
        return Verdict(target, found, note, passes=lowered.reports)
    try:
        with scratch_folder() as folder:
            verdict = _try(target, lowered.model, lines, folder)
            return replace(verdict, passes=lowered.reports)
    except OSError as error:
        raise WriteError(
            f"The lowered model cannot be written: {error.strerror}.",
            where=tempfile.gettempdir(),
            fix="Let TMPDIR name a folder on a disk with room.",
        ) from error


def _try(target: str, model: ir.Model, lines: dict[str, str], folder: Path) -> Verdict:
    """Loads the lowered model in the target's runtime, and returns what it refused."""
    backend = BACKENDS[target]
    lowered, built = folder / REFERENCE.artifact, folder / "built"
    save_onnx(model, lowered)
    built.mkdir()
    try:
        runtime = build(backend, lowered, built)
        fused, apart = _attentions(backend, model, lowered, built / backend.artifact, runtime)
    except RuntimeMissingError as error:
        return Verdict(target, (), f"{error.what} {error.fix}", asked=False)
    except BuildError as error:
        blamed = _blamed(error, model, lines, everywhere=backend.refuses_everywhere)
        return Verdict(target, blamed, "it refused the lowered model")
    took = f"{runtime.flavour} {runtime.version} took the lowered model"
    if fused or apart:
        took += f"; {fused} of {fused + len(apart)} attentions fused"
    return Verdict(target, (), took, unfused=tuple(_place(node, lines) for node in apart))


def _attentions(
    backend: Backend, model: ir.Model, lowered: Path, artifact: Path, runtime: RuntimeInfo
) -> tuple[int, list[ir.Node]]:
    """Returns how many attentions run as one kernel, and the nodes of the others.

    Args:
        backend: The target.
        model: The lowered model.
        lowered: The file of it.
        artifact: What was built of it.
        runtime: What built it.
    """
    if backend.tells_attentions:
        with WorkerRunner(Opening(artifact), lowered) as runner:
            names = runner.runtime.details["other_attentions"]
            fused = runner.runtime.details["fused_attentions"]
        assert isinstance(names, list)
        assert isinstance(fused, int)
        apart = [n for n in model.graph.all_nodes() if {*_names(n)} & {*names}]
        return fused, apart
    ours = [n for n in model.graph if n.domain == DOMAIN and "attention" in n.op_type]
    calls = [n for n in ours if n.op_type not in SOFTMAXES]
    generic = [n for n in model.graph if n.op_type in ("Softmax", *SOFTMAXES) and _weighs_values(n)]
    if runtime.details["kernels"] == NO_KERNELS:
        return 0, calls + generic
    return len(calls), generic


def _weighs_values(weights: ir.Node) -> bool:
    """Returns whether a standard product multiplies weights of attention, or rows of them."""
    readers = [use.node for use in weights.outputs[0].uses()]
    return any(
        reader.op_type == "MatMul"
        or (reader.op_type in ("Slice", "Gather") and _weighs_values(reader))
        for reader in readers
    )


def _blamed(
    error: BuildError, model: ir.Model, lines: dict[str, str], everywhere: bool
) -> tuple[Refusal, ...]:
    """Returns the refusals of an error, a node and its source line each.

    Args:
        error: What the target said; it may name a node, an operator, both or neither.
        model: The lowered model.
        lines: The source line of a node, by its name and those of its outputs.
        everywhere: Whether a refused operator is refused wherever it stands.
    """
    domain, _, operator = error.operator.rpartition(":")
    same = [n for n in model.graph.all_nodes() if (n.domain, n.op_type) == (domain, operator)]
    named = [node for node in same if error.node in _names(node)]
    refused = isinstance(error, OperatorRefusedError)
    nodes = same if refused and (everywhere or not named) else named
    fix = "Write that line with operators that the target has, or compile for another."
    if not nodes:
        return (Refusal(error.what, "", fix),)
    return tuple(Refusal(error.what, _place(node, lines), fix) for node in nodes)


def _names(node: ir.Node) -> tuple[str | None, ...]:
    return (node.name, *(value.name for value in node.outputs))


def _place(node: ir.Node, lines: dict[str, str]) -> str:
    line = next((lines[name] for name in _names(node) if name is not None and name in lines), "")
    return f"Node {node.name} ({node.op_type})" + (f", from {line}" if line else "")


def _refusal(error: ModelNotSupportedError | graph_errors.OperatorRefusedError) -> Refusal:
    return Refusal(error.what, error.where, error.fix)
