"""The JSON Schemas are found by the name of a file or of a command."""

from __future__ import annotations

import json

import pytest

from tokexport.exporter.errors import UsageError
from tokexport.exporter.schemas.stored import StoredSchema, all_schemas, schema


def test_files_come_first() -> None:
    names = [one.name for one in all_schemas().schemas]
    files = [name for name in names if name.endswith(".json")]
    assert names[: len(files)] == files
    assert {"report.json", "manifest.json"} <= {*files}
    assert len(names) > len(files)


@pytest.mark.parametrize("one", all_schemas().schemas, ids=lambda one: one.name)
def test_one_says_what_it_describes(one: StoredSchema) -> None:
    assert one == schema(one.name)
    found = json.loads(one.text)
    assert found["$id"] == one.id
    assert one.id.endswith(f":{one.version}")
    assert found["description"].startswith(one.about)


def test_a_file_and_a_command_of_one_stem_are_two() -> None:
    assert schema("sweep").id == "urn:tokexport:schema:command:sweep:2"
    assert schema("sweep.json").id == "urn:tokexport:schema:file:sweep:2"


def test_the_ending_of_a_file_may_be_left_out() -> None:
    assert schema("manifest") == schema("manifest.json")


@pytest.mark.parametrize("name", ["", "nothing", "../report", "report.json.json", "/etc/hosts"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="There is no schema"):
        schema(name)


def test_a_name_that_is_nearly_one_is_said() -> None:
    with pytest.raises(UsageError, match=r"Did you mean report\.json\?"):
        schema("raport.json")
