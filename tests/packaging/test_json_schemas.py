"""The JSON Schemas: valid, closed, not stale, of every file and command, and of older bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict

import json_schemas
import pytest
from helpers.json_schemas import check_bundle, check_file, fault
from json_documents import COMMANDS, FILES
from json_types import JsonTypes
from jsonschema import Draft202012Validator

from tokexport.exporter.cli.app import app
from tokexport.exporter.schemas.stored import FOLDER, all_schemas, schema

BUNDLES = Path(__file__).parents[1] / "bundles"
NAMES = tuple(one.name for one in all_schemas().schemas)
#: What the schema of an error says that it is.
FAILURE = "How a command that failed ended."


def test_every_file_and_command_has_a_schema() -> None:
    commands = {str(one.name) for one in app.registered_commands}
    assert commands == {*COMMANDS}, "name the command's result in ci/json_documents.py"
    assert {*NAMES} == commands | {*FILES}


def test_the_schemas_are_not_stale() -> None:
    texts = json_schemas.schemas()
    stored = {path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.json")}
    assert stored == {*texts}
    for name, text in texts.items():
        written = (FOLDER / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is stale: run python ci/json_schemas.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_and_closed(name: str) -> None:
    found = json.loads(schema(name).text)
    Draft202012Validator.check_schema(found)
    assert found["$id"].startswith("urn:tokexport:schema:")
    assert found["title"]
    objects = [one for one in parts(found) if "properties" in one and "type" in one]
    assert objects
    for one in objects:
        assert one["additionalProperties"] is False, one["description"]
        assert {*one["required"]} <= {*one["properties"]}
        for key, field in one["properties"].items():
            described = field.get("description") or key == "schema_version"
            assert described, f"{one['description']} {key}"
    used = {one["$ref"].rpartition("/")[2] for one in parts(found) if "$ref" in one}
    assert used == {*found.get("$defs", {})}


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a schema."""
    if isinstance(schema, dict):
        yield schema
    for one in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(one, dict | list):
            yield from parts(one)


@pytest.mark.parametrize("name", NAMES)
def test_the_version_is_that_of_the_documents(name: str) -> None:
    document = (FILES | COMMANDS)[name]
    assert schema(name).version == document.version
    found = json.loads(schema(name).text)
    roots = [found["$defs"][one["$ref"].rpartition("/")[2]] for one in found.get("oneOf", ())]
    results = [one for one in roots or [found] if one["description"] != FAILURE]
    said = [one["properties"].get("schema_version", {"enum": []})["enum"] for one in results]
    if document.reports:
        assert said.pop() == [FILES["report.json"].version]
    assert all(one in ([], [document.version]) for one in said)
    assert not document.numbered or all(said)


@pytest.mark.parametrize("bundle", sorted(BUNDLES.glob("*/")), ids=lambda path: path.name)
def test_the_manifest_of_an_older_bundle_fits(bundle: Path) -> None:
    check_file(bundle / "manifest.json")


def test_a_report_of_an_older_version_does_not_fit() -> None:
    report = json.loads((BUNDLES / "kernels_ort" / "report.json").read_text())
    assert report["schema_version"] == 1
    assert fault("report.json", report)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("undeclared",), 1),
        (("runtime", "undeclared"), 1),
        (("inputs", 0, "undeclared"), 1),
        (("gates", "output", "undeclared"), 1.0),
        (("source", "undeclared"), ""),
        (("status",), "MAYBE"),
        (("artifact",), None),
        (("gates", "output", "scale"), "1"),
        (("inputs", 0, "shape", 0), 1.5),
        (("schema_version",), 2),
        (("token_schedule",), {}),
    ],
)
def test_what_no_manifest_holds_is_found(path: tuple[Any, ...], value: Any) -> None:
    manifest = json.loads((BUNDLES / "kernels_ort" / "manifest.json").read_text())
    assert not fault("manifest.json", manifest)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert fault("manifest.json", manifest)


