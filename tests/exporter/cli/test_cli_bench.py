"""What ``tokexport bench`` measures and writes, and how it ends; no test reads a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.cli import MODELS, Answer, refusal, tokexport
from helpers.thorough import thorough_but

from tokexport.exporter.backends.known import BACKENDS
from tokexport.runtimes.signatures import KEY_VARIABLE

SHORT = ("--rounds", "5", "--time-limit", "1")
#: A precision that ONNX Runtime does not compute in here.
NOT_ORTS = next(
    name for name in BACKENDS["openvino"].precisions if name not in BACKENDS["ort"].precisions
)


def bench(source: str, output: Path, *arguments: object) -> Answer:
    return tokexport("bench", f"{MODELS}:{source}", "--output", output, *SHORT, *arguments)


def by_name(measurement: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in measurement["rows"]}


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A model that merges by itself with a mean, which the plain export overwrites."""
    folder = tmp_path_factory.mktemp("merging") / "out"
    options = ("--unreduced", f"{MODELS}:unmerged_vit", "--targets", "ort", "--json")
    answer = bench("with_inputs", folder, *options, "--precisions", f"fp32,{NOT_ORTS}")
    assert answer.code == 0, answer
    return folder, answer


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plain ViT with a reduction put in, for OpenVINO, two images at once."""
    folder = tmp_path_factory.mktemp("reduced") / "out"
    options = ("--reduce", "tome:r=6", "--targets", "openvino", "--batches", "2", "--no-plot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, "nowhere.pem")  # which is not asked of bundles of its own
        answer = bench("plain_vit", folder, *options, "--json")
    assert answer.code == 0, answer
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.txt"]
    return answer.json


def test_every_candidate_has_its_row(merging: tuple[Path, Answer]) -> None:
    (found,) = merging[1].json["measurements"]
    assert list(by_name(found)) == [
        "eager",
        "plain export, ort fp32",
        "plain export, vit optimizer, ort fp32",
        "tokexport, ort fp32",
        f"tokexport, ort {NOT_ORTS}",
        "unreduced: plain export, ort fp32",
        "unreduced: tokexport, ort fp32",
        f"unreduced: tokexport, ort {NOT_ORTS}",
        "GEMM floor, ort fp32",
    ]
    assert found["rounds"] >= 5
    assert found["floor_products"] == 2
    assert found["floor_macs"] == 9 * 8 * 24 + 8 * 5


def test_a_wrong_answer_is_named_and_timed(merging: tuple[Path, Answer]) -> None:
    (found,) = merging[1].json["measurements"]
    rows = by_name(found)
    wrong = rows["plain export, ort fp32"]
    assert wrong["wrong"]
    assert wrong["error"] > 0.1
    assert wrong["timing"]["median_ms"] > 0
    for name in ("tokexport, ort fp32", "unreduced: plain export, ort fp32"):
        assert not rows[name]["wrong"]
        assert rows[name]["error"] < 1e-5
    text = (merging[0] / "bench.txt").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("plain export, ort fp32")]
    assert f"wrong by {wrong['error']:.1e}: output 'output' is off by" in line


def test_a_precision_that_a_target_lacks_is_skipped_in_words(merging: tuple[Path, Answer]) -> None:
    (found,) = merging[1].json["measurements"]
    row = by_name(found)[f"tokexport, ort {NOT_ORTS}"]
    assert row["timing"] is None
    assert row["note"].startswith("skipped: the target 'ort' takes fp32")


def test_ratios_come_from_the_rounds(merging: tuple[Path, Answer]) -> None:
    (found,) = merging[1].json["measurements"]
    rows = by_name(found)
    times = {name: row["timing"] for name, row in rows.items() if row["timing"]}
    ours, plain = times["tokexport, ort fp32"], times["plain export, ort fp32"]
    row = rows["tokexport, ort fp32"]
    assert row["held_against"] == "plain export, ort fp32"
    assert row["over_plain"]["of_medians"] == plain["median_ms"] / ours["median_ms"]
    assert row["over_plain"]["of_minima"] == plain["min_ms"] / ours["min_ms"]
    floor = times["GEMM floor, ort fp32"]["median_ms"]
    assert row["over_floor"] == pytest.approx(ours["median_ms"] / floor)
    macs = found["unreduced_macs"] / found["macs"]
    for key, way in (("over_plain", "plain export"), ("over_ours", "tokexport")):
        before = times[f"unreduced: {way}, ort fp32"]["median_ms"]
        assert row["realisation"][key] == pytest.approx(before / ours["median_ms"] / macs)


def test_table_json_and_plots_are_written(merging: tuple[Path, Answer]) -> None:
    folder, answer = merging
    assert sorted(path.name for path in folder.iterdir()) == [
        "bench.json",
        "bench.png",
        "bench.svg",
        "bench.txt",
    ]
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(folder / "bench.svg").getroot().tag.endswith("svg")
    written = json.loads((folder / "bench.json").read_text())
    assert written == {key: value for key, value in answer.json.items() if key in written}
    lines = (folder / "bench.txt").read_text().splitlines()
    assert lines[0] == f"{MODELS}:with_inputs → ort in fp32, {NOT_ORTS}"
    assert lines[1] == f"unreduced: {MODELS}:unmerged_vit"
    assert any(line.startswith("GEMM floor: 2 products with weights") for line in lines)
    assert any(line.startswith("warning  Batch 1 was measured in 5 rounds") for line in lines)
    refusal(bench("with_inputs", folder), 2, folder.parent, "is there already", "--force")


@pytest.mark.thorough
def test_with_reduce_the_source_is_the_unreduced_model(reduced: dict[str, Any]) -> None:
    (found,) = reduced["measurements"]
    assert (reduced["reduction"], reduced["unreduced"]) == ("tome:r=6", f"{MODELS}:plain_vit")
    assert found["batch"] == 2
    rows = by_name(found)
    assert list(rows) == [
        "eager",
        "plain export, ort fp32",
        "plain export, openvino fp32",
        "tokexport, openvino fp32",
        "unreduced: plain export, openvino fp32",
        "unreduced: tokexport, openvino fp32",
        "GEMM floor, ort fp32",
    ]
    assert all(row["timing"] for row in rows.values()), rows
    assert not any(row["wrong"] for row in rows.values()), rows
    assert rows["tokexport, openvino fp32"]["held_against"] == "plain export, openvino fp32"
    assert "aten.sort.stable" in rows["plain export, openvino fp32"]["note"]
    assert "aten" not in rows["unreduced: plain export, openvino fp32"]["note"]
    assert all(" thread" in row["note"] for row in rows.values()), rows
    assert found["floor_products"] == 13
    assert 1.1 < found["unreduced_macs"] / found["macs"] < 1.5
    assert rows["plain export, ort fp32"]["realisation"] is None
    realised = rows["tokexport, openvino fp32"]["realisation"]
    assert realised["over_plain"] > 0
    assert realised["over_ours"] > 0


@pytest.mark.parametrize("compiled", thorough_but([False], [False, True]))
def test_what_no_export_takes_is_a_row_with_the_reason(compiled: bool, tmp_path: Path) -> None:
    options = ("--input-shape", "1,4", "--targets", "ort", "--no-plot")
    options += ("--torch-compile",) * compiled
    answer = bench("Bessel", tmp_path / "out", *options)
    assert answer.code == 0, answer
    lines = {line.split("  ")[0]: line for line in answer.stdout.splitlines()}
    assert "torch.onnx.export: " in lines["plain export, ort fp32"]
    assert "bessel" in lines["plain export, ort fp32"]
    assert "bessel_j0.default has no ONNX form" in lines["tokexport, ort fp32"]
    assert "has no ONNX form" in lines["GEMM floor, ort fp32"]
    for name in ("eager", "torch.compile") * compiled:  # what stands alone is not timed
        assert float(lines[name].split()[1]) > 0
    assert "wrong" not in answer.stdout.partition("plain ÷ this: ")[0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--targets", "trt"), ("no target 'trt' to time", "ort,openvino")),
        (("--precisions", "fp31"), ("no precision 'fp31'", "fp32")),
        (("--precisions", ","), ("no precisions to time", "--precisions")),
        (("--batches", "1,many"), ("--batches '1,many' is not a list", "At 'many'", "1,8")),
        (("--batches", "2,2"), ("batches is given twice",)),
        (("--batches", "0"), ("--batches '0' is not a list",)),
        (("--rounds", "0"), ("--rounds is 0",)),
        (("--reduce", "tome", "--unreduced", f"{MODELS}:plain_vit"), ("Leave one of them out",)),
        (("--unreduced", f"{MODELS}:with_inputs"), ("takes other inputs", "--unreduced")),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_does_not_fit_is_refused(
    options: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = bench("plain_vit", tmp_path / "out", "--targets", "ort", *options)
    refusal(answer, 2, tmp_path, *parts)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_names_the_extra_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = tokexport("bench", "models.nowhere:build", "--output", tmp_path / "out")
    refusal(answer, 6, tmp_path, "pip install 'tokexport[plot]'")
    assert list(tmp_path.iterdir()) == []
