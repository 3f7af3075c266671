"""Kills and limits leave a whole bundle or none, and say which."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks.child import Child
from attacks.kinds import FINE, kind_named

#: Of the campaign's cases, those that put a bundle in its place; the first left a folder once.
PUT_IN_PLACE = (4, 66, 67, 71, 78, 1, 2, 7, 8, 15, 16, 18, 19, 22, 26, 32, 36, 38)
#: Those that compile, and met a finalizer once.
COMPILED = (134, 165)


def run(name: str, numbers: tuple[int, ...], folder: Path) -> None:
    kind = kind_named(name)
    with Child(kind, "ort", folder / name, seed=0) as child:
        outcomes = [child.run(index) for index in numbers]
    assert [one for one in outcomes if one.verdict not in FINE] == []


def test_a_process_that_is_killed_leaves_one_bundle_whole(tmp_path: Path) -> None:
    run("kills", PUT_IN_PLACE, tmp_path)


@pytest.mark.thorough
def test_a_compile_that_is_killed_leaves_one_bundle_whole(tmp_path: Path) -> None:
    run("kills", COMPILED, tmp_path)


@pytest.mark.thorough
def test_limits_of_the_system_are_kept_to(tmp_path: Path) -> None:
    run("limits", tuple(range(20)), tmp_path)
