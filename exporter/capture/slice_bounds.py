"""Reads the bounds of slices that are tensors as numbers, while a model is traced.

Python asks a tensor in ``x[start:end]`` for its number itself, where no mode meets it and a tracer
has none to give. Asked by ``item`` it is the number of what is known, or a symbol::

    mask[..., ends[i - 1] : ends[i]] = 0        mask[..., 0:16] = 0, of ends that no input reaches
    x[:, : keep.sum()]                          x[:, : keep.sum().item()]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokexport.graph_passes.torch_passes.graph.calls import base_name


class SliceBounds(TorchFunctionMode):
    """Replaces tensors that bound a slice by numbers.

    It has to be the innermost of the modes that are entered, so that they meet what it asks.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function; indexing gets the bounds of its slices as numbers."""
        if base_name(func) in ("__getitem__", "__setitem__") and len(args) > 1:
            args = (args[0], _with_numbers(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _with_numbers(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_with_numbers, key))
    if not isinstance(key, slice):
        return key
    bounds = (key.start, key.stop, key.step)
    if not any(isinstance(bound, Tensor) for bound in bounds):
        return key
    return slice(*(bound.item() if isinstance(bound, Tensor) else bound for bound in bounds))
