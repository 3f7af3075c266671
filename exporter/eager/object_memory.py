"""Remembers what objects hold, through all nested containers, and restores it.

Every container (a dict, a deque, a class of the user's own) is remembered by its entries and its
attributes. Both are restored through the methods of the built-in base type, so that no code of the
user's runs.
"""

from __future__ import annotations

import array
import random
import sys
import types
import weakref
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from tokexport.exporter.eager.module_variables import assigned_again, assigned_names, values_kept

#: Tensors and arrays beyond this many bytes are not copied, weights apart.
LARGEST: Final = 2**26
#: Packages whose objects are not the user's own state, apart from containers and modules.
_LIBRARIES: Final = {"numpy", "torch", "torchgen", "sympy", *sys.stdlib_module_names}
_ATOMS: Final = {int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device}
#: This package: its hooks record what they see, and keep it.
_OURS: Final = "tokexport"
_NOT_THE_PERSONS: Final = {_OURS, *_LIBRARIES}
_MISSING: Final = object()
_VALUES: Final = (
    *(np.ndarray, bytearray, array.array),
    *(torch.Generator, np.random.Generator, np.random.RandomState, random.Random),
)
#: Remembers an object, and returns what it holds.
Reader: TypeAlias = Callable[[Any], Iterable[Any]]


class ObjectMemory:
    """What objects held when they were remembered.

    Attributes:
        rewritten: The tensors whose values had changed when everything was restored.

    Args:
        weights: Whether parameters are copied too, so that they can be put back; for the time that
            the memory lives they take their room twice.
    """

    def __init__(self, *, weights: bool = False) -> None:
        self._weights = weights
        self.rewritten: list[Tensor] = []
        self._seen: dict[int, Any] = {}
        self._undo: list[Callable[[], object]] = []
        self._readers: dict[type, Reader] = {}
        self._slots: dict[type, list[Any]] = {}

    def take(self, roots: Iterable[Any]) -> None:
        """Remembers objects and all that they hold, each once, however deep they nest."""
        ahead = list(roots)
        seen, readers = self._seen, self._readers
        while ahead:
            one = ahead.pop()
            kind = type(one)
            if kind in _ATOMS or id(one) in seen:
                continue
            seen[id(one)] = one
            if kind not in readers:
                readers[kind] = self._reader_of(kind)
            ahead.extend(readers[kind](one))

    def give_back(self) -> None:
        """Restores everything."""
        for undo in self._undo:
            undo()

    def keepers(self) -> Iterator[tuple[Any, tuple[str, ...] | None]]:
        """Yields the holders of restored values, with the names concerned; None for all."""
        for one in list(self._seen.values()):
            if isinstance(one, types.FunctionType):
                if _package(one.__module__ or "") not in _NOT_THE_PERSONS:
                    yield one.__globals__, assigned_names(one)
                continue
            if isinstance(one, dict | list | deque):
                yield one, None
            own = _namespace(one) if _has_state(type(one)) else None
            if own is not None:
                yield own, None

    def _reader_of(self, kind: type) -> Reader:
        """Returns the function that remembers an object of a type and returns what it holds."""
        readers: tuple[tuple[type, Reader], ...] = (
            (Tensor, self._tensor),
            (types.FunctionType, self._function),
            (types.MethodType, lambda one: (one.__self__, one.__func__)),
            (partial, lambda one: (one.func, *one.args, one.keywords)),
            (type, _nothing),
            (types.ModuleType, _nothing),
            *((known, self._value) for known in _VALUES),
            (weakref.WeakKeyDictionary, self._weak),
            (weakref.WeakValueDictionary, self._weak),
            (weakref.WeakSet, self._weak),
        )
        for base, reader in readers:
            if issubclass(kind, base):
                return reader
        entries = next((read for base, read in self._containers() if issubclass(kind, base)), None)
        if not _has_state(kind):
            return entries or _nothing
        if entries is None:
            return self._attributes
        return lambda one: (*entries(one), *self._attributes(one))

    def _containers(self) -> tuple[tuple[type | tuple[type, ...], Reader], ...]:
        return (
            (OrderedDict, self._ordered),
            (dict, self._dict),
            (list, self._list),
            (deque, self._deque),
            (set, self._set),
            ((tuple, frozenset), lambda one: one),
        )

    def _ordered(self, one: Any) -> Iterable[Any]:
        items = list(OrderedDict.items(one))
        self._undo.append(partial(_refill, OrderedDict, one, items))
        return [part for item in items for part in item]

    def _dict(self, one: Any) -> Iterable[Any]:
        items = list(dict.items(one))
        self._undo.append(partial(_refill, dict, one, items))
        if isinstance(one, defaultdict):
            self._undo.append(partial(setattr, one, "default_factory", one.default_factory))
        return [part for item in items for part in item]

    def _list(self, one: Any) -> Iterable[Any]:
        held = list(list.__iter__(one))
        self._undo.append(partial(list.__setitem__, one, slice(None), held))
        return held

    def _deque(self, one: Any) -> Iterable[Any]:
        held = list(deque.__iter__(one))
        self._undo += [partial(deque.clear, one), partial(deque.extend, one, held)]
        return held

    def _set(self, one: Any) -> Iterable[Any]:
        held = list(set.__iter__(one))
        self._undo += [partial(set.clear, one), partial(set.update, one, held)]
        return held

    def _weak(self, one: Any) -> Iterable[Any]:
        """Holds the entries of a weak container, so that all of them can be restored."""
        held: Any = set(one) if isinstance(one, weakref.WeakSet) else dict(one)
        self._undo += [one.clear, partial(one.update, held)]
        return list(held.values() if isinstance(held, dict) else held)

    def _value(self, one: Any) -> Iterable[Any]:
        """Remembers an array of numbers, or the state of a generator of random numbers."""
        if isinstance(one, np.ndarray):
            if one.flags.writeable and one.nbytes <= LARGEST:
                self._undo.append(partial(_set_slice, one, ..., one.copy()))
        elif isinstance(one, bytearray | array.array):
            self._undo.append(partial(_set_slice, one, slice(None), one[:]))
        elif isinstance(one, np.random.Generator):
            bits = one.bit_generator
            self._undo.append(partial(setattr, bits, "state", bits.state))
        elif isinstance(one, random.Random):
            self._undo.append(partial(one.setstate, one.getstate()))
        else:
            self._undo.append(partial(one.set_state, one.get_state()))
        return ()

    def _attributes(self, one: Any) -> Iterable[Any]:
        parts: list[Any] = []
        own = _namespace(one)
        if own is not None and own is not one:
            held = dict(own)
            self._undo.append(partial(_set_namespace, one, held))
            parts += held.values()
        kind = type(one)
        for slot in self._slots_of(kind):
            value = _slot(slot, one)
            self._undo.append(partial(_set_slot, slot, one, value))
            parts.append(value)
        if isinstance(one, nn.Module):
            self._undo.append(partial(_set_class, one, kind))
        return parts

    def _slots_of(self, kind: type) -> list[Any]:
        if kind not in self._slots:
            self._slots[kind] = [
                value
                for base in kind.__mro__
                if "__slots__" in vars(base)
                for value in vars(base).values()
                if isinstance(value, types.MemberDescriptorType)
            ]
        return self._slots[kind]

    def _function(self, one: types.FunctionType) -> Iterable[Any]:
        """Remembers what a function keeps: attributes, defaults, and the variables around it.

        Variables of its module count where the function names them.
        """
        if _package(one.__module__ or "") in _NOT_THE_PERSONS:
            return ()
        held = dict(vars(one))
        self._undo.append(partial(_set_namespace, one, held))
        parts = [*held.values(), one.__defaults__, one.__kwdefaults__]
        for cell in one.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # nothing is in it yet
                continue
            self._undo.append(partial(setattr, cell, "cell_contents", value))
            parts.append(value)
        self._undo += assigned_again(one)
        return [*parts, *values_kept(one)]

    def _tensor(self, one: Tensor) -> Iterable[Any]:
        if not _holds_values(one):
            return ()
        data, grad = one.data, one.grad if one.is_leaf else None
        if one.is_leaf:
            self._undo.append(partial(_set_gradient, one, one.requires_grad, grad))
        small = one.numel() * one.element_size() <= LARGEST
        copied = self._weights if isinstance(one, nn.Parameter) else small
        self._undo.append(partial(self._set_values, one, data, data.clone() if copied else None))
        held = dict(vars(one))
        self._undo.append(partial(_set_namespace, one, held))
        return (grad, *held.values())

    def _set_values(self, one: Tensor, data: Tensor, copied: Tensor | None) -> None:
        """Restores a tensor's storage, and the values in it.

        They are written through an alias: the count of what changed the tensor stays.
        """
        now = one.data
        if now.dtype != data.dtype or now.shape != data.shape or now.data_ptr() != data.data_ptr():
            one.data = data
            self.rewritten.append(one)
        if copied is not None and not torch.equal(data, copied):
            with torch.no_grad(), torch.inference_mode(data.is_inference()):
                data.copy_(copied)
            if not copied.isnan().any():  # those are equal to nothing
                self.rewritten.append(one)


