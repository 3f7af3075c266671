"""Holds what the commands print and write to the JSON Schemas in ``exporter/schemas``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from tokexport.exporter.schemas.stored import schema


@cache
def validator(name: str) -> Draft202012Validator:
    """Returns the validator of a file or a command."""
    found = json.loads(schema(name).text)
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def fault(name: str, data: Any) -> str:
    """Returns where data leaves the schema of a file or a command, and how; '' where it fits."""
    error = best_match(validator(name).iter_errors(data))
    return "" if error is None else f"{name}: {error.json_path}: {error.message:.2000}"


def check(name: str, data: Any) -> None:
    """Fails where data does not fit the schema of a file or a command."""
    assert not (found := fault(name, data)), found


def check_file(path: Path) -> None:
    """Fails where a file does not fit the schema of its name."""
    check(path.name, json.loads(path.read_text(encoding="utf-8")))


def check_bundle(bundle: Path) -> None:
    """Fails where the manifest or the report of a bundle does not fit its schema."""
    check_file(bundle / "manifest.json")
    check_file(bundle / "report.json")


def check_printed(arguments: tuple[str, ...], stdout: str) -> None:
    """Fails where what a command printed under ``--json``, or its files, fit no schema."""
    if "--json" not in arguments or not stdout.startswith("{") or not stdout.endswith("}\n"):
        return
    data = json.loads(stdout)
    command, *others = arguments
    if command == "schema" and others != ["--json"] and "error" not in data:
        Draft202012Validator.check_schema(data)
        return
    check(command, data)
    for path in map(Path, data.get("files", ())):
        if path.suffix == ".json":
            check_file(path)
