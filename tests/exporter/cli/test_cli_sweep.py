"""What ``tokexport sweep`` measures and writes, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.cli import MODELS, Answer, refusal, tokexport

from tokexport.exporter.sweep.pareto import Trade, front
from tokexport.runtimes.signatures import KEY_VARIABLE

SOURCE = f"{MODELS}:plain_vit"


def sweep(output: Path, *arguments: object) -> Answer:
    return tokexport(
        "sweep", SOURCE, "--reduce", "tome", "--target", "ort", "--output", output, *arguments
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    folder = tmp_path_factory.mktemp("swept")
    random = np.random.default_rng(0)
    x = random.standard_normal((5, 3, 24, 24)) + 2 * random.standard_normal((5, 3, 1, 1))
    labels = np.array([1, 4, 1, 1, 4])
    doubled = {"x": np.repeat(x.astype(np.float32), 2, axis=0), "labels": np.repeat(labels, 2)}
    np.savez(folder / "data.npz", **doubled)
    given = ("--inputs", folder / "data.npz", "--samples", "5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, "nowhere.pem")  # which is not asked of bundles of its own
        answer = sweep(folder / "out", "--values", "0,6", *given, "--json")
    assert answer.code == 0, answer
    assert answer.json["inputs"] == "5 of 10 samples of data.npz"
    return folder / "out", answer


def test_every_value_has_its_saving_its_cost_and_its_speed(swept: tuple[Path, Answer]) -> None:
    found = swept[1].json
    assert (found["method"], found["option"], found["quality"]) == ("tome", "r", "accuracy")
    assert found["unreduced_quality"] == 1.0
    nothing, some = found["points"]
    assert (nothing["value"], some["value"]) == (0, 6)
    assert nothing["macs_ratio"] == 1.0
    assert 0.6 < some["macs_ratio"] < 0.95
    assert some["reduction"]["tokens"] == [37, 31, 25, 19]
    assert nothing["reduction"]["agreement"]["logits"]["top1"] == 1.0
    assert nothing["reduction"]["agreement"]["logits"]["cosine"] == pytest.approx(1.0)
    assert some["reduction"]["agreement"]["logits"]["kl"] > 0
    for point in found["points"]:
        assert point["speed"]["baseline"] == "unreduced"
        assert list(point["speed"]["ratios"]) == [point["reduction"]["recipe"]]
        assert point["speed"]["pairs"] >= 5
        assert point["quality"] == point["reduction"]["accuracy_reduced"]


def test_the_front_holds_what_nothing_beats_at_any_speed(swept: tuple[Path, Answer]) -> None:
    found = swept[1].json
    trades = [Trade(1.0, 1.0, found["unreduced_quality"])]
    for point in found["points"]:
        (ratio,) = point["speed"]["ratios"].values()
        minima = [ratio["of_minima"]] if ratio["noisy"] else []
        ends = [ratio["low"], ratio["high"], *minima]
        trades.append(Trade(min(ends), max(ends), point["quality"]))
    said = [found["unreduced_standing"], *(point["standing"] for point in found["points"])]
    assert said == front(trades)


def test_table_json_and_plots_are_written(swept: tuple[Path, Answer]) -> None:
    folder, answer = swept
    assert sorted(path.name for path in folder.iterdir()) == [
        "sweep.json",
        "sweep.png",
        "sweep.svg",
        "sweep.txt",
    ]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(folder / "sweep.svg").getroot().tag.endswith("svg")
    written = json.loads((folder / "sweep.json").read_text())
    assert written == {key: value for key, value in answer.json.items() if key in written}
    lines = (folder / "sweep.txt").read_text().splitlines()
    assert any(line.startswith("unreduced") and "100.00%" in line for line in lines)
    assert any(line.split()[:2] == ["6", "19"] for line in lines)
    assert any(line.startswith("Pareto front  of speed-up and accuracy: ") for line in lines)


@pytest.mark.thorough
def test_another_option_without_labels_and_without_a_plot(tmp_path: Path) -> None:
    options = ("--option", "prop_attn", "--values", "false", "--no-plot")
    answer = sweep(tmp_path / "out", *options)
    assert answer.code == 0, answer
    assert "agreement on seeded synthetic inputs" in answer.stdout
    assert "samples, on " in answer.stdout
    assert "random inputs: the agreement says little" in answer.stdout
    assert "Pareto front  of speed-up and top-1 agreement: " in answer.stdout
    assert max(map(len, answer.stdout.splitlines())) < 500
    assert "…" in answer.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.json", "sweep.txt"]
    again = sweep(tmp_path / "out", *options)
    refusal(again, 2, tmp_path, "is there already", "--force")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--values", "4", "--option", "keep"), ("no option 'keep'", "r, inflection, prop_attn")),
        (("--values", "4,many"), ("Option 'r' of the recipe is", "a whole number")),
        (("--values", ","), ("no values", "--values 4,8,12,16")),
    ],
)
def test_values_that_do_not_fit(
    options: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    refusal(sweep(tmp_path / "out", *options), 2, tmp_path, *parts)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_names_the_extra_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = ("models.nowhere:build", "--reduce", "tome", "--values", "4", "--target", "ort")
    answer = tokexport("sweep", *given, "--output", tmp_path / "out")
    refusal(answer, 6, tmp_path, "pip install 'tokexport[plot]'", "--no-plot")
    assert list(tmp_path.iterdir()) == []
