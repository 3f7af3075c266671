"""Measures how far the outputs of a model with other blocks are from its own.

Each value is compared on the scale of its own neighbourhood (``runtimes.neighbourhoods``), so that
a fill or a large channel hides no error beside it. Rebuilt blocks, or tokens in another order, sum
in another order, and where a small value is the sum of large ones, rounding moves it by more than a
share of its scale. Where needed, this is measured on the model as given: in a run in which every
result is moved, up or down by chance, as far as rounding could.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.parity.measured_gates import PROVES_NOTHING
from tokexport.exporter.rounding.accumulation import reordered
from tokexport.exporter.rounding.local_rounding import ROUNDING_FACTOR
from tokexport.exporter.rounding.measure import only_moves
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import (
    Neighbourhoods,
    RoundingError,
    differences,
    epsilon,
    local_floor,
    worst,
)

#: How many runs with rounded results are made.
_RUNS: Final = 2
#: The tolerance between two runs of a deterministic model.
_REPEATS: Final = 1e-6


class Answer:
    """The outputs of a model, and how far others may be from them.

    Args:
        model: The model as given.
        inputs: What it ran on.
        outputs: What it answered: the leaves of its result, in their order.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Any]) -> None:
        self._model, self._inputs, self._outputs = model, inputs, outputs

    def distance(self, position: int, found: Tensor, floor: float) -> float:
        """Returns how far an output of the same shape is from that of the model.

        Args:
            position: Which output; a tensor.
            found: What is measured.
            floor: The share of a neighbourhood's scale that is always allowed.

        Returns:
            The largest difference as a share of the scale around it: at most ``floor`` where all
            differences are allowed. Where rounding explains more, the share is reduced accordingly.
        """
        wanted = self._outputs[position]
        plain = local_distance(wanted, found, floor)
        if plain <= floor or not wanted.is_floating_point() or not self._rounding_error:
            return plain
        one, other = _comparable(wanted, found)
        allowed = Neighbourhoods(one).allowed(self._rounding_error[position], floor)
        return _share(one, other, allowed) * floor

    @cached_property
    def _rounding_error(self) -> dict[int, RoundingError]:
        """Returns the rounding error of each floating output; empty where it cannot be measured."""
        found: dict[int, RoundingError] = {}
        runs: list[AbstractContextManager[Any]] = [nullcontext(), *map(_Rounded, range(_RUNS))]
        for run in runs:
            try:
                with evaluation(self._model), torch.no_grad(), run:
                    moved = pytree.tree_leaves(self._model(*self._inputs))
            except Exception:  # whatever a model raises that looks at how it is run
                return {}
            if list(map(_shape, moved)) != list(map(_shape, self._outputs)):
                return {}
            for position, (wanted, other) in enumerate(zip(self._outputs, moved, strict=True)):
                if not isinstance(wanted, Tensor) or not wanted.is_floating_point():
                    continue
                if isinstance(run, _Rounded):
                    rounding_error = _rounding_error_of(*_comparable(wanted, other))
                    found[position] = rounding_error.larger(found.get(position, rounding_error))
                elif local_distance(wanted, other, _REPEATS) > _REPEATS:
                    return {}  # its runs differ: it is not rounding that moves it
        return found


def local_distance(wanted: Tensor, found: Tensor, floor: float) -> float:
    """Returns the largest difference of two of one shape as a share of the scale around it.

    Of whole numbers it is 0 or infinite. Infinities and NaN are no difference where both have them.

    Args:
        wanted: What is right, samples first.
        found: What is measured.
        floor: The largest share that is allowed.
    """
    if not wanted.numel():
        return 0.0
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(wanted, found) else math.inf
    one, other = _comparable(wanted, found)
    return _share(one, other, local_floor(one, floor)) * floor


def _shape(one: Any) -> tuple[int, ...] | None:
    return tuple(one.shape) if isinstance(one, Tensor) else None


def _rounding_error_of(wanted: Array, moved: Array) -> RoundingError:
    """Returns the rounding error of a run, up to a share that would prove nothing."""
    around, off = Neighbourhoods(wanted), differences(wanted, moved)
    rounding_error = around.rounding_error(np.where(np.isfinite(off), off, 0.0)).times(
        ROUNDING_FACTOR
    )
    most = (PROVES_NOTHING * scale for scale in around.scales)
    by_axis = tuple(
        np.minimum(one, two) for one, two in zip(rounding_error.by_axis, most, strict=True)
    )
    alone = (
        np.minimum(one, PROVES_NOTHING) for one in (rounding_error.share, rounding_error.fills)
    )
    return RoundingError(by_axis, *alone)


def _share(wanted: Array, found: Array, allowed: Array) -> float:
    most = worst(wanted, found, allowed)
    return 0.0 if most is None else most.share


def _comparable(wanted: Tensor, found: Tensor) -> tuple[Array, Array]:
    """Returns two tensors as arrays (samples, …), without the NaN that both have."""
    one, other = (each.detach().float().cpu().numpy() for each in (wanted, found))
    if one.ndim == 0:
        one, other = one.reshape(1), other.reshape(1)
    both = np.isnan(one) & np.isnan(other)
    return np.where(both, 0, one), np.where(both, 0, other)


class _Rounded(TorchDispatchMode):
    """Moves the result of every operator as far as rounding could.

    Args:
        seed: The seed of the errors.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._random = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and moves its floating results; those of views stay views."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        aliased = any(one.alias_info is not None for one in func._schema.returns)
        if aliased or only_moves(func):
            return result
        moved = pytree.tree_map(self._moved, result)
        if not isinstance(result, Tensor):
            return moved
        return reordered(func, args, kwargs, result, moved, self._random)

    def _moved(self, result: Any) -> Any:
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        size = epsilon(str(result.dtype).removeprefix("torch."))
        chance = torch.empty_like(result).uniform_(1 - size, 1 + size, generator=self._random)
        return chance.mul_(result)
