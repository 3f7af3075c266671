"""Chooses the gates, batches and samples that ``verify`` checks a bundle with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.samples import evenly_spaced
from tokexport.exporter.parity.default_gates import over_all_gates
from tokexport.exporter.parity.gate_warnings import spread_warnings
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.proof import Proof
from tokexport.exporter.rounding.local_rounding import stored
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.reference import TOP1

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig

#: How many batches a bundle carries; more only where a gate over all samples needs them.
REFERENCE_BATCHES: Final = 4


def bundle_gates(
    proof: Proof, found: Mapping[str, Array], gates: Mapping[str, Gate], config: CompileConfig
) -> tuple[dict[str, Gate], tuple[str, ...]]:
    """Returns the gates that the bundle is verified by, and warnings about them.

    They are the gates of the stages, unless a half precision moved every sample across some
    near-tie: then no single sample is left to compare, and the gates are over all samples together.

    Args:
        proof: The comparison of the stages; it judges the last one by the gates returned.
        found: What the last stage gave, (batches, …) by name.
        gates: The gate of every output at that stage.
        config: What is compiled; with ``atol`` the gates stay as the user wants them.

    Raises:
        GateError: The outputs do not lie within the gates over all samples either.
    """
    if config.atol is not None or not proof.moves_every_sample():
        return dict(gates), ()
    over_all = over_all_gates(gates, proof.expected, proof.tie_free.shape[1])
    result = proof.hold_over_all(found, over_all)
    figures = "; ".join(
        f"'{name}': cosine {comparison.cosine:.4f}, {over_all[name].spread_error(comparison):.2f} "
        "of the spread"
        for name, comparison in result.comparisons.items()
        if over_all[name].holds_over_all
    )
    said = (
        f"In {config.precision} every sample crosses a near-tie, so the "
        f"bundle is verified over all samples together, and no single one ({figures})."
    )
    return over_all, (said, *spread_warnings(over_all))


@dataclass(frozen=True)
class ReferenceSelection:
    """The reference that a bundle carries.

    Attributes:
        rows: The batches.
        tie_free: Which samples (batches, samples) of them are compared.
        outputs: What they are compared with, (batches, …) by name.
        warnings: Warnings about them.
    """

    rows: list[int]
    tie_free: Array
    outputs: Mapping[str, Array]
    warnings: tuple[str, ...] = ()


def select_reference_batches(
    proof: Proof, found: Mapping[str, Array], own: Callable[[list[int]], Mapping[str, Array]]
) -> ReferenceSelection:
    """Returns the batches that ``verify`` replays, in order, evenly from all of them.

    They are batches on which no near-tie was crossed; without any, batches with a sample on which
    none was; and without these either, batches that are compared with eager on the artifact's
    decisions. Single samples may lie outside a gate over all samples, and none is left out for
    that: the choice grows until it holds.

    Args:
        proof: The comparison of the stages.
        found: What the last stage gave, (batches, …) by name.
        own: Returns eager's outputs on some batches with the last stage's decisions as inputs.

    Raises:
        GateError: The last stage differs from eager even with the same decisions.
    """
    stage = proof.stages[-1].name
    count = len(next(iter(proof.expected.values())))
    if not proof.holds_over_all(stage):
        for tie_free in (proof.tie_free.all(axis=1), proof.tie_free.any(axis=1)):
            if tie_free.any():
                every = np.flatnonzero(tie_free).tolist()
                rows = [every[place] for place in evenly_spaced(len(every), REFERENCE_BATCHES)]
                return ReferenceSelection(
                    rows, proof.tie_free[rows], _rows_of(proof.expected, rows)
                )
        return _replay(proof, found, own, evenly_spaced(count, REFERENCE_BATCHES))
    wanted = REFERENCE_BATCHES
    while wanted < count and not proof.holds_on(stage, found, evenly_spaced(count, wanted)):
        wanted *= 2
    rows = evenly_spaced(count, wanted)
    return ReferenceSelection(
        rows, np.ones_like(proof.tie_free[rows]), _rows_of(proof.expected, rows)
    )


def _replay(
    proof: Proof,
    found: Mapping[str, Array],
    own: Callable[[list[int]], Mapping[str, Array]],
    rows: list[int],
) -> ReferenceSelection:
    """Compares with eager on the last stage's decisions, where every sample crosses a near-tie."""
    outputs = own(rows)
    why = proof.not_its_own(proof.stages[-1].name, outputs, found, rows)
    if why:
        raise GateError(
            "Every sample crosses a near-tie, and with the artifact's decisions as inputs eager "
            f"differs too: {why}.",
            fix="No bundle was written. The artifact's decisions change from run to run, or one of "
            "them cannot be an input of eager: report the model.",
        )
    said = (
        "Every sample crosses a near-tie, so the bundle is verified against eager with the "
        "artifact's decisions as inputs, and not against eager's own decisions."
    )
    return ReferenceSelection(rows, np.ones_like(proof.tie_free[rows]), outputs, (said,))


def _rows_of(outputs: Mapping[str, Array], rows: list[int]) -> dict[str, Array]:
    return {name: array[rows] for name, array in outputs.items()}


def stored_gates(gates: Mapping[str, Gate], rows: list[int]) -> dict[str, Array]:
    """Returns what the bundle keeps of its gates, under the names of its reference data.

    It is the rounding error in the batches that it keeps, and the tolerance of channels where a
    gate is over all samples.

    Args:
        gates: The gates that it is verified by.
        rows: The batches.
    """
    found: dict[str, Array] = {}
    for output, gate in gates.items():
        if gate.rounding_error is not None:
            known = gate.scale_of_numbers, gate.columns
            parts = stored(gate.rounding_error, *known, rows, gate.samples)
            found |= {f"noise/{output}/{part}": array for part, array in parts}
        if gate.channels is not None:
            channels: dict[str, Array] = {TOP1: gate.channels.top1}
            channels |= {str(axis): array for axis, array in gate.channels.allowed.items()}
            found |= {f"channel/{output}/{part}": array for part, array in channels.items()}
    return found
