"""Finds which samples keep to the assumptions of a padded graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokexport.exporter.capture.branch_paths import with_paths, without_draws
from tokexport.exporter.capture.dynamic_sizes import Padding
from tokexport.exporter.capture.token_cap_report import Place, TokenCapReport
from tokexport.exporter.capture.trace import capture_padded
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.outputs import Constant
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.errors import DataDependentError
from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.torch_passes.graph.added_output import keep_checks
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module, expose_values
from tokexport.graph_passes.torch_passes.pad.padded_rows import Selection
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle import input_checks
from tokexport.runtimes.bundle.input_checks import InputCheck, InputChecks

#: The tolerance against eager within which an input that chooses no row is allowed.
_NEAR = 1e-4


class CappedModel(FlatModel):
    """A model and its padded graph, which has one more output: whether all checks hold.

    Args:
        given: The model as given.
        program: Its padded graph, whose last output says whether the checks hold.
        checks: The checks; without any the graph has no output for them.
    """

    def __init__(self, given: FlatModel, program: ExportedProgram, checks: InputChecks) -> None:
        super().__init__(given.model, given.spec)
        self.program = program
        self.checks = checks

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the model."""
        outputs = super().forward(*tensors)
        return (*outputs, self._held()) if self.checks.held else outputs

    def named_outputs(self, *tensors: Tensor) -> tuple[dict[str, Tensor], dict[str, Constant]]:
        """Runs the model and returns its tensors by name, and its constants."""
        named, constants = super().named_outputs(*tensors)
        more = {self.checks.output: self._held()} if self.checks.held else {}
        return {**named, **more}, constants

    def _held(self) -> Tensor:
        return torch.ones(len(self.checks.held), dtype=torch.bool)


def checks_of(model: FlatModel) -> InputChecks | None:
    """Returns the assumptions of a model's graph; None without any."""
    held = isinstance(model, CappedModel) and model.checks.held
    return model.checks if isinstance(model, CappedModel) and held else None


def under_cap(
    model: FlatModel,
    batches: Batches,
    size: int,
    caps: Sequence[int] | None,
    drop_noise: bool = False,
) -> tuple[FlatModel, Batches, TokenCapReport | None]:
    """Returns the model with its checks, the batches that fit the cap, and a report.

    Args:
        model: The model as given.
        batches: All samples.
        size: How many samples a batch holds.
        caps: The caps; without any, and for a model that needs none, nothing is left out.
        drop_noise: Whether what the model draws becomes its mean, also where rows are counted.

    Raises:
        DataDependentError: The model cannot be padded exactly, or no batch fits.
    """
    if caps is None:
        return model, batches, None
    program, padding = capture_padded(model, tensors_of(next(iter(batches))), caps)
    if not padding.checks:
        return CappedModel(model, program, _checks_of(padding, [])), batches, None
    program, padding = with_paths(model, batches, caps, program, padding, drop_noise)
    counts, held, outputs = _run(program, padding, batches, drop_noise)
    none = _proven_none(model, batches, padding, held, outputs)
    kept = [at for at in range(len(padding.checks)) if at not in none]
    keep_checks(program, kept)
    checks = _checks_of(padding, kept)
    held = held[:, kept]
    use = _use(caps, padding, counts, held, kept, len(batches))
    fits = np.asarray(held.all(axis=1))
    if not fits.any():
        raise _none_fits(use)
    return CappedModel(model, program, checks), _kept(batches, size, fits), use


def _run(
    program: ExportedProgram, padding: Padding, batches: Batches, drop_noise: bool
) -> tuple[Array, Array, list[list[Array]]]:
    """Returns counts (batches, choices), whether checks hold (batches, checks), and the outputs.

    A choice on a path that a batch does not take has the count -1.
    """
    graph = without_draws(program) if drop_noise else as_graph_module(program)
    (output,) = graph.graph.find_nodes(op="output")
    names = [one.count.name for one in padding.selections]
    names += [(one.when or one.count).name for one in padding.selections]
    counting = expose_values(graph, [*names, *(node.name for node in output.args[0])])
    choices = len(padding.selections)
    with torch.no_grad():
        rows = [[found.numpy() for found in counting(*tensors_of(batch))] for batch in batches]
    counts = np.array([[int(n) for n in row[:choices]] for row in rows], dtype=np.int64)
    counts = counts.reshape(len(rows), choices)
    for at, one in enumerate(padding.selections):
        if one.when is not None:
            counts[:, at] = np.where([row[choices + at] for row in rows], counts[:, at], -1)
    held = np.array([row[-1] for row in rows])
    return counts, held, [row[2 * choices : -1] for row in rows]


