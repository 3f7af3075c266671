"""``tokexport schema``: the list, one schema, and names that there are not."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.cli import refusal, tokexport

from tokexport.exporter.schemas.stored import all_schemas, schema


def test_without_a_name_it_lists_them() -> None:
    answer = tokexport("schema")
    assert answer.code == 0
    lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
    assert lines == [[one.name, str(one.version), one.about] for one in all_schemas().schemas]


def test_the_list_as_json() -> None:
    found = tokexport("schema", "--json").json
    assert found["exit_code"] == 0
    assert {"report.json": 2, "manifest.json": 1, "run": 1}.items() <= {
        one["name"]: one["version"] for one in found["schemas"]
    }.items()


def test_with_a_name_it_prints_the_schema() -> None:
    for options in ((), ("--json",)):
        answer = tokexport("schema", "report.json", *options)
        assert (answer.code, answer.stderr) == (0, "")
        assert answer.stdout == schema("report.json").text
        assert json.loads(answer.stdout)["title"] == "report.json"


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    said = refusal(tokexport("schema", "raport.json"), 2, tmp_path, "'raport.json'")
    assert "Did you mean report.json?" in said
    answer = tokexport("schema", "nothing", "--json")
    assert answer.code == 2
    assert answer.json["error"]["kind"] == "UsageError"
