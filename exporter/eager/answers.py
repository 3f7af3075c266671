"""What a model answered in eager, and whether two of its answers are the same."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from tokexport.exporter.eager.outputs import Constant
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor

#: What a run gave: tensors by name, and what was no tensor.
Answer: TypeAlias = tuple[dict[str, Array], dict[str, Constant]]


def same_answers(first: Answer, second: Answer, share: float) -> bool:
    """Tells whether two runs gave the same: threads may add up in another order, and no more.

    Args:
        first: One answer.
        second: The other.
        share: How far each value may be off, as a share of the scale of its neighbourhood.
    """
    (one, constants), (other, again) = first, second
    same = constants == again and list(one) == list(other)
    return same and all(_alike(array, other[name], share) for name, array in one.items())


def _alike(one: Array, other: Array, share: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    both = np.isnan(one) & np.isnan(other)  # a reference that holds NaN is refused by that name
    one, other = (np.where(both, 0, each) for each in (one, other))
    return within_local_floor(one, other, share)
