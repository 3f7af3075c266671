"""Lists the reduction methods with their options, defaults and papers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.recipe import PLACEMENT
from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.methods.known import METHODS


class MethodOption(TypedDict):
    """An option of a reduction method.

    Attributes:
        name: As a recipe spells it.
        type: The type of its value, as Python writes it.
        default: Its value where a recipe does not give it.
        help: What it does.
    """

    name: str
    type: str
    default: Any
    help: str


class ListedMethod(TypedDict):
    """A reduction method.

    Attributes:
        name: As a recipe spells it.
        summary: What it does.
        source: The paper that it comes from.
        strength: The option that ``sweep`` varies by default.
        needs_class_token: Whether it needs a class token.
        needs_training: Whether it has parameters of its own that only training gives.
        options: Its options.
    """

    name: str
    summary: str
    source: str
    strength: str
    needs_class_token: bool
    needs_training: bool
    options: list[MethodOption]


class MethodList(TypedDict):
    """The reduction methods.

    Attributes:
        methods: Every method.
        placement: What the options of all recipes do, by their names.
    """

    methods: list[ListedMethod]
    placement: dict[str, str]


def methods_json(methods: Sequence[type[Method]] = METHODS) -> MethodList:
    """Returns plain values: every method with its options, and the options of all recipes."""
    return {
        "methods": [
            {
                "name": method.name,
                "summary": method.summary,
                "source": method.source,
                "strength": method.strength,
                "needs_class_token": method.needs_class_token,
                "needs_training": method.needs_training,
                "options": [
                    {
                        "name": field.name,
                        "type": str(field.type),
                        "default": _plain(field.default),
                        "help": field.metadata.get("help", ""),
                    }
                    for field in dataclasses.fields(method)
                ],
            }
            for method in methods
        ],
        "placement": dict(PLACEMENT),
    }


def render_methods(console: Console, methods: Sequence[type[Method]] = METHODS) -> None:
    """Prints a paragraph for each method, and last the options of all recipes."""
    for method in methods_json(methods)["methods"]:
        lines = [Text.assemble((method["name"], "bold"), f"  {method['summary']}")]
        lines.append(Text(f"  {method['source']}", "dim"))
        lines += [Text(f"  {note}", "yellow") for note in _notes(method)]
        for line in lines:
            console.print(line, soft_wrap=True)
        rows = [(o["name"], json.dumps(o["default"]), o["help"]) for o in method["options"]]
        console.print(_table(rows))
        console.print()
    console.print(Text("Every recipe also takes", "bold"))
    console.print(_table([(name, "", means) for name, means in PLACEMENT.items()]))


def _notes(method: ListedMethod) -> Iterator[str]:
    if method["needs_class_token"]:
        yield "needs a class token"
    if method["needs_training"]:
        yield "has parameters of its own that only training gives: weights=FILE"


def _table(rows: Sequence[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, default, means in rows:
        table.add_row(Text(f"  {name}"), Text(default), Text(means))
    return table


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
