"""Finds the tensors nested in arguments, names them, and replaces them by others.

A name and its place are found in one step, so no order can part them::

    batch = {"mask": m, "views": [a, b]}    →    batch_mask, batch_views_0, batch_views_1
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tokexport.exporter.errors import InputError

#: Packages whose objects are values: nothing is looked for in them.
_LIBRARIES = {"builtins", "numpy", "torch", "types", "functools", "inspect", "pathlib", "enum"}
_BUILT_IN = (dict, list, tuple, UserDict, UserList, deque)


@dataclass(frozen=True, eq=False)
class Place:
    """The place of a tensor, with its example."""

    name: str
    example: Tensor


@dataclass(frozen=True, eq=False)
class FixedValue:
    """A value that stays as it is."""

    value: Any


@dataclass(frozen=True, eq=False)
class Nest:
    """A container of others; it is built anew each time, so that it is never shared.

    Attributes:
        parts: What it holds.
        build: Makes it of its parts.
        free: Whether the order of the parts is only the one in which a dict was filled.
    """

    parts: tuple[Template, ...]
    build: Callable[[Sequence[Any]], Any]
    free: bool = False


Template: TypeAlias = Place | FixedValue | Nest


def template(value: Any, name: str) -> Template:
    """Splits a value into the places of its tensors and the containers around them.

    Args:
        value: A tensor, or what holds tensors: dicts, lists, tuples, dataclasses, types that torch
            flattens, objects with attributes; and any of these in one another.
        name: What it is called; its parts get that name, ``_``, and their own.

    Raises:
        InputError: An object with tensors holds itself, or cannot be copied.
    """
    return _Walk().template(value, name)


def places(one: Template) -> Iterator[Place]:
    """Yields the places in an order that does not depend on how a dict was filled.

    Where only that would give an order, parts with more axes come first, then names decide.
    """
    if isinstance(one, Place):
        yield one
    elif isinstance(one, Nest):
        groups = [found for part in one.parts if (found := list(places(part)))]
        if one.free:
            groups.sort(key=lambda g: (-max(each.example.dim() for each in g), g[0].name))
        for group in groups:
            yield from group


def filled(one: Template, tensors: Mapping[str, Any]) -> Any:
    """Returns the value again with each place taken by what is there under its name."""
    if isinstance(one, Place):
        return tensors[one.name]
    if isinstance(one, FixedValue):
        return one.value
    return one.build([filled(part, tensors) for part in one.parts])


def holds_tensor(value: Any) -> bool:
    """Returns whether there is a tensor anywhere in a value."""
    return next(places(template(value, "")), None) is not None


@dataclass(frozen=True)
class _Parts:
    """The parts of a value by name, and the function that builds it from them."""

    named: list[tuple[str, Any]]
    build: Callable[[Sequence[Any]], Any]
    free: bool = False


class _Walk:
    """One pass over a value, which may refer to itself and to the same objects many times."""

    def __init__(self) -> None:
        self._open: dict[int, Any] = {}
        self._looped: set[int] = set()
        self._bare: dict[int, Any] = {}

    def template(self, value: Any, name: str) -> Template:
        if isinstance(value, Tensor):
            return Place(name, value)
        if id(value) in self._open:
            self._looped.add(id(value))
            return FixedValue(value)
        if id(value) in self._bare:
            return FixedValue(value)
        found = _parts(value, name)
        if found is None:
            return FixedValue(value)
        self._open[id(value)] = value
        parts = tuple(self.template(part, own) for own, part in found.named)
        del self._open[id(value)]
        nest = Nest(parts, found.build, found.free)
        looped = id(value) in self._looped
        if next(places(nest), None) is None:
            if looped or not isinstance(value, _BUILT_IN):
                self._bare[id(value)] = value
                return FixedValue(value)
        elif looped:
            raise InputError(
                f"The example input '{name}' holds tensors and itself.",
                where=f"It is a {type(value).__name__}.",
                fix="Give the model tensors, or dicts, lists and tuples of them.",
            )
        return nest


def _parts(value: Any, name: str) -> _Parts | None:
    if _is_registered(value):
        return _registered(value, name)
    if isinstance(value, Mapping):
        return _mapping(value, name)
    if isinstance(value, tuple):
        return _tuple(value, name)
    if isinstance(value, list | deque | UserList):
        return _list(value, name)
    if _has_attributes(value):
        return _attributes(value, name)
    return None


def _under(name: str, keys: Sequence[Any]) -> list[str]:
    return [f"{name}_{key}" if name else str(key) for key in keys]


def _is_registered(value: Any) -> bool:
    """Returns whether torch can flatten a value that is no plain container."""
    return type(value) in pytree.SUPPORTED_NODES and type(value).__module__ not in (
        "builtins",
        "collections",
    )


def _registered(value: Any, name: str) -> _Parts:
    def below(one: Any) -> bool:
        return one is not value

    leaves, tree = pytree.tree_flatten(value, is_leaf=below)
    keys: list[Any] = list(range(len(leaves)))
    try:
        paths, _ = pytree.tree_flatten_with_path(value, is_leaf=below)
    except ValueError:  # the type came without names of its parts
        pass
    else:
        keys = [_key(path[0]) for path, _ in paths]
    return _Parts(
        list(zip(_under(name, keys), leaves, strict=True)),
        lambda parts: pytree.tree_unflatten(parts, tree),
        free=isinstance(value, Mapping),
    )


def _key(entry: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _mapping(value: Mapping[Any, Any], name: str) -> _Parts:
    keys = list(value)
    is_own_namespace = getattr(value, "__dict__", None) is value
    own = {} if is_own_namespace else _entries_apart(value)
    mirrors = {key: at for at, key in enumerate(keys) if key in own and own[key] is value[key]}
    own = {key: part for key, part in own.items() if key not in mirrors}

    def build(parts: Sequence[Any]) -> Any:
        if type(value) is dict:
            return dict(zip(keys, parts, strict=True))
        made = _copied(value, name)
        if is_own_namespace:
            made.__dict__ = made
        try:
            for key, part in zip(keys, parts, strict=False):
                made[key] = part
        except TypeError as error:
            raise _cannot_be_filled(value, name) from error
        _set(made, list(own), parts[len(keys) :])
        _set(made, list(mirrors), [parts[at] for at in mirrors.values()])
        return made

    names = _under(name, [*keys, *own])
    return _Parts(list(zip(names, [*value.values(), *own.values()], strict=True)), build, free=True)


def _entries_apart(value: Any) -> dict[str, Any]:
    """Returns the attributes of a container that are not how it keeps its entries."""
    own = dict(getattr(value, "__dict__", {}))
    if isinstance(value, UserDict | UserList):
        own.pop("data", None)
    return own


def _tuple(value: tuple[Any, ...], name: str) -> _Parts:
    kind = type(value)
    fields = getattr(value, "_fields", None)
    keys = fields if fields is not None else range(len(value))

    def build(parts: Sequence[Any]) -> Any:
        if kind is tuple:
            return tuple(parts)
        try:
            return kind(*parts) if fields is not None else kind(parts)
        except TypeError as error:
            raise _cannot_be_filled(value, name) from error

    return _Parts(list(zip(_under(name, list(keys)), value, strict=True)), build)


def _list(value: Any, name: str) -> _Parts:
    own = _entries_apart(value)
    count = len(value)

    def build(parts: Sequence[Any]) -> Any:
        made = _copied(value, name)
        for position, part in enumerate(parts[:count]):
            made[position] = part
        _set(made, list(own), parts[count:])
        return made

    names = _under(name, [*range(count), *own])
    return _Parts(list(zip(names, [*value, *own.values()], strict=True)), build)


def _has_attributes(value: Any) -> bool:
    """Returns whether a value is an object of the user's, whose attributes may be inputs."""
    kind = type(value)
    if isinstance(value, type | nn.Module | Tensor):
        return False
    if dataclasses.is_dataclass(value) or kind.__name__ == "SimpleNamespace":
        return True
    ours = kind.__module__.partition(".")[0] not in _LIBRARIES
    return ours and bool(_attribute_names(value))


