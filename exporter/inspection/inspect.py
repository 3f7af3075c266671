"""Inspects a model without compiling it: blocks, tokens, cost, unrecognised operators.

The numbers are counts over the captured graph; what was recognised, and what stayed generic and
why, is read from the rewritten one; so is what each target would refuse. The model is traced
and never run, but where a reduction is put into it first.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from torch import nn
from torch.export import ExportedProgram

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.target_refusals import Verdict, ask, emitted
from tokexport.exporter.capture.random_ops import capture_any, random_lines
from tokexport.exporter.capture.token_cap import under_cap
from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.config import ReduceConfig, check_target
from tokexport.exporter.eager.example_inputs import constants_of, prepare
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.progress import Checklist
from tokexport.exporter.reduction.reduced_source import reduced_source
from tokexport.exporter.source import Source
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.worker.process import WORKER
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.analysis.blocks import Blocks, Tokens, attention_blocks, tokens_through
from tokexport.graph_passes.analysis.macs import NodeMacs, count_macs
from tokexport.graph_passes.analysis.unrecognised import unrecognised
from tokexport.graph_passes.analysis.unreduced import unreduced_macs
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.pass_report import PassReport
from tokexport.graph_passes.torch_passes.graph.calls import operator_name
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind, ProductKinds
from tokexport.runtimes.bundle.constant_inputs import ConstantInput

SCHEMA_VERSION: Final = 2
#: How ``Inspection.unreduced`` is counted; shown beside the number.
UNREDUCED_MEANS: Final = (
    "the same graph with every block at the token count of the first block of its width, and "
    "without matching"
)
#: The same where the reduction was put in here.
GIVEN_MEANS: Final = "the model as it was given"


@dataclass(frozen=True)
class Generic:
    """An operator that no pass recognised.

    Attributes:
        what: ``attention``, ``selection``, ``merge``, ``gather``, ``scatter`` or ``sort``.
        operator: The operator: ``aten.matmul``.
        why: Why it was not recognised, a clause.
        line: The line of the user's code, or ''.
    """

    what: str
    operator: str
    why: str
    line: str


@dataclass(frozen=True)
class Part:
    """One block, or everything outside the blocks.

    Attributes:
        path: The module: ``blocks.3``; '' for what lies outside.
        tokens_in: Tokens of an image that enter; None where nothing looks like tokens.
        tokens_out: Tokens that leave.
        macs: Multiply-accumulates by kind, of the whole batch.
        recognised: How many operators of the domain, by name.
        generic: What stayed generic.
    """

    path: str
    tokens_in: int | None
    tokens_out: int | None
    macs: Mapping[str, int]
    recognised: Mapping[str, int]
    generic: tuple[Generic, ...]


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        source: What was inspected.
        inputs: The shape of each input.
        batch: Images in a run; every count is of one run.
        blocks: The repeated blocks that hold attention, in order.
        outside: Everything else.
        macs: Multiply-accumulates of the whole, by kind.
        unreduced: Those of the model without its reduction, by kind, as ``unreduced_means`` says.
        token_schedule: Tokens at each attention.
        random_ops: What draws random numbers that reach an output, with its line; compile refuses
            it without ``--drop-noise``.
        targets: What each target says.
        recipe: The reduction that was put into the model first; '' where none was.
        unreduced_means: How ``unreduced`` comes about.
        token_cap: The counts met on the inputs, and how they fit under a cap; None without one, or
            where none was needed.
        constant_inputs: The inputs that are fixed, with their values.
        passes: What each pass over the traced graph did; those of a lowering are in ``targets``.
    """

    source: str
    inputs: Mapping[str, tuple[int, ...]]
    batch: int
    blocks: tuple[Part, ...]
    outside: Part
    macs: Mapping[str, int]
    unreduced: Mapping[str, int]
    token_schedule: tuple[int, ...]
    random_ops: tuple[str, ...]
    targets: tuple[Verdict, ...]
    recipe: str = ""
    unreduced_means: str = UNREDUCED_MEANS
    token_cap: TokenCapReport | None = None
    constant_inputs: tuple[ConstantInput, ...] = ()
    passes: tuple[PassReport, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, with ``schema_version`` before them."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


@process_unchanged()
def inspect(
    model: nn.Module | Source,
    example_inputs: Any = None,
    *,
    targets: Sequence[str] = tuple(BACKENDS),
    progress: Checklist | None = None,
    **options: Any,
) -> Inspection:
    """Traces a model and reports its blocks, cost and refusals; leaves the model as it was.

    Args:
        model: The module, or a source that was read.
        example_inputs: A tensor, a tuple of them, or a dict by the names of ``forward``.
        targets: Which targets to ask what they would refuse.
        progress: Shows the stages; silent without one.
        options: Further fields of ``ReduceConfig``: inputs, input_shape, batch, seed, reduce,
            restore, token_cap, constants.

    Raises:
        UsageError: The options or inputs do not fit.
        ModelNotSupportedError: The model cannot become a static graph.
        tokexport.graph_passes.reduction.errors.SurgeryError: The reduction cannot go into it.
        GateError: The surgery alone already changes what the model computes.
    """
    config = ReduceConfig(**options)
    for target in targets:
        check_target(target)
    source = model if isinstance(model, Source) else source_in_memory(model, example_inputs)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    ops.register()
    if asked := {BACKENDS[name].runtime for name in targets if BACKENDS[name].runs_on_cpu}:
        WORKER.start(*asked)  # it gets ready while the model is traced
    with checklist:
        reduced = None
        if config.reduce is not None:
            with checklist.stage("reduce"):
                reduced = reduced_source(source, config)
                source = reduced.source
        with checklist.stage("capture"):
            flat, specs, batches = prepare(source, config)
            shape = specs[0].shape
            batch = shape[0] if shape else 1
            flat, batches, cap = under_cap(flat, batches, batch, config.caps)
            program = capture_any(flat, batches)
            random_ops = random_lines(program)
        with checklist.stage("count"):
            counted = _Count(program, batch)
            unreduced = counted.unreduced
            if reduced is not None:
                unreduced = macs_by_kind(reduced.unreduced, batches)
        with checklist.stage("rewrite"):
            rewritten = pipelines.rewrite(program, counted.look)
        verdicts = []
        if targets:
            with checklist.stage("emit"):
                onnx_model = emitted(rewritten.program, flat.spec.names)
        for target in targets:
            with checklist.stage(target):
                verdicts.append(ask(target, onnx_model))
    return Inspection(
        source=source.location,
        inputs={spec.name: spec.shape for spec in specs},
        batch=batch,
        blocks=counted.parts[:-1],
        outside=counted.parts[-1],
        macs=counted.total,
        unreduced=unreduced,
        token_schedule=rewritten.token_schedule,
        random_ops=random_ops,
        targets=tuple(verdicts),
        recipe="" if reduced is None else reduced.use.recipe,
        unreduced_means=UNREDUCED_MEANS if reduced is None else GIVEN_MEANS,
        token_cap=cap,
        constant_inputs=constants_of(flat),
        passes=rewritten.reports,
    )


def macs_by_kind(model: FlatModel, batches: Batches) -> dict[str, int]:
    """Captures a model and returns the multiply-accumulates of a run on one batch, by kind.

    Raises:
        ModelNotSupportedError: The model cannot become a static graph.
    """
    return _by_kind(_summed(count_macs(capture(model, tensors_of(next(iter(batches)))))))


def cost(macs: Mapping[str, int]) -> int:
    """Returns the cost without normalisations, which papers mostly leave out."""
    return sum(macs.values()) - macs[Kind.NORMALISATION]


class _Count:
    """The counts of a captured program; taken before its graph is rewritten in place.

    Args:
        program: The captured program.
        batch: Images in a run.

    Attributes:
        total: Multiply-accumulates of the whole, by kind.
        unreduced: Those without the reduction.
        parts: A part per block, and last what lies outside all; there once ``look`` was called.
    """

    parts: tuple[Part, ...]

    def __init__(self, program: ExportedProgram, batch: int) -> None:
        nodes = count_macs(program)
        kinds = ProductKinds(program)
        self._paths = attention_blocks(program, nodes)
        blocks = Blocks(program, self._paths)
        self._tokens: tuple[Tokens | None, ...] = tuple(
            tokens_through(blocks.members(i), nodes, kinds, batch) for i in range(len(self._paths))
        )
        self._macs: dict[int | None, Counter[str]] = {}
        for node in nodes:
            self._macs.setdefault(blocks.block_of(node.node), Counter())[node.kind] += node.macs
        self.total = _by_kind(_summed(nodes))
        self.unreduced = _by_kind(unreduced_macs(nodes, blocks, self._tokens, batch))

    def look(self, rewritten: ExportedProgram) -> None:
        """Finds the parts in the rewritten program before what nothing reads is dropped."""
        blocks = Blocks(rewritten, self._paths)
        recognised: dict[int | None, Counter[str]] = {}
        for node in rewritten.graph.nodes:
            name = operator_name(node) if node.op == "call_function" else ""
            if name.startswith(f"{ops.NAMESPACE}."):
                found = recognised.setdefault(blocks.block_of(node), Counter())
                found[name.removeprefix(f"{ops.NAMESPACE}.")] += 1
        generic: dict[int | None, list[Generic]] = {}
        for left in unrecognised(rewritten):
            generic.setdefault(blocks.block_of(left.node), []).append(
                Generic(left.what, left.operator, left.why, left.line)
            )
        parts = []
        for position in (*range(len(self._paths)), None):
            tokens = None if position is None else self._tokens[position]
            parts.append(
                Part(
                    path="" if position is None else _shown(self._paths[position]),
                    tokens_in=tokens.entering if tokens else None,
                    tokens_out=tokens.leaving if tokens else None,
                    macs=_by_kind(self._macs.get(position, {})),
                    recognised=dict(sorted(recognised.get(position, {}).items())),
                    generic=tuple(generic.get(position, ())),
                )
            )
        self.parts = tuple(parts)


def _summed(nodes: Sequence[NodeMacs]) -> Counter[str]:
    total: Counter[str] = Counter()
    for node in nodes:
        total[node.kind] += node.macs
    return total


def _by_kind(counts: Mapping[Any, int]) -> dict[str, int]:
    """Returns a count for every kind, in their order, 0 for a missing one."""
    return {str(kind): counts.get(kind, 0) for kind in Kind}


def _shown(path: str) -> str:
    """Returns a module's path as the user's model has it, without the wrapper of the capture."""
    return path.removeprefix("model.")
