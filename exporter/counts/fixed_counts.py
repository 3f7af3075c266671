"""Traces choices by masks whose counts are certain as gathers of so many positions.

To torch, the size of what a mask chooses depends on the data. Masks made from
the positions of a top-k, or of a part of a sort, have the same count in every row whatever the data
(``index_sets``), and choosing by one is a gather of its positions in order::

    x[mask]                 gather(x, 1, positions), (rows × k, C)
    x[mask] = values        the same by rows and positions
    masked_select(x, mask)  the same, flattened
    nonzero(mask)           the rows and the positions
    int(mask.sum())         a number

A mask of which nothing is known (a threshold, destinations that may repeat, a union of choices that
may overlap) is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tokexport.exporter.counts.followed_tensors import FollowedTensors, changed_since, versions_of
from tokexport.exporter.counts.index_sets import Chosen, Constant, Fact, Mask, Positions, chosen
from tokexport.exporter.counts.mask_facts import RULES
from tokexport.graph_passes.torch_passes.graph.calls import base_name

#: Other names of functions that have a rule.
_ALSO: Final = {
    "bitwise_and": "and",
    "bitwise_or": "or",
    "bitwise_xor": "xor",
    "bitwise_not": "invert",
}
#: What Python calls with an i before it where it assigns.
_ASSIGNED: Final = frozenset({"and", "or", "xor", "add", "sub", "mul"})
#: Functions that turn a tensor of one number into a Python number.
_NUMBERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "item": lambda value: value,
    "__int__": int,
    "__float__": float,
    "__bool__": bool,
    "__index__": int,
}


class FixedCounts(TorchFunctionMode):
    """Follows distinct positions, and masks of them, through what a model calls."""

    def __init__(self) -> None:
        super().__init__()
        self._facts: FollowedTensors[Fact] = FollowedTensors()
        self._places: FollowedTensors[Tensor] = FollowedTensors()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function, or its replacement where a mask has a certain count."""
        name, kwargs = _name_of(func), dict(kwargs or {})
        if name == "get":
            return func(*args, **kwargs)
        found = self._instead(func, name, args, kwargs)
        if found is not NotImplemented:
            return found
        fact = self._follow(name, args, kwargs)
        versions = versions_of((args, kwargs))
        found = func(*args, **kwargs)
        changed = changed_since(versions, func, args, kwargs)
        if changed:
            self._facts.forget(changed)
            self._places.forget(changed)
            if len(changed) == 1 and changed[0] is args[0] and "out" not in kwargs:
                self._note(changed[0], None if isinstance(fact, Mapping) else fact)
        elif isinstance(fact, Mapping):
            for place, one in fact.items():
                self._note(found[place], one)
        else:
            self._note(found, fact)
        return found

    def known(self, value: Any) -> Fact | None:
        """Returns what is known of a tensor."""
        return self._facts.get(value)

    def _follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns what is known of the result of a function."""
        rule = RULES.get(name)
        symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
        if rule is None or any(isinstance(one, symbols) for one in pytree.tree_leaves(args)):
            return None  # a rule that read this number would fix it
        renamed = {_KEYWORDS.get(key, key): value for key, value in kwargs.items()}
        try:
            return rule(self.known, *args, **renamed)
        except (TypeError, AttributeError, LookupError, ValueError, RuntimeError, ArithmeticError):
            return None  # a form of the call that the rule does not have: nothing is known

    def _note(self, value: Any, fact: Fact | None) -> None:
        if not isinstance(value, Tensor) or fact is None:
            return
        exact = not isinstance(fact, Constant) or _holds(value.dtype, fact.value)
        if isinstance(fact, Positions | Chosen):
            exact = value.dtype in (torch.int32, torch.int64)
        if exact:
            self._facts.set(value, fact)

    def _instead(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the replacement of a choice with a certain count; else NotImplemented."""
        number = getattr(func, "__name__", "")
        if number in _NUMBERS and args:
            return self._number(number, args[0])
        choice = _CHOICES.get(name)
        return NotImplemented if choice is None else choice(self, *args, **kwargs)

    def _number(self, name: str, tensor: Tensor) -> Any:
        fact = self.known(tensor)
        if not isinstance(fact, Constant) or tensor.numel() != 1:
            return NotImplemented
        value = fact.value
        if name == "item":
            kind = bool if tensor.dtype is torch.bool else float
            return kind(value) if tensor.is_floating_point() or kind is bool else int(value)
        return _NUMBERS[name](value)

    def _counted(self, mask: Any) -> Mask | None:
        """Returns what is known of a mask by whose rows a choice takes equally many."""
        fact = self.known(mask)
        if not isinstance(fact, Mask) or not all(isinstance(size, int) for size in mask.shape):
            return None
        return fact if {*range(fact.dim + 1, mask.dim())} <= fact.repeats else None

    def _positions(self, mask: Tensor, fact: Mask) -> Tensor:
        """Returns the positions (…, count) of what is true in the rows of a mask, in order."""
        found = self._places.get(mask)
        if found is None:
            found = _positions(mask, fact)
            self._places.set(mask, found)
        return found

    def _coordinates(self, mask: Tensor, fact: Mask) -> list[Tensor]:
        """Returns the coordinates (K,) of what is true along the axes of a mask, row by row."""
        wide = [*mask.shape[: fact.dim], fact.count, *mask.shape[fact.dim + 1 :]]
        found = []
        for axis, length in enumerate(wide):
            own, axes = torch.arange(length), {axis}
            if axis == fact.dim:
                own, axes = self._positions(mask, fact), {*range(axis + 1)}
            shape = [length if other in axes else 1 for other, length in enumerate(wide)]
            found.append(own.reshape(shape).expand(wide).reshape(-1))
        return found

    def _chosen(self, x: Any, key: Any) -> Any:
        """``x[key]``, where one part of the key is a mask and the others take all."""
        place = self._place(x, key)
        if place is None:
            return NotImplemented
        start, mask, fact = place
        dim, end = start + fact.dim, start + mask.dim()
        position = self._positions(mask, fact)
        if dim == start:
            taken = x.index_select(dim, position)
        else:
            wide = [*x.shape[:dim], fact.count, *x.shape[dim + 1 :]]
            rows = [*[1] * start, *position.shape, *[1] * (x.dim() - dim - 1)]
            taken = x.gather(dim, position.reshape(rows).expand(wide))
        found = taken.reshape(*x.shape[:start], -1, *x.shape[end:])
        own = self.known(x)
        if isinstance(own, Positions) and x.shape == mask.shape and not fact.repeats:
            self._note_chosen(found, own, mask, fact)
        return found

    def _note_chosen(self, found: Tensor, own: Positions, mask: Tensor, fact: Mask) -> None:
        """Records what is known of positions that a mask chose."""
        positions = chosen(own, fact)
        if positions is not None:
            shape = (*mask.shape[: fact.dim], fact.count, *mask.shape[fact.dim + 1 :])
            self._note(found, Chosen(positions, shape) if mask.dim() > 1 else positions)

    def _set(self, x: Any, key: Any, value: Any) -> Any:
        """``x[key] = value``, where one part of the key is a mask and the others take all."""
        place = self._place(x, key) if isinstance(value, Tensor) and value.dim() else None
        if place is None:
            return NotImplemented
        start, mask, fact = place
        x[(*[slice(None)] * start, *self._coordinates(mask, fact))] = value
        self._facts.forget([x])
        return None

    def _place(self, x: Any, key: Any) -> tuple[int, Tensor, Mask] | None:
        """Returns the first axis of a mask in the indexed tensor, and what is known of the mask."""
        keys = list(key) if isinstance(key, tuple) else [key]
        masks = [p for p, each in enumerate(keys) if isinstance(each, Tensor)]
        rest = [each for each in keys if not isinstance(each, Tensor)]
        plain = all(
            each is ... or (isinstance(each, slice) and each == slice(None)) for each in rest
        )
        if not isinstance(x, Tensor) or len(masks) != 1 or not plain:
            return None
        mask = keys[masks[0]]
        if mask.dtype not in (torch.bool, torch.uint8):
            return None
        start = masks[0]
        if ... in rest[:start]:
            start += x.dim() - mask.dim() - len(rest)
        fact = self._counted(mask)
        if fact is None or tuple(x.shape[start : start + mask.dim()]) != tuple(mask.shape):
            return None
        return start, mask, fact

    def _selected(self, input: Any, mask: Any, **options: Any) -> Any:
        """``masked_select(input, mask)``."""
        if options or not isinstance(mask, Tensor) or not isinstance(input, Tensor):
            return NotImplemented
        shape = torch.broadcast_shapes(input.shape, mask.shape)
        with self:  # what is known of the two holds of the expanded ones
            x, wide = input.expand(shape), mask.expand(shape)
        return self._chosen(x, wide)

    def _nonzero(self, input: Any, as_tuple: bool = False, **options: Any) -> Any:
        """``nonzero(input)``."""
        fact = None if options else self._counted(input)
        if fact is None:
            return NotImplemented
        coordinates = self._coordinates(input, fact)
        return tuple(coordinates) if as_tuple else torch.stack(coordinates, 1)

    def _argwhere(self, input: Any) -> Any:
        return self._nonzero(input)

    def _where(self, condition: Any, *values: Any, **options: Any) -> Any:
        """``where(condition)``, which is ``nonzero``."""
        return NotImplemented if values or options else self._nonzero(condition, as_tuple=True)


