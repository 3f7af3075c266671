"""Writes the JSON Schemas of all files and commands: ``python ci/json_schemas.py``.

They come from the classes that ``ci/json_documents.py`` names, and from their docstrings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from json_documents import COMMANDS, FILES, VALUES, Document, Result
from json_types import JsonTypes
from result_classes import first_line

from tokexport.exporter.cli.parts.messages import Failure
from tokexport.exporter.exit_codes import ExitCode
from tokexport.exporter.report.report import Report

FOLDER: Final = Path(__file__).parents[1] / "exporter" / "schemas"
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
#: What a reader has to know of every schema.
_KEYS: Final = (
    "Later releases may add keys within a version: a program that reads it ignores keys that it "
    "does not know. The schema is closed, so that a key of this release that it does not name is "
    "found."
)
_FILES: Final = {
    "description": "The files that were written.",
    "type": "array",
    "items": {"type": "string"},
}


def main() -> int:
    """Writes the schemas, and removes those of no file and no command."""
    texts = schemas()
    for path in FOLDER.glob("*/*.json"):
        if path.relative_to(FOLDER).as_posix() not in texts:
            path.unlink()
    for name, text in texts.items():
        path = FOLDER / name
        if path.exists():
            for one in lost(json.loads(path.read_text(encoding="utf-8")), json.loads(text)):
                print(f"{name}: {one}; where a reader notices, raise the version", file=sys.stderr)
        path.write_text(text, encoding="utf-8")
    return 0


def lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what readers of an old schema no longer find in a new one of the same version.

    Args:
        old: The schema as it was.
        new: The schema as it is.
    """
    if old["$id"] != new["$id"]:
        return []
    before, after = _fields(old), _fields(new)
    gone = [f"{key} is gone" for key in before if key not in after]
    return gone + [
        f"{key} has another type"
        for key, shape in before.items()
        if key in after and after[key] != shape
    ]


def _fields(schema: Mapping[str, Any]) -> dict[str, str]:
    """Returns the schema of every key without its texts, by the class and the key."""
    found = {}
    for called, one in {"": schema, **schema.get("$defs", {})}.items():
        for key, field in one.get("properties", {}).items():
            shape = {part: value for part, value in field.items() if part != "description"}
            found[f"{called}.{key}".lstrip(".")] = json.dumps(shape, sort_keys=True)
    return found


def schemas() -> dict[str, str]:
    """Returns the text of every schema, by its file."""
    return {
        **{
            f"files/{name.removesuffix('.json')}.schema.json": _text(file_schema(name, document))
            for name, document in FILES.items()
        },
        **{
            f"commands/{name}.schema.json": _text(command_schema(name, document))
            for name, document in COMMANDS.items()
        },
    }


def file_schema(name: str, document: Document) -> dict[str, Any]:
    """Returns the schema of a file.

    Args:
        name: Its name.
        document: What is in it.
    """
    found = _types(document)
    (result,) = document.results
    written = found.object_of(result.kind, first=_number(document), held=result.held)
    about = f"{written.pop('description')} {_KEYS}"
    stem = name.removesuffix(".json")
    return {**_head("file", stem, document, name, about), **written, **_definitions(found)}


def command_schema(name: str, document: Document) -> dict[str, Any]:
    """Returns the schema of what a command prints under ``--json``: a result, or its error.

    Args:
        name: The command.
        document: What it prints.
    """
    found = _types(document)
    failure = found.of(Failure)
    error = found.definitions["Failure"]["properties"]["error"]
    results = list(document.results)
    if document.reports:
        results.append(Result(Report, judged=True))
    choices = []
    for result in results:
        called = f"Printed{result.kind.__name__}"
        is_report = result.kind is Report
        codes = [int(ExitCode.PASSED), int(ExitCode.GATE_FAILED)]
        if result.partly:
            codes = [int(ExitCode.PASSED), int(ExitCode.USAGE)]
        elif not result.judged:
            codes = codes[:1]
        elif is_report and document.reports:
            codes = codes[1:]
        numbered = document.numbered or is_report
        found.definitions[called] = _ended(codes) | found.object_of(
            result.kind,
            first={**_end(codes, error), **(_number(document, is_report) if numbered else {})},
            properties=result.properties,
            held=result.held,
            last={"files": _FILES} if result.files else {},
        )
        choices.append({"$ref": f"#/$defs/{called}"})
    said = " ".join(dict.fromkeys(first_line(result.kind) for result in document.results))
    about = f"{said} Or what is said of the error that ended the command. {_KEYS}"
    title = f"tokexport {name} --json"
    head = _head("command", name, document, title, about)
    return {**head, "oneOf": [*choices, failure], **_definitions(found)}


def _types(document: Document) -> JsonTypes:
    return JsonTypes(VALUES, finite=document.finite, older=document.older)


def _head(kind: str, name: str, document: Document, title: str, about: str) -> dict[str, Any]:
    return {
        "$schema": _DIALECT,
        "$id": f"urn:tokexport:schema:{kind}:{name}:{document.version}",
        "title": title,
        "description": about,
    }


def _number(document: Document, is_report: bool = False) -> dict[str, Any]:
    """Returns the key that says the version, where a document has one."""
    if not document.numbered and not is_report:
        return {}
    version = FILES["report.json"].version if is_report else document.version
    return {"schema_version": {"description": "The version of the fields.", "enum": [version]}}


def _end(codes: list[int], error: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of every command: how it ended.

    Args:
        codes: The exit codes that the result is printed with.
        error: The schema of an error.
    """
    about = "The exit code: 0, or 1 where a gate failed." if 1 in codes else "The exit code."
    said = {"description": "What is said of the gate that failed; null where none did."}
    if ExitCode.USAGE in codes:
        about = "The exit code: 0, or 2 where some files cannot be used."
        said = {"description": "What is said of the files that cannot be used; null without any."}
    null = {"type": "null"}
    one = error["$ref"]
    shown = [null] if 0 in codes else []
    shown += [{"$ref": one}] if any(codes) else []
    return {
        "exit_code": {"description": about, "enum": codes},
        "error": {**said, **({"anyOf": shown} if len(shown) > 1 else shown[0])},
    }


def _ended(codes: list[int]) -> dict[str, Any]:
    """Returns what holds between the exit code and the error, where either may be."""
    if len(codes) == 1:
        return {}
    error = {name: {"properties": {"error": {"type": name}}} for name in ("null", "object")}
    passed = {"properties": {"exit_code": {"const": int(ExitCode.PASSED)}}}
    return {"if": passed, "then": error["null"], "else": error["object"]}


def _definitions(found: JsonTypes) -> dict[str, Any]:
    return {"$defs": dict(sorted(found.definitions.items()))} if found.definitions else {}


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
