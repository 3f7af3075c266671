"""Reads numbers, while a model is traced, from tensors that no input reaches.

A tracer gives values no numbers: ``grid.tolist()``, ``int(mask.sum())`` or ``x[mask]`` on a buffer
stop it, although what they give never changes. Here every value that is computed from buffers,
parameters and Python numbers alone is computed beside the trace, and what asks for its numbers gets
them::

    split(x, grid.prod(-1).tolist())    split(x, [8, 8])
    x[:, mask]                          x[:, positions], which are a constant
    if mask.sum() == n:                 the branch that it is

Random numbers have no value beside the trace, and large values are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tokexport.exporter.counts.followed_tensors import (
    FollowedTensors,
    changed_since,
    in_place,
    tensors_in,
    version_of,
    versions_of,
)
from tokexport.graph_passes.torch_passes.graph.calls import base_name
from tokexport.runtimes.arrays import Array

#: Values of more numbers are not computed beside the trace.
LARGEST: Final = 1 << 20
#: What asks a tensor for its numbers.
_READERS: Final[Mapping[str, Callable[[Tensor], Any]]] = {
    "item": Tensor.item,
    "tolist": Tensor.tolist,
    "numpy": lambda value: _only_read(value.numpy()),
    "__array__": lambda value: _only_read(value.numpy()),
    "__int__": int,
    "__float__": float,
    "__bool__": bool,
    "__index__": lambda value: value.__index__(),
}
#: What gives a Python truth or text of what several tensors hold.
_COMPARING: Final = frozenset({"equal", "allclose", "is_nonzero", "__contains__", "__format__"})
#: What gives as many results as the numbers say: of known ones, a known number.
_COUNTING: Final = frozenset(
    name
    for line in (
        "nonzero argwhere where masked_select __getitem__ unique _unique2 unique_consecutive",
        "repeat_interleave bincount combinations tensor as_tensor",
    )
    for name in line.split()
)
#: The types of masks in a key.
_MASKS: Final = (torch.bool, torch.uint8)
#: Numbers that only the data says.
_SYMBOLS: Final = (torch.SymInt, torch.SymFloat, torch.SymBool)
#: What takes numbers, which may come as tensors of one.
_OF_NUMBERS: Final = frozenset(
    {"arange", "linspace", "logspace", "range", "full", "zeros", "ones", "empty", "eye"}
    | {"tril_indices", "triu_indices"}
)
#: What takes them behind the tensor that it works on: sizes, counts, places along an axis.
_OF_SIZES: Final = frozenset(
    name
    for line in (
        "view reshape expand broadcast_to repeat tile unflatten narrow select roll split unfold",
        "split_with_sizes tensor_split chunk topk kthvalue repeat_interleave diagonal tril triu",
        "new_zeros new_ones new_empty new_full one_hot pad interpolate upsample pixel_shuffle",
        "pixel_unshuffle adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d",
        "adaptive_max_pool1d adaptive_max_pool2d avg_pool2d max_pool1d max_pool2d flatten rot90",
    )
    for name in line.split()
)


class KnownValues(TorchFunctionMode):
    """Follows values that no input reaches, and answers what reads their numbers.

    Args:
        model: The model; its parameters and buffers are known.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._tensors = dict(_tensors(model))
        self._firsts = [*_first_of_each_kind(model)]
        #: While it is traced, the model holds stand-ins of its tensors: their names and versions.
        self._stand_ins: dict[int, tuple[str, int | None]] = {}
        self._values: FollowedTensors[Tensor] = FollowedTensors()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function, and computes its result beside the trace where the inputs are known."""
        name, kwargs = base_name(func), dict(kwargs or {})
        versions = versions_of((args, kwargs))
        given, valid = None, frozenset[int]()
        if any(isinstance(one, FakeTensor) for one, _ in versions):
            if not self._stand_ins:
                self._find_stand_ins()
            args, kwargs = self._with_numbers(name, args, kwargs)
            answer = self._answer(func, name, args, kwargs)
            if answer is not NotImplemented:
                return answer
            if _may_change(name, kwargs):
                given, valid = self._given((args, kwargs)), self._values.known()
        found = func(*args, **kwargs)
        changed = changed_since(versions, func, args, kwargs)
        if changed:
            self._change(changed, func, given, valid)
        elif _has_stand_ins(found):
            self._note_computed(found, func, args, kwargs)
        return found

    def _find_stand_ins(self) -> None:
        """Records the model's stand-ins once it holds them: all of a kind are swapped at once."""
        if not any(isinstance(held.get(name), FakeTensor) for held, name in self._firsts):
            return
        own = [(name, one) for name, one in _tensors(self._model) if isinstance(one, FakeTensor)]
        self._stand_ins = {id(one): (name, version_of(one)) for name, one in own}

    def _note_computed(self, found: Any, func: Any, args: Any, kwargs: Any) -> None:
        given = self._given((args, kwargs))
        self._note(found, NotImplemented if given is None else _computed(func, *given))

    def _answer(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Returns the known result of a call that reads numbers; NotImplemented for other calls."""
        if name in _READERS:
            value = self._value(args[0])
            return NotImplemented if value is None else _apart(_READERS[name], value)
        if name == "__setitem__":
            return self._set(*args)
        if name in _COMPARING:
            given = self._given((args, kwargs))
            return NotImplemented if given is None else _apart(func, *given[0], **given[1])
        if name == "_assert":
            value = self._value(args[0])
            return NotImplemented if value is None else _apart(torch._assert, value, *args[1:])
        if name not in _COUNTING:
            return NotImplemented
        key = self._positions(args[1]) if name == "__getitem__" else None
        given = self._given((args, kwargs))
        if given is not None and (key is not None or name != "__getitem__"):
            return self._constant(_computed(func, *given))
        if name == "__getitem__":
            return NotImplemented if key is None else args[0][key]
        if name == "masked_select":
            return self._select(*args, **kwargs)
        return self._repeat(*args, **kwargs) if name == "repeat_interleave" else NotImplemented

    def _constant(self, values: Any) -> Any:
        """Puts known values into the trace, each as a value of its own that may be changed."""
        if values is NotImplemented:
            return NotImplemented
        found = pytree.tree_map(lambda one: one.clone() if _is_tensor(one) else one, values)
        self._note(found, values)
        return found

    def _positions(self, key: Any) -> tuple[Any, ...] | None:
        """Returns a key whose known masks are the positions that they choose; None for no mask."""
        keys = key if isinstance(key, tuple) else (key,)
        masks = [isinstance(part, Tensor) and part.dtype in _MASKS for part in keys]
        found: list[Any] = []
        for part, is_mask in zip(keys, masks, strict=True):
            value = self._value(part) if is_mask else None
            if is_mask and value is None:
                return None
            found += [part] if value is None else _apart(_columns, value)
        return tuple(found) if any(masks) else None

    def _set(self, x: Tensor, key: Any, value: Any) -> Any:
        given = self._positions(key) if isinstance(value, Tensor) and value.dim() else None
        if given is None:
            return NotImplemented
        known, valid = self._given(((x, key, value), {})), self._values.known()
        x[given] = value
        self._change([x], Tensor.__setitem__, known, valid)
        return None

    def _select(self, input: Tensor, mask: Any) -> Any:
        value = self._value(mask)
        if value is None:
            return NotImplemented
        shape = torch.broadcast_shapes(input.shape, mask.shape)
        return input.expand(shape)[tuple(_apart(lambda one: _columns(one.expand(shape)), value))]

    def _repeat(self, input: Tensor, repeats: Any, dim: int | None = None, **options: Any) -> Any:
        value = self._value(repeats) if isinstance(repeats, Tensor) else None
        if value is None or value.dim() != 1:
            return NotImplemented
        x, axis = (input.flatten(), 0) if dim is None else (input, dim)
        return x.index_select(axis, _apart(torch.repeat_interleave, value))

    def _with_numbers(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replaces known tensors of one number by numbers where a call takes numbers."""
        if name in _OF_NUMBERS:
            args, kwargs = pytree.tree_map(self._number, (args, kwargs))
        elif name in _OF_SIZES:
            named = {key: value for key, value in kwargs.items() if key not in ("input", "self")}
            rest, named = pytree.tree_map(self._whole, (args[1:], named))
            args, kwargs = (*args[:1], *rest), {**kwargs, **named}
        elif name in ("__getitem__", "__setitem__"):
            keys = args[1] if isinstance(args[1], tuple) else (args[1],)
            found = tuple(self._place(one) for one in keys)
            args = (args[0], found if isinstance(args[1], tuple) else found[0], *args[2:])
        return args, kwargs

    def _place(self, part: Any) -> Any:
        """Returns a part of a key with Python numbers in place of known tensors, slices apart.

        ``SliceBounds`` reads the bounds of slices by itself.
        """
        if isinstance(part, list):
            return [self._whole(one) for one in part]
        if not isinstance(part, Tensor) or part.dim():
            return part
        one = self._whole(part)
        return bool(one) if isinstance(one, int) and part.dtype in _MASKS else one

    def _whole(self, part: Any) -> Any:
        """Returns the known whole number that a tensor holds, or the tensor."""
        value = self._value(part) if isinstance(part, FakeTensor) else None
        whole = value is not None and not (value.is_floating_point() or value.is_complex())
        if value is None or not whole or value.numel() != 1:
            return part
        return _apart(Tensor.item, value)

    def _number(self, part: Any) -> Any:
        value = self._value(part) if isinstance(part, FakeTensor) and not part.dim() else None
        return part if value is None else _apart(Tensor.item, value)

    def _value(self, tensor: Any) -> Tensor | None:
        """Returns the numbers of a tensor; None where they are not known."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._values.get(tensor)
        if found is not None:
            return found
        own: Tensor | None = tensor if type(tensor) in (Tensor, nn.Parameter) else None
        if isinstance(tensor, FakeTensor):
            name, version = self._stand_ins.get(id(tensor), ("", None))
            own = self._tensors.get(name) if version == version_of(tensor) else None
        if own is None or own.numel() > LARGEST or own.is_meta:
            return None
        # A copy: what changes it in the trace must not change the model.
        copy: Tensor = _apart(lambda: own.detach().clone())
        self._values.set(tensor, copy)
        return copy

    def _given(self, tree: Any) -> Any:
        """Returns a call's arguments with known values for its tensors; None if one is unknown."""
        if any(self._value(one) is None for one in tensors_in(tree)):
            return None
        leaves, spec = pytree.tree_flatten(tree)
        if any(isinstance(one, _SYMBOLS) for one in leaves):
            return None
        known = [self._value(one) if isinstance(one, Tensor) else one for one in leaves]
        return pytree.tree_unflatten(known, spec)

    def _note(self, found: Any, values: Any) -> None:
        own, other = pytree.tree_leaves(found), pytree.tree_leaves(values)
        if len(own) != len(other):
            return
        for tensor, value in zip(own, other, strict=True):
            fits = isinstance(tensor, FakeTensor) and _is_tensor(value)
            if fits and tensor.shape == value.shape and value.numel() <= LARGEST:
                self._values.set(tensor, value)

    def _change(
        self, changed: Sequence[Tensor], func: Any, given: Any, valid: frozenset[int]
    ) -> None:
        """Changes known values as a call changed their tensors, or forgets them.

        Args:
            changed: The tensors that the call changed.
            func: The function.
            given: What it took, with the numbers of the tensors from before; None where some are
                not known.
            valid: The identities of the tensors whose values were known before.
        """
        sharing = self._values.sharing(changed)
        self._values.forget(changed)
        if given is not None and _computed(func, *given) is not NotImplemented:
            for tensor, value in sharing:
                if id(tensor) in valid:
                    self._values.set(tensor, value)


class _Settled(TorchDispatchMode):
    """Refuses operators that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator unless it draws random numbers."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError("It draws random numbers.")
        return func(*args, **(kwargs or {}))


def _computed(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Returns a function's result beside the trace; NotImplemented where it fails or draws."""
    try:
        return _apart(func, *args, **kwargs)
    except Exception:  # whatever it is, the call in the trace says it to the user
        return NotImplemented


def _apart(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a function outside of the trace."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad(), _Settled():
        return func(*args, **kwargs)


def _may_change(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a call may change one of its tensors, by its name and options."""
    assigns = in_place(name) or name.startswith(("__i", "__set"))
    return assigns or "inplace" in kwargs or "out" in kwargs


def _has_stand_ins(found: Any) -> bool:
    return any(isinstance(one, FakeTensor) for one in tensors_in(found))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _only_read(array: Array) -> Array:
    """Returns a copy that refuses writes: the trace would lose them."""
    array = array.copy()
    array.flags.writeable = False
    return array


def _columns(mask: Tensor) -> list[Tensor]:
    return list(mask.nonzero(as_tuple=True))


def _first_of_each_kind(model: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str]]:
    """Yields where a model holds its first parameter and its first buffer."""
    modules = [*model.modules()]
    for kind in ([one._parameters for one in modules], [one._buffers for one in modules]):
        own = ((held, name) for held in kind for name, one in held.items() if one is not None)
        yield from islice(own, 1)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
