"""Writes the pages of reference that the code decides: ``python ci/reference_pages.py``.

The command line comes from typer, exit codes from their table, and the fields of ``report.json``
and ``manifest.json`` from the classes that they are written from, with their docstrings.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from marked_parts import with_part

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
#: What a type is called in JSON.
_NAMES: Final = {str: "text", bool: "true or false", int: "whole number", float: "number"}


def main() -> int:
    """Writes the pages."""
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[str, str]:
    """Returns the text of every generated page, by its file."""
    from tokexport.exporter.report.report import Report
    from tokexport.runtimes.bundle.manifest import Manifest

    made = {
        "command-line.md": ("commands", command_line()),
        "exit-codes.md": ("codes", exit_codes()),
        "report.md": ("fields", fields(Report)),
        "bundle.md": ("fields", fields(Manifest)),
    }
    return {
        name: with_part((PAGES / name).read_text(encoding="utf-8"), part, text)
        for name, (part, text) in made.items()
    }


def command_line() -> str:
    """Returns a section for every command: usage, what it does, arguments and options."""
    from tokexport.exporter.cli.app import app

    parts = []
    for command in app.registered_commands:
        assert command.callback is not None
        found = list(parameters(command.callback))
        needed = [f"{one.name} {one.takes}".strip() for one in found if one.default is ...]
        lines = [f"## {command.name}", ""]
        lines += [f"`tokexport {' '.join([str(command.name), *needed])} …`", ""]
        lines += [inspect.getdoc(command.callback) or "", "", "| | Default | |", "|---|---|---|"]
        parts.append("\n".join([*lines, *(one.row for one in found)]))
    return "\n\n".join(parts)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An argument or option of a command.

    Attributes:
        name: As it is given: ``SOURCE``, ``--target``.
        takes: The kind of its value; '' for a flag.
        default: What it is without it; None where it has to be given.
        text: Its help.
    """

    name: str
    takes: str
    default: Any
    text: str

    @property
    def row(self) -> str:
        """Its row in a table of Markdown."""
        name = f"{self.name} {self.takes}".strip().replace("|", "\\|")
        unset = self.default in (None, False)
        default = "required" if self.default is ... else "" if unset else f"`{self.default}`"
        return f"| `{name}` | {default} | {self.text.replace('|', chr(92) + '|')} |"


def parameters(callback: Any) -> Iterator[Parameter]:
    """Yields the parameters of the function behind a command, in order."""
    from typer.models import ArgumentInfo

    hints = typing.get_type_hints(callback, include_extras=True)
    for name, one in inspect.signature(callback).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        default = ... if one.default is one.empty else one.default
        if isinstance(info, ArgumentInfo):
            yield Parameter(name.upper(), "", default, info.help or "")
            continue
        given = info.param_decls or (f"--{name.replace('_', '-')}",)
        yield Parameter(", ".join(given), info.metavar or _taken(kind), default, info.help or "")


def _taken(kind: Any) -> str:
    """Returns what a value is called: that of a list may be given several times."""
    parts = [one for one in typing.get_args(kind) if one is not type(None)]
    if typing.get_origin(kind) is list:
        return f"{_taken(parts[0])} …"
    if parts:
        return _taken(parts[0])
    return {bool: "", str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}[kind]


def exit_codes() -> str:
    """Returns the table of exit codes."""
    from tokexport.exporter.exit_codes import MEANINGS, ExitCode

    rows = [f"| {code.value} | {MEANINGS[code]} |" for code in ExitCode]
    return "\n".join(["| Code | Meaning |", "|---|---|", *rows])


def fields(root: type) -> str:
    """Returns a table of the fields of a class, and one for each class that they hold."""
    waiting, seen, parts = [root], {root}, []
    while waiting:
        kind = waiting.pop(0)
        types_of, meanings = hints(kind), described(kind)
        rows = []
        for one in reported(kind):
            for held in classes(types_of[one.name]):
                if held not in seen:
                    seen.add(held)
                    waiting.append(held)
            rows.append(f"| `{one.name}` | {shown(types_of[one.name])} | {meanings[one.name]} |")
        title = [] if kind is root else [f"## {kind.__name__}", "", first_line(kind), ""]
        parts.append("\n".join([*title, "| Field | Type | Meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


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


def described(kind: type) -> dict[str, str]:
    """Returns what the docstring of a class and of those it extends say of their attributes."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.getdoc(each) or ""
        _, _, listed = text.partition("Attributes:\n")
        for name, meaning in re.findall(r"^    (\w+): (.+(?:\n        .+)*)", listed, re.MULTILINE):
            found[name] = " ".join(meaning.replace("``", "`").replace("|", "\\|").split())
    return found


def first_line(kind: type) -> str:
    """Returns the first sentence of a class's docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0].replace("``", "`")


def classes(of: Any) -> Iterator[type]:
    """Yields the dataclasses in a type."""
    if dataclasses.is_dataclass(of) and isinstance(of, type):
        yield of
    for part in typing.get_args(of):
        yield from classes(part)


def shown(of: Any) -> str:
    """Returns a type as JSON has it."""
    origin, parts = typing.get_origin(of), typing.get_args(of)
    if of is type(None):
        return "null"
    if of in _NAMES:
        return _NAMES[of]
    if dataclasses.is_dataclass(of) and isinstance(of, type):
        return f"[{of.__name__}](#{of.__name__.lower()})"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(shown, parts)))
    if origin in (tuple, list) or (inspect.isclass(origin) and issubclass(origin, tuple)):
        held = [one for one in parts if one is not Ellipsis]
        return f"list of {', '.join(dict.fromkeys(map(shown, held)))}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"object of {shown(parts[1])}, by name"
    if inspect.isclass(origin) and issubclass(origin, typing.Iterable):
        return f"list of {shown(parts[0])}"
    return "value" if of is Any else getattr(of, "__name__", str(of))


if __name__ == "__main__":
    sys.exit(main())
