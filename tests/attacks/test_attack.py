"""The campaign of attacks notices every end that a case can have, and a slice of it is clean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attack import Campaign
from attacks.child import Child
from attacks.kinds import FINE, Kind, drawn, kind_named
from attacks.known_ends import ENDS
from attacks.page import page
from helpers.thorough import thorough_but


def test_every_end_of_a_case_is_noticed(tmp_path: Path) -> None:
    kind = kind_named("known_ends")
    with Child(kind, "itself", tmp_path, seed=0) as child:
        outcomes = [child.run(index) for index in range(len(ENDS))]
    assert [one.verdict for one in outcomes] == [verdict for _, verdict in ENDS]
    # What ended the process was run once more in one of its own.
    ended = {"crashed", "hung", "over budget"}
    assert all(one.alone == (one.verdict if one.verdict in ended else "") for one in outcomes)
    assert all(one.what == f"case {one.index} in []" for one in outcomes)


class Counted(Campaign):
    """Notes the first case of every line that it runs."""

    ran: ClassVar[list[int]] = []

    def run_line(self, kind: Kind, seed: int, first: int, count: int) -> dict[str, Any]:
        """Runs some cases, all of one target, and returns their line."""
        self.ran.append(first)
        return super().run_line(kind, seed, first, count)


def test_results_are_resumed_and_written_as_a_page(tmp_path: Path) -> None:
    campaign = Counted(tmp_path / "attack.jsonl", tmp_path)
    kind = kind_named("known_ends")
    campaign.run_kind(kind, 0, 3, float("inf"), again=False)
    (line,) = campaign.known()
    assert line["verdicts"] == {"right": 1, "crashed": 1, "refused": 1}
    assert [one["index"] for one in line["found"]] == [1]
    assert campaign.ran == [0]
    campaign.run_kind(kind, 0, 3, float("inf"), again=False)
    assert campaign.ran == [0]
    campaign.run_kind(kind, 0, 3, float("inf"), again=True)
    assert campaign.ran == [0, 0]
    assert len(campaign.known()) == 1
    said = page(campaign.known(), ["known_ends"])
    assert "| known_ends | itself | 3 | 1 | 1 | 0 | 0 | 1 | 0 | 0 |" in said
    assert "- known_ends 1, itself: case 1 in []: **crashed** (alone: crashed)" in said


def test_a_case_is_the_same_wherever_it_is_drawn() -> None:
    assert drawn("bundles", 0, 7).random() == drawn("bundles", 0, 7).random()
    numbers = {drawn(kind, seed, 7).random() for kind in ("a", "b") for seed in (0, 1)}
    assert len(numbers) == 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundles of two targets, compiled once."""
    from attacks.honest_bundles import compile_bundle

    folder = tmp_path_factory.mktemp("bundles")
    for target in ("ort fp32", "openvino fp32"):
        compile_bundle(target, folder / target)
    return folder


@pytest.mark.parametrize("target", thorough_but(["ort fp32"], ["ort fp32", "openvino fp32"]))
def test_damaged_bundles_are_refused_or_run_rightly(target: str, bundles: Path) -> None:
    with Child(kind_named("bundles"), target, bundles, seed=1) as child:
        outcomes = [child.run(index) for index in range(40)]
    found = [json.dumps(vars(one)) for one in outcomes if one.verdict not in FINE]
    assert not found, "\n".join(found)
    assert sum(one.verdict == "refused" for one in outcomes) > 20
