"""Reads frozen dataclasses back from the JSON that ``json_values.plain`` made of them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

Typed = TypeVar("Typed")
#: How numbers that are not finite are written.
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def typed(kind: type[Typed], data: Any) -> Typed:
    """Returns a dataclass of parsed JSON; keys that it does not have are ignored.

    Args:
        kind: The dataclass; its fields are texts, numbers, truth values, None, tuples, mappings by
            text, typed dicts and dataclasses.
        data: The parsed JSON.

    Raises:
        ValueError: A field is missing or of another type; the message names its place.
    """
    found: Typed = _read(kind, data, "")
    return found


def _read(kind: Any, data: Any, place: str) -> Any:
    if kind is Any:
        return data
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _any_of(inner, data, place)
    if origin is tuple:
        items = _of_type(list, data, place, "a list")
        return tuple(_read(inner[0], one, f"{place}[{at}]") for at, one in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        named = _of_type(dict, data, place, "an object")
        return {name: _read(inner[1], one, _within(place, name)) for name, one in named.items()}
    if is_typeddict(kind):
        return _typed_dict(kind, _of_type(dict, data, place, "an object"), place)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, _of_type(dict, data, place, "an object"), place)
    return _plain(kind, data, place)


def _dataclass(kind: Any, data: Mapping[str, Any], place: str) -> Any:
    hints, given = get_type_hints(kind), {}
    for each in dataclasses.fields(kind):
        if not each.init:  # it is computed from the others
            continue
        if each.name in data:
            given[each.name] = _read(hints[each.name], data[each.name], _within(place, each.name))
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_within(place, each.name)} is missing")
    return kind(**given)


def _typed_dict(kind: Any, data: Mapping[str, Any], place: str) -> Any:
    hints = get_type_hints(kind)
    for name in hints:
        if name not in data:
            raise ValueError(f"{_within(place, name)} is missing")
    return {name: _read(hint, data[name], _within(place, name)) for name, hint in hints.items()}


def _any_of(kinds: tuple[Any, ...], data: Any, place: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    (kind,) = (one for one in kinds if one is not type(None))
    return _read(kind, data, place)


def _plain(kind: Any, data: Any, place: str) -> Any:
    if kind is float:
        if isinstance(data, str) and data in _NOT_FINITE:
            return _NOT_FINITE[data]
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        raise ValueError(f"{place} should be a number, and it is {data!r:.80}")
    if kind is int and isinstance(data, bool):
        raise ValueError(f"{place} should be a whole number, and it is {data!r:.80}")
    said = {str: "a text", int: "a whole number", bool: "true or false"}
    return _of_type(kind, data, place, said[kind])


def _of_type(kind: type, data: Any, place: str, said: str) -> Any:
    if not isinstance(data, kind):
        raise ValueError(f"{place or 'it'} should be {said}, and it is {data!r:.80}")
    return data


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