def test_a_missing_key_is_found() -> None:
    manifest = json.loads((BUNDLES / "kernels_ort" / "manifest.json").read_text())
    del manifest["artifact"]
    assert "'artifact' is a required property" in fault("manifest.json", manifest)


def test_a_bundle_with_an_older_report_is_refused_by_the_helper() -> None:
    with pytest.raises(AssertionError, match=r"report\.json"):
        check_bundle(BUNDLES / "kernels_ort")


ERROR = {"kind": "UsageError", "what": "It is not there.", "where": "", "fix": ""}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_may_end_with_an_error_alone(name: str) -> None:
    assert not fault(name, {"exit_code": 2, "error": ERROR})
    for wrong in (
        {"exit_code": 0, "error": ERROR},
        {"exit_code": 2, "error": None},
        {"exit_code": 3, "error": ERROR | {"undeclared": 1}},
        {"exit_code": 77, "error": ERROR},
        {"exit_code": 2, "error": {**ERROR, "where": None}},
    ):
        assert fault(name, wrong), wrong


def test_what_needs_another_version_is_said() -> None:
    old = json.loads(schema("report.json").text)
    new = json.loads(schema("report.json").text)
    new["properties"]["added"] = {"type": "string"}
    new["properties"]["target"]["description"] = "Another text."
    assert json_schemas.lost(old, new) == []
    new["$defs"]["Timings"] = new["$defs"].pop("Timing")
    new["properties"]["samples"]["type"] = "string"
    del new["properties"]["status"]
    said = ["Timing.median_ms is gone", "samples has another type", "status is gone"]
    assert {*said} < {*json_schemas.lost(old, new)}
    new["$id"] = new["$id"].replace(":2", ":3")
    assert json_schemas.lost(old, new) == []


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Typed(TypedDict, total=False):
    """An object with a key that may be missing.

    Attributes:
        number: A number.
    """

    number: float


@dataclass(frozen=True)
class Held:
    """A class that holds itself.

    Attributes:
        within: The same; None at the end.
        pair: A text and its count.
        colour: Which colour.
        typed: A typed object.
        names: Counts by name.
        anything: Whatever there is.
    """

    within: Held | None
    pair: tuple[str, int]
    colour: Colour
    typed: Typed
    names: dict[str, tuple[int, ...]]
    anything: Any = None


GOOD: dict[str, Any] = {
    "within": None,
    "pair": ["a", 1],
    "colour": "red",
    "typed": {},
    "names": {"a": [1, 2]},
    "anything": {"b": [None]},
}


@pytest.mark.parametrize("finite", [False, True])
def test_a_type_becomes_a_schema(finite: bool) -> None:
    found = JsonTypes({}, finite=finite, older=False)
    written = found.object_of(Held)
    assert written["properties"]["within"]["description"] == "The same; null at the end."
    checks = Draft202012Validator({**written, "$defs": found.definitions})
    assert checks.is_valid({**GOOD, "within": GOOD, "typed": {"number": 1.5}})
    assert checks.is_valid({**GOOD, "typed": {"number": "NaN"}}) is not finite
    for wrong in (
        {"pair": ["a"]},
        {"pair": ["a", 1, 2]},
        {"pair": ["a", True]},
        {"colour": "green"},
        {"typed": {"number": None}},
        {"typed": {"other": 1}},
        {"names": {"a": ["1"]}},
        {"within": {**GOOD, "pair": []}},
    ):
        assert not checks.is_valid(GOOD | wrong), wrong


def test_older_files_may_lack_what_has_a_default() -> None:
    found = JsonTypes({}, finite=True, older=True)
    assert "anything" not in found.object_of(Held)["required"]
    assert "names" in found.object_of(Held)["required"]


def test_a_type_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError, match="complex"):
        JsonTypes({}, finite=True, older=False).of(complex)


def test_two_classes_of_one_name_are_refused() -> None:
    other = dataclass(frozen=True)(type("Held", (), {"__doc__": "Another.", "__annotations__": {}}))
    found = JsonTypes({}, finite=True, older=False)
    found.of(Held)
    with pytest.raises(TypeError, match="two classes are called Held"):
        found.of(other)
