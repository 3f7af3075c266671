"""Refuses random numbers drawn at inference, or takes them out and says what that changed."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.exporter.capture.random_ops_report import RandomOpsReport
from tokexport.exporter.capture.token_cap import CappedModel
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.outputs import Constant
from tokexport.exporter.eager.reference import Reference, run_reference, tensors_of
from tokexport.exporter.errors import (
    DataDependentError,
    EmptyOutputError,
    NotRepeatableError,
    listed,
)
from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.stack_traces import source_line
from tokexport.graph_passes.torch_passes.canonicalize.drop_random import DropRandom
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.graph_passes.torch_passes.graph.pass_runner import run_passes
from tokexport.graph_passes.torch_passes.graph.random_draws import (
    drop_unread_draws,
    find_draws,
    without_mean,
)
from tokexport.runtimes.tolerances.comparison import compare

#: What to do about a refusal.
FIX: Final = (
    "Take the random numbers out of eval mode, or pass --drop-noise: every draw becomes the mean "
    "of its distribution, and the report says what that changed."
)


def _way_out(program: ExportedProgram) -> str:
    """Returns what to do about a refusal: ``--drop-noise`` where every draw has a mean."""
    for _, why in without_mean(program.graph):
        return (
            f"Take it out of eval mode, or draw once and keep that as a buffer: {why}, and "
            "--drop-noise is of no use here."
        )
    return FIX


class WithoutDraws(FlatModel):
    """The captured graph of a model, without its random numbers, in the model's place.

    Args:
        given: The model as given.
        program: Its graph without random numbers.
        names: The names of its outputs.
        constants: What it returned beside tensors.
    """

    def __init__(
        self,
        given: FlatModel,
        program: ExportedProgram,
        names: tuple[str, ...],
        constants: dict[str, Constant],
    ) -> None:
        nn.Module.__init__(self)
        self.model: Any = as_graph_module(program)
        self.spec = given.spec
        self.program = program
        self._names = names
        self._constants = constants

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the graph."""
        results: tuple[Tensor, ...] = self.model(*tensors)
        return results

    def named_outputs(self, *tensors: Tensor) -> tuple[dict[str, Tensor], dict[str, Constant]]:
        """Runs the graph and returns its tensors by name, and the constants as they were."""
        return dict(zip(self._names, self(*tensors), strict=True)), self._constants


def random_lines(program: ExportedProgram) -> tuple[str, ...]:
    """Returns the operators that draw random numbers which reach an output, with their lines.

    Those that reach none are taken out of the graph.
    """
    drop_unread_draws(program.graph)
    return tuple(
        f"{node.target} at {source_line(node) or node.name}" for node in find_draws(program.graph)
    )


def reference_of(model: FlatModel, batches: Batches) -> Reference:
    """Runs the model as it is; refuses one that draws random numbers, with their lines."""
    try:
        return run_reference(model, batches)
    except (DataDependentError, EmptyOutputError, NotRepeatableError) as error:
        program = capture_any(model, batches)  # names a count's own line
        lines = random_lines(program)
        if not lines or not isinstance(error, NotRepeatableError):
            raise
        raise NotRepeatableError(error.what, where=_where(lines), fix=_way_out(program)) from error


def capture_without_draws(model: FlatModel, batches: Batches) -> ExportedProgram:
    """Captures a model that draws no random numbers.

    Raises:
        NotRepeatableError: A draw reaches an output, however small its effect.
        ModelNotSupportedError: The model cannot be traced.
    """
    if isinstance(model, WithoutDraws):
        return model.program
    program = capture_any(model, batches)
    lines = random_lines(program)
    if lines:
        raise NotRepeatableError(
            "The model draws random numbers at inference, so its outputs differ from run to run.",
            where=_where(lines),
            fix=_way_out(program),
        )
    return program


def capture_any(model: FlatModel, batches: Batches) -> ExportedProgram:
    """Captures a model on its first batch; one that was padded has its graph already."""
    if isinstance(model, CappedModel):
        return model.program
    return capture(model, tensors_of(next(iter(batches))))


def _where(lines: tuple[str, ...]) -> str:
    return f"Random numbers: {listed(lines, 4)}."


def without_random_ops(
    model: FlatModel, batches: Batches, drop: bool
) -> tuple[FlatModel, RandomOpsReport | None]:
    """Returns the model without its random numbers, and what that changed.

    Args:
        model: The model as given; one that draws nothing is returned as it is.
        batches: The inputs.
        drop: Whether random numbers may be dropped; without that nothing is done.

    Raises:
        ModelNotSupportedError: The model cannot be traced.
        tokexport.graph_passes.errors.OperatorRefusedError: A draw has no mean.
    """
    if not drop:
        return model, None
    program = capture_any(model, batches)
    lines = random_lines(program)
    if not lines:
        return model, None
    given = run_reference(model, batches, twice=False)
    program = run_passes(program, (DropRandom(),), "capture").program
    free = WithoutDraws(model, program, tuple(given.outputs), given.constants)
    found = run_reference(free, batches).outputs
    # The report shows it and no gate applies: the figures are of whole outputs.
    change = {name: compare(array, found[name]) for name, array in given.outputs.items()}
    return free, RandomOpsReport(lines, change)