_CHOICES: Final[Mapping[str, Callable[..., Any]]] = {
    "getitem": FixedCounts._chosen,
    "setitem": FixedCounts._set,
    "masked_select": FixedCounts._selected,
    "nonzero": FixedCounts._nonzero,
    "argwhere": FixedCounts._argwhere,
    "where": FixedCounts._where,
}
#: What torch calls some parameters, by other names they go under.
_KEYWORDS: Final = {"axis": "dim", "self": "input"}


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Returns whether a type has a whole number: integers wrap around, and halves round."""
    if not math.isfinite(value) or value != int(value) or dtype.is_complex:
        return False
    if dtype is torch.bool:
        return value in (0, 1)
    if dtype.is_floating_point:
        return abs(value) * torch.finfo(dtype).eps <= 1
    return torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _name_of(func: Any) -> str:
    """Returns the name of a function without the marks of a method, an overload, or in place."""
    name = base_name(func)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        name = name.removeprefix("i") if name.removeprefix("i") in _ASSIGNED else name
    name = name.removesuffix("_")
    return _ALSO.get(name, name)


def _positions(mask: Tensor, fact: Mask) -> Tensor:
    """Gives the positions (…, count) of what is true in the rows of a mask, in order.

    They come before all others in a sort by whether and where they are.
    """
    lead, size = mask.shape[: fact.dim], mask.shape[fact.dim]
    if fact.values is not None:
        true = [place for place, value in enumerate(fact.values) if value]
        return torch.tensor(true, dtype=torch.int64).expand(*lead, -1)
    flags = mask
    for _ in range(mask.dim() - 1 - fact.dim):
        flags = flags.select(-1, 0)
    place = torch.arange(size, dtype=torch.float32)
    keys = torch.where(flags.to(torch.bool), -place, -place - size)
    return keys.topk(fact.count, dim=-1).indices
