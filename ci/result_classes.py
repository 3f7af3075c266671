"""Reads what the classes of results say of their fields: types, and the texts of docstrings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any


def hints(kind: type) -> dict[str, Any]:
    """Returns the types of a class's fields, those too that only type checkers import."""
    names = dict(vars(sys.modules[kind.__module__]))
    while True:
        try:
            return typing.get_type_hints(kind, names)
        except NameError as error:
            missing = error.name or ""
            names[missing] = _typed_only(kind, missing)


def _typed_only(kind: type, name: str) -> Any:
    """Finds what a module imports under a name for type checkers alone."""
    source = inspect.getsource(sys.modules[kind.__module__])
    found = re.search(rf"^    from ([\w.]+) import .*\b{name}\b", source, re.MULTILINE)
    assert found is not None, f"{kind.__module__} does not import {name}"
    return getattr(importlib.import_module(found[1]), name)


def reported(kind: type) -> Iterator[dataclasses.Field[Any]]:
    """Yields the fields of a class that are written."""
    assert dataclasses.is_dataclass(kind)
    yield from (one for one in dataclasses.fields(kind) if one.metadata.get("report", True))


def has_fields(kind: Any) -> bool:
    """Returns whether a type is a dataclass or a ``TypedDict``."""
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind))


def written(kind: type) -> list[str]:
    """Returns the names of the fields that are written, of a dataclass or a ``TypedDict``."""
    if typing.is_typeddict(kind):
        return [*hints(kind)]
    return [one.name for one in reported(kind)]


def described(kind: type) -> dict[str, str]:
    """Returns what the docstring of a class and of those it extends say of their attributes."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.getdoc(each) or ""
        _, _, listed = text.partition("Attributes:\n")
        for name, meaning in re.findall(r"^    (\w+): (.+(?:\n        .+)*)", listed, re.MULTILINE):
            found[name] = _one_line(meaning)
    return found


def first_line(kind: Any) -> str:
    """Returns the first sentence of the docstring of a class, a property or a function."""
    return _one_line((inspect.getdoc(kind) or "").partition("\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def of_property(kind: type, name: str) -> tuple[Any, str]:
    """Returns the type of a class's property, and what it is."""
    found = inspect.getattr_static(kind, name)
    getter = getattr(found, "fget", None) or found.func
    names = vars(sys.modules[kind.__module__])
    return typing.get_type_hints(getter, names)["return"], first_line(getter)
