"""Inspects a model without compiling it: blocks, tokens, cost, unrecognised operators.

The numbers are counts over the captured graph; what was recognised, and what stayed generic and
why, is read from the rewritten one; so is what each target would refuse. The model is traced
and never run, but where a reduction is put into it first.
"""

from __future__ import annotations

import dataclasses
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
from tokexport.exporter.report.block_parts import BlockCounts, Part, by_kind
from tokexport.exporter.report_page.drawing.drawn_tokens import DrawnTokens, drawn_tokens
from tokexport.exporter.source import Source
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.exporter.worker.process import WORKER
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.analysis.macs import count_macs
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.pass_report import PassReport
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
        drawn: What becomes of the patches of the samples; None where it was not asked for.
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
    drawn: DrawnTokens | None = None

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
    draw: bool = False,
    **options: Any,
) -> Inspection:
    """Traces a model and reports its blocks, cost and refusals; leaves the model as it was.

    Args:
        model: The module, or a source that was read.
        example_inputs: A tensor, a tuple of them, or a dict by the names of ``forward``.
        targets: Which targets to ask what they would refuse.
        progress: Shows the stages; silent without one.
        draw: Whether the first samples are run, and their patches followed into the tokens.
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
                reduced = reduced_source(source, config, checklist.counted)
                source = reduced.source
        with checklist.stage("capture"):
            flat, specs, batches = prepare(source, config, checklist.counted)
            shape = specs[0].shape
            batch = shape[0] if shape else 1
            flat, batches, cap = under_cap(flat, batches, batch, config.caps)
            program = capture_any(flat, batches)
            random_ops = random_lines(program)
        with checklist.stage("count"):
            counted = BlockCounts(program, batch)
            unreduced = counted.unreduced
            if reduced is not None:
                unreduced = macs_by_kind(reduced.unreduced, batches)
        with checklist.stage("rewrite"):
            drawn: list[DrawnTokens] = []

            def look(recognised: ExportedProgram) -> None:
                counted.look(recognised)
                if draw:
                    drawn.append(drawn_tokens(recognised, batches, large=True))

            rewritten = pipelines.rewrite(program, look)
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
        drawn=drawn[0] if drawn else None,
    )


def macs_by_kind(model: FlatModel, batches: Batches) -> dict[str, int]:
    """Captures a model and returns the multiply-accumulates of a run on one batch, by kind.

    Raises:
        ModelNotSupportedError: The model cannot become a static graph.
    """
    return by_kind(count_macs(capture(model, tensors_of(next(iter(batches))))))