def _namespace(one: Any) -> dict[str, Any] | None:
    """Returns the attributes of an object without running methods of the user's class."""
    try:
        own = object.__getattribute__(one, "__dict__")
    except AttributeError:
        return None
    return own if isinstance(own, dict) else None


def _package(module: str) -> str:
    return module.partition(".")[0]


def _has_state(kind: type) -> bool:
    """Returns whether objects of a type may keep state of the user's in attributes."""
    if issubclass(kind, nn.Module | UserDict | UserList | types.SimpleNamespace):
        return True
    ours = kind.__module__.startswith(f"{_OURS}.exporter.")
    return not ours and _package(kind.__module__) not in _LIBRARIES


def _nothing(one: Any) -> Iterable[Any]:
    return ()


def _set_slice(one: Any, where: Any, held: Any) -> None:
    one[where] = held


def _refill(kind: Any, one: Any, items: list[tuple[Any, Any]]) -> None:
    kind.clear(one)
    for key, value in items:
        kind.__setitem__(one, key, value)


def _set_namespace(one: Any, held: dict[str, Any]) -> None:
    own = _namespace(one)
    if own is not None:
        own.clear()
        own.update(held)


def _set_class(one: nn.Module, kind: type) -> None:
    if type(one) is not kind:
        one.__class__ = kind


def _slot(slot: Any, one: Any) -> Any:
    try:
        return slot.__get__(one)
    except AttributeError:
        return _MISSING


def _set_slot(slot: Any, one: Any, value: Any) -> None:
    if value is not _MISSING:
        slot.__set__(one, value)
    elif _slot(slot, one) is not _MISSING:
        slot.__delete__(one)


def _set_gradient(one: Tensor, required: bool, grad: Tensor | None) -> None:
    if one.requires_grad is not required:
        one.requires_grad_(required)
    if one.grad is not grad:
        one.grad = grad


def _holds_values(one: Tensor) -> bool:
    """Returns whether a tensor has its values in a storage of this process."""
    plain = type(one).__torch_dispatch__ is Tensor.__torch_dispatch__
    if not plain or isinstance(one, UninitializedBuffer | UninitializedParameter):
        return False
    return one.layout == torch.strided and one.device.type == "cpu"
