"""The campaign of speed trials goes on where it stopped, and writes what is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import speed_trials

BUNDLE = Path(__file__).parents[1] / "bundles" / "kernels_ort"


TRIALS = tuple(speed_trials.Trial("ort", "one", kind, 0) for kind in ("A/A", "planted"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two bundles for ort, and a place for results."""
    for name in ("plain", "planted-one"):
        shutil.copytree(BUNDLE, tmp_path / "ort" / name)
    fitted = json.dumps({"width": 512, "ratio": 1.06, "withheld": 0.0})
    speed_trials.fitted_file(tmp_path / "ort", "one").write_text(fitted, encoding="utf-8")
    monkeypatch.setattr(speed_trials, "RESULTS", tmp_path / "trials.jsonl")
    return tmp_path


def test_trials_are_resumed_and_written_as_a_page(folder: Path) -> None:
    speed_trials.run(folder, TRIALS[:1], float("inf"))
    (first,) = speed_trials.known()
    speed_trials.run(folder, TRIALS, float("inf"))
    assert speed_trials.known()[0] == first
    assert [one["kind"] for one in speed_trials.known()] == ["A/A", "planted"]
    # the suite gives no time, so a block is all that there is
    assert {one["verdict"] for one in speed_trials.known()} == {"undecided"}
    page = speed_trials.page(speed_trials.known())
    assert "| ort | one | A/A | 1 | 0 (0.0%) | 0 (0.0%) | 1 (100.0%) |" in page
    assert "- Planted: ort, one: a product 512 channels wide, which took 1.060 times" in page


def test_no_trial_begins_behind_the_end(folder: Path) -> None:
    speed_trials.run(folder, TRIALS, 0.0)
    assert speed_trials.known() == []


def test_any_first_part_of_the_trials_holds_every_kind() -> None:
    trials = [*speed_trials.wanted()]
    assert len({(one.target, one.threads, one.kind) for one in trials[:8]}) == 8
    assert len(trials) == len({*trials}) == 2 * 2 * sum(speed_trials.COUNTS.values())


def test_a_page_counts_quiet_trials_apart() -> None:
    one = {
        **{"target": "ort", "threads": "all", "kind": "A/A", "number": 0, "ratio": 1.001},
        **{"seconds": 17.0, "deviation": 0.01, "withheld": 0.01, "load": 0.25},
        **{"verdict": "not slower", "machine": "a machine"},
    }
    lines = [one, one | {"number": 1, "verdict": "undecided", "withheld": 0.5, "deviation": None}]
    quiet, every = speed_trials.page(lines).split("## All trials")
    assert (
        "| ort | all | A/A | 1 | 0 (0.0%) | 1 (100.0%) | 0 (0.0%) | 1.001 | 17 | 1.0% | 1% | 0.2 |"
        in quiet
    )
    assert "| ort | all | A/A | 2 | 0 (0.0%) | 1 (50.0%) | 1 (50.0%) |" in every
    assert "None yet." in speed_trials.page([])
