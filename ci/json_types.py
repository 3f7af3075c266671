"""Turns the types of Python that results are made of into JSON Schema, draft 2020-12."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from result_classes import (
    described,
    first_line,
    has_fields,
    hints,
    of_property,
    reported,
    written,
)

#: The values that a field of a class may have, by class and field.
Values = Mapping[tuple[type, str], tuple[Any, ...]]

_PLAIN: Final = {str: "string", bool: "boolean", int: "integer", Path: "string"}
_NUMBER: Final = {
    "description": "A number; one that is not finite, which JSON has no form for, as a text.",
    "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
}


class JsonTypes:
    """The schemas of types, and in ``definitions`` those of the classes that they hold.

    Args:
        values: The values that fields may have.
        finite: Whether numbers are always finite; else those that are not are texts.
        older: Whether files made before may lack the fields that have a default.

    Attributes:
        definitions: What ``$defs`` has to hold, by name.
    """

    def __init__(self, values: Values, *, finite: bool, older: bool) -> None:
        self.definitions: dict[str, Any] = {}
        self._values, self._finite, self._older = values, finite, older
        self._kinds: dict[str, type] = {}

    def object_of(
        self,
        kind: type,
        *,
        first: Mapping[str, Any] | None = None,
        properties: Iterable[str] = (),
        held: Mapping[str, Any] | None = None,
        last: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns the schema of an object with the fields of a class, and no other key.

        Args:
            kind: A dataclass or a ``TypedDict``.
            first: The schemas of keys that stand before them, by name.
            properties: The names of the class's properties that are written too.
            held: The types of fields of which the class says less, by name.
            last: The schemas of keys that stand behind them, by name.
        """
        types_of = hints(kind) | dict(held or {})
        meanings = described(kind)
        found = dict(first or {})
        for name in properties:
            of, meaning = of_property(kind, name)
            found[name] = self._field(kind, name, of, meaning)
        for name in written(kind):
            found[name] = self._field(kind, name, types_of[name], meanings[name])
        found |= last or {}
        optional = self._optional(kind)
        return {
            "description": _words(first_line(kind)),
            "type": "object",
            "properties": found,
            "required": [name for name in found if name not in optional],
            "additionalProperties": False,
        }

    def of(self, kind: Any) -> dict[str, Any]:
        """Returns the schema of a type."""
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return {}
        if kind is float:
            return self._number()
        if kind is type(None):
            return {"type": "null"}
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if inspect.isclass(kind) and issubclass(kind, Enum):
            return {"enum": [one.value for one in kind]}
        if has_fields(kind):
            return self._reference(kind)
        if origin in (typing.Union, types.UnionType):
            return _any_of([self.of(one) for one in parts])
        if kind in (dict, Mapping) or (inspect.isclass(origin) and issubclass(origin, Mapping)):
            values = self.of(parts[1]) if parts else {}
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if origin is tuple and Ellipsis not in parts:
            return {
                "type": "array",
                "prefixItems": [self.of(one) for one in parts],
                "minItems": len(parts),
                "items": False,
            }
        if inspect.isclass(origin) and issubclass(origin, Iterable):
            return {"type": "array", "items": self.of(parts[0])}
        raise TypeError(f"JSON Schema has no form for {kind!r}")

    def _field(self, kind: type, name: str, of: Any, meaning: str) -> dict[str, Any]:
        values = self._values.get((kind, name))
        schema = self.of(of) if values is None else {"enum": [*values]}
        return {"description": _words(meaning), **schema}

    def _number(self) -> dict[str, Any]:
        if self._finite:
            return {"type": "number"}
        self.definitions["Number"] = _NUMBER
        return {"$ref": "#/$defs/Number"}

    def _reference(self, kind: type) -> dict[str, Any]:
        name = kind.__name__
        if self._kinds.setdefault(name, kind) is not kind:
            raise TypeError(f"two classes are called {name}: give one of them another name")
        if name not in self.definitions:
            self.definitions[name] = {}  # it may hold itself
            self.definitions[name] = self.object_of(kind)
        return {"$ref": f"#/$defs/{name}"}

    def _optional(self, kind: type) -> set[str]:
        """Returns the fields that an object may lack."""
        if typing.is_typeddict(kind):
            optional: frozenset[str] = vars(kind)["__optional_keys__"]
            return {*optional}
        if not self._older:
            return set()
        missing = dataclasses.MISSING
        return {
            one.name
            for one in reported(kind)
            if (one.default, one.default_factory) != (missing, missing)
        }


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a schema that one of several has to fit."""
    if all(one.keys() == {"type"} for one in schemas):
        return {"type": [one["type"] for one in schemas]}
    return {"anyOf": schemas}


def _words(text: str) -> str:
    """Returns a text of a docstring as JSON calls its values."""
    for python, name in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", name, text)
    return text
