"""Measures how far a reduced model's outputs are from those of the model as given.

With u and v the outputs of the unreduced and the reduced model for one sample, over all samples:

    top-1 = share with argmax u = argmax v      cosine = mean of <u, v> / (|u| |v|)
    KL    = mean of Σ p log(p / q), p = softmax(u), q = softmax(v), in nats

They show what a reduction costs and prove nothing, so an output has one number of each. Values that
are fills in both, for example masked scores, are left out of the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tokexport.exporter.inputs.batches import Batches
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.scales import fills


@dataclass(frozen=True)
class Agreement:
    """The agreement of one output, over the real samples.

    Attributes:
        top1: The share of rows along the last axis with the largest entry at the same place, 0 to
            1; None for outputs that are no (samples, …, classes) of two classes or more.
        cosine: The mean over samples of the cosine of the flattened outputs, -1 to 1.
        kl: The mean over samples of KL(unreduced ‖ reduced) of the softmax, in nats; None for
            outputs that are no (samples, classes).
    """

    top1: float | None
    cosine: float
    kl: float | None


def agreements(
    unreduced: Mapping[str, Array], reduced: Mapping[str, Array], batches: Batches
) -> dict[str, Agreement | None]:
    """Returns the agreement of every output; None where it is not floating or of another shape.

    Args:
        unreduced: The outputs (batches, …) of the model as given, by name.
        reduced: Those of the reduced model.
        batches: What both ran on; what fills up the last batch is left out.
    """
    found: dict[str, Agreement | None] = {}
    for name, array in unreduced.items():
        other = reduced.get(name)
        if other is None or other.shape != array.shape or array.dtype.kind != "f":
            found[name] = None
        else:
            found[name] = _agreement(_samples(array, batches), _samples(other, batches))
    return found


def _samples(outputs: Array, batches: Batches) -> Array:
    """Returns (samples, …) in float64; an output without the batch's axis counts by batches."""
    size = batches.arrays[batches.names[0]].shape[1:2]
    array = np.asarray(outputs, np.float64)
    if size and array.shape[1:2] == size:
        array = array.reshape(-1, *array.shape[2:])[: batches.samples]
    return array


def _agreement(unreduced: Array, reduced: Array) -> Agreement:
    classes = unreduced.ndim >= 2 and unreduced.shape[-1] >= 2
    top1 = float((unreduced.argmax(-1) == reduced.argmax(-1)).mean()) if classes else None
    kl = None
    if classes and unreduced.ndim == 2:
        log_p, log_q = _log_softmax(unreduced), _log_softmax(reduced)
        with np.errstate(invalid="ignore"):  # of a class that is masked in both
            parts = np.where(np.exp(log_p) == 0, 0.0, np.exp(log_p) * (log_p - log_q))
        kl = float(parts.sum(-1).mean())
    masked = fills(unreduced) & fills(reduced)
    kept = (np.where(masked, 0.0, array) for array in (unreduced, reduced))
    flat = [array.reshape(len(array), -1) for array in kept]
    return Agreement(top1, float(_cosines(*flat).mean()), kl)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _cosines(one: Array, other: Array) -> Array:
    """Returns the cosine of each row of two (samples, values); two rows of zeros are alike."""
    one, other = (_to_one(array) for array in (one, other))
    norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    product = norms[0] * norms[1]
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    found = (one * other).sum(1) / np.where(product == 0, 1.0, product)
    result: Array = np.nan_to_num(np.where(both_zero, 1.0, found), nan=0.0)
    return result


def _to_one(rows: Array) -> Array:
    """Divides each row (samples, values) by its largest number: squares leave float64."""
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    with np.errstate(invalid="ignore"):  # an infinity in a row is like nothing
        result: Array = rows / np.where(largest == 0, 1.0, largest)
    return result
