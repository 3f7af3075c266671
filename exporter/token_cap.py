"""Holds the samples to the cap on data-dependent token counts: which of them fit under it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tokexport.exporter.capture import FlatModel, capture_padded
from tokexport.exporter.errors import DataDependentError
from tokexport.exporter.inputs import Batches
from tokexport.exporter.reference import tensors_of
from tokexport.exporter.token_cap_use import Place, TokenCapUse
from tokexport.graph_passes.decisions import show, unlifted


def under_cap(
    model: FlatModel, batches: Batches, size: int, cap: int | None
) -> tuple[Batches, TokenCapUse | None]:
    """Returns the batches on which the model stays under the cap, and how far it does.

    Args:
        model: The model as given.
        batches: All samples.
        size: How many samples a batch holds.
        cap: The cap; without one, and for a model that needs none, nothing is left out.

    Raises:
        DataDependentError: The model cannot be padded exactly, or every batch exceeds the cap.
    """
    if cap is None:
        return batches, None
    program, selections = capture_padded(model, tensors_of(next(iter(batches))), cap)
    if not selections:
        return batches, None
    counting = show(unlifted(program), [one.count.name for one in selections])
    with torch.no_grad():
        counts = np.array([[int(n) for n in counting(*tensors_of(batch))] for batch in batches])
    rooms = np.array([one.cap for one in selections])
    over = counts > rooms
    # Behind a choice that lost rows the numbers say nothing.
    known = np.cumsum(np.cumsum(over, axis=1), axis=1) <= 1
    largest = np.where(known, counts, 0).max(axis=0)
    places = tuple(
        Place(one.line, one.cap, int(most)) for one, most in zip(selections, largest, strict=True)
    )
    fits = np.logical_not(over.any(axis=1, keepdims=True))[:, 0]
    use = TokenCapUse(cap, places, len(batches), int((~fits).sum()))
    if not fits.any():
        raise DataDependentError(
            f"Every batch chooses more rows than --token-cap {cap} has room for.",
            where="\n".join(f"Up to {line}" for line in use.lines()),
            fix=f"Pass --token-cap {use.needed}, or more: later choices may need more.",
        )
    return _kept(batches, size, fits), use


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