def _attribute_names(value: Any) -> list[str]:
    slots = [getattr(base, "__slots__", ()) for base in reversed(type(value).__mro__)]
    named = [one for own in slots for one in ((own,) if isinstance(own, str) else own)]
    named += sorted(getattr(value, "__dict__", {}))
    if dataclasses.is_dataclass(value):
        named = [*(field.name for field in dataclasses.fields(value)), *named]
    return [one for one in dict.fromkeys(named) if not one.startswith("__") and _is_set(value, one)]


def _is_set(value: Any, attribute: str) -> bool:
    """Returns whether an attribute is the object's own, without running the user's code."""
    if attribute in getattr(value, "__dict__", {}):
        return True
    try:
        object.__getattribute__(value, attribute)
    except AttributeError:
        return False
    return any(attribute in getattr(base, "__slots__", ()) for base in type(value).__mro__)


def _attributes(value: Any, name: str) -> _Parts:
    own = {one: object.__getattribute__(value, one) for one in _attribute_names(value)}

    def build(parts: Sequence[Any]) -> Any:
        made = _copied(value, name)
        _set(made, list(own), parts)
        return made

    return _Parts(list(zip(_under(name, list(own)), own.values(), strict=True)), build)


def _copied(value: Any, name: str) -> Any:
    try:
        return copy.copy(value)
    except Exception as error:
        raise _cannot_be_filled(value, name) from error


def _set(made: Any, names: Sequence[str], parts: Sequence[Any]) -> None:
    for attribute, part in zip(names, parts, strict=True):
        object.__setattr__(made, attribute, part)  # a frozen dataclass refuses setattr


def _cannot_be_filled(value: Any, name: str) -> InputError:
    return InputError(
        f"The example input '{name}' is a {type(value).__name__}, which cannot be made anew with "
        "other tensors.",
        fix="Give the model tensors, or dicts, lists, tuples and dataclasses of them.",
    )