def _proven_none(
    model: FlatModel,
    batches: Batches,
    padding: Padding,
    held: Array,
    outputs: list[list[Array]],
) -> set[int]:
    """Returns the checks for at least one row that samples break without harm.

    The proof holds those samples to eager like all others.
    """
    kinds = [check.kind for check in padding.checks]
    empty = np.array([kind == "none" for kind in kinds])
    broken = np.logical_not(held) & empty
    only = (held | empty).all(axis=1) & broken.any(axis=1)
    wrong: set[int] = set()
    seen: set[int] = set()
    for at, batch in enumerate(batches):
        if only[at]:
            own = set(np.flatnonzero(broken[at]).tolist())
            seen |= own
            with torch.no_grad():
                wanted = [found.numpy() for found in model(*tensors_of(batch))]
            if not all(map(_are_near, wanted, outputs[at])):
                wrong |= own
    return seen - wrong


def _are_near(wanted: Array, found: Array) -> bool:
    if wanted.shape != found.shape or wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, found))
    scale = float(np.abs(wanted).max(initial=0.0, where=np.isfinite(wanted)))
    return bool(np.allclose(found, wanted, rtol=_NEAR, atol=_NEAR * scale))


def _checks_of(padding: Padding, kept: list[int]) -> InputChecks:
    held = tuple(
        InputCheck(check.kind, check.said, check.line)
        for at, check in enumerate(padding.checks)
        if at in kept
    )
    return InputChecks(input_checks.NAME, held)


def _use(
    caps: Sequence[int],
    padding: Padding,
    counts: Array,
    held: Array,
    kept: list[int],
    batches: int,
) -> TokenCapReport:
    checks = [padding.checks[at] for at in kept]
    rooms = np.array([one.cap for one in padding.selections], dtype=np.int64)
    over = counts > rooms
    met = counts >= 0
    # After a choice that lost rows the numbers mean nothing.
    known = (np.cumsum(np.cumsum(over, axis=1), axis=1) <= 1) & met
    refuses = {check.line for check in checks if check.kind == "none"}
    places = tuple(
        Place(
            line,
            room,
            int(np.where(known[:, same], counts[:, same], 0).max()),
            int(np.where(known[:, same], counts[:, same], room).min()),
            line in refuses,
        )
        for (line, room, _), same in _by_place(padding.selections).items()
    )
    room = np.array([check.kind == "room" for check in checks], dtype=bool)
    exceeding = np.logical_not(held[:, room].all(axis=1))
    others = {
        (check.kind, check.said, check.line): int((~held[:, at] & ~exceeding).sum())
        for at, check in enumerate(checks)
        if check.kind != "room"
    }
    return TokenCapReport(
        tuple(caps),
        places,
        batches,
        int(exceeding.sum()),
        int(np.logical_not(held.all(axis=1)).sum()),
        tuple(
            (InputCheck(*check), broken)
            for check, broken in others.items()
            if broken or check[0] in ("rows", "branch")
        ),
    )


def _by_place(selections: Sequence[Selection]) -> dict[tuple[str, int, int], list[int]]:
    """Groups the choices by place: those at one line on several paths, in their order."""
    found: dict[tuple[str, int, int], list[int]] = {}
    for at, one in enumerate(selections):
        earlier = [each for each in selections[:at] if each.when is one.when]
        place = one.line, one.cap, sum(each.line == one.line for each in earlier)
        found.setdefault(place, []).append(at)
    return found


def _none_fits(use: TokenCapReport) -> DataDependentError:
    if use.exceeding == use.batches:
        return DataDependentError(
            f"Every batch chooses more rows than --token-cap {use.text} has room for.",
            where="\n".join(f"Up to {line}" for line in use.lines()),
            fix=f"Pass --token-cap {use.needed}, or more: later choices may need more.",
        )
    return DataDependentError(
        "Every batch breaks an assumption of the padded model.",
        where="\n".join(use.broken()),
        fix="Give samples that meet it first, with --inputs.",
    )


def _kept(batches: Batches, size: int, fits: np.ndarray) -> Batches:
    """Returns the batches that fit, with the labels of their samples."""
    if fits.all():
        return batches
    samples = [one for one in range(batches.samples) if fits[one // size]]
    return replace(
        batches,
        arrays={name: array[fits] for name, array in batches.arrays.items()},
        samples=len(samples),
        labels=None if batches.labels is None else batches.labels[samples],
    )
