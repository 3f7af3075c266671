"""A sample of ``ci/operator_table.py``: its rows say what happens, and its page says its rows."""

from __future__ import annotations

import operator_table
import pytest
from helpers.torchvision_ops import define_torchvision_operators
from operator_families import FAMILIES

#: Operators that are asked for anew, as a small family calls them.
FAMILY = "vit-pytorch simple_vit_with_fft"
SAMPLE = ("aten.fft_fft2.default", "aten.softmax.int", "aten.linear.default")


def test_a_sample_of_the_rows_says_what_happens() -> None:
    define_torchvision_operators()
    calls = operator_table.calls_of(FAMILY)
    assert not isinstance(calls, str), calls
    rows = {
        (one["operator"], one["switches"]): one
        for one in operator_table.known()
        if "operator" in one
    }
    assert {*calls} <= {*rows}
    asked = [key for key in calls if key[0] in SAMPLE]
    assert len(asked) >= 2
    for key in asked:
        found = operator_table.asked(calls[key])
        said = {target: rows[key][target] for target in operator_table.TARGETS}
        assert {target: found[target] for target in said} == said


def test_every_operator_of_every_family_has_its_row() -> None:
    results = operator_table.known()
    families = {one["family"]: one for one in results if "family" in one}
    assert {*families} <= {*FAMILIES}
    rows = {(one["operator"], one["switches"]) for one in results if "operator" in one}
    called = {tuple(key) for one in families.values() for key in one.get("operators", ())}
    assert called <= rows
    assert sum("operators" in one for one in families.values()) >= 60


@pytest.mark.parametrize("target", operator_table.TARGETS)
def test_no_operator_gives_wrong_numbers_or_fails_without_a_name(target: str) -> None:
    rows = [one for one in operator_table.known() if "operator" in one]
    fine = ("works", "built", "ModelNotSupportedError", "OperatorRefusedError")
    assert not [one["operator"] for one in rows if not one[target].startswith(fine)]


def test_the_page_shows_what_is_known() -> None:
    page = operator_table.table(operator_table.known())
    assert operator_table.TABLE.read_text(encoding="utf-8") == page
