"""Writes the pages of reference that the code decides: ``python ci/reference_pages.py``.

The command line comes from typer, exit codes from their table, the JSON documents from theirs, and
the fields of ``report.json`` and ``manifest.json`` from the classes that they are written from.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from marked_parts import with_part
from result_classes import described, first_line, has_fields, hints, written

if TYPE_CHECKING:
    from json_documents import Result

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
    from json_documents import FILES

    made = {
        "command-line.md": ("commands", command_line()),
        "exit-codes.md": ("codes", exit_codes()),
        "report.md": ("fields", fields(FILES["report.json"].results[0])),
        "bundle.md": ("fields", fields(FILES["manifest.json"].results[0])),
        "json.md": ("schemas", schema_table()),
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
    from typer.models import ArgumentInfo, Context

    hints = typing.get_type_hints(callback, include_extras=True)
    for name, one in inspect.signature(callback).parameters.items():
        if hints[name] is Context:  # what typer itself passes
            continue
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


def schema_table() -> str:
    """Returns the table of the JSON Schemas: what each describes, its version, its file."""
    from tokexport.exporter.schemas.stored import all_schemas

    rows = []
    for one in all_schemas().schemas:
        is_file = one.name.endswith(".json")
        written = f"`{one.name}`" if is_file else f"`tokexport {one.name} --json`"
        stem = one.name.removesuffix(".json")
        path = f"exporter/schemas/{'files' if is_file else 'commands'}/{stem}.schema.json"
        rows.append(f"| {written} | {one.version} | [`{one.name}`](../../{path}) | {one.about} |")
    return "\n".join(["| JSON | Version | Schema | Meaning |", "|---|---|---|---|", *rows])


def fields(root: Result) -> str:
    """Returns a table of the fields of a result, and one for each class that they hold."""
    waiting, seen, parts = [root.kind], {root.kind}, []
    while waiting:
        kind = waiting.pop(0)
        types_of, meanings = hints(kind), described(kind)
        if kind is root.kind:
            types_of |= dict(root.held)
        rows = []
        for name in written(kind):
            for held in classes(types_of[name]):
                if held not in seen:
                    seen.add(held)
                    waiting.append(held)
            meaning = meanings[name].replace("|", "\\|")
            rows.append(f"| `{name}` | {shown(types_of[name])} | {meaning} |")
        title = [] if kind is root.kind else [f"## {kind.__name__}", "", first_line(kind), ""]
        parts.append("\n".join([*title, "| Field | Type | Meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def classes(of: Any) -> Iterator[type]:
    """Yields the classes with fields in a type."""
    if has_fields(of):
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
    if has_fields(of):
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
