"""What ``tokexport bench BUNDLE`` measures and says, with real runtimes; no test reads a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import Answer, refusal, tokexport
from helpers.json_schemas import check_file
from torch import Tensor, nn

import tokexport as package
from tokexport.exporter.bench_bundle import measure, probe, results
from tokexport.exporter.bench_bundle.config import BundleBenchConfig
from tokexport.exporter.bench_bundle.measure import bench_bundles
from tokexport.exporter.errors import UsageError
from tokexport.exporter.typed_json import typed
from tokexport.runtimes.cores.processor_use import hottest_celsius
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.processor import usable_cores

BUNDLES = Path(__file__).parents[2] / "bundles"
SHORT = ("--rounds", "12", "--time-limit", "1")


class Products(nn.Module):
    """Two products of an input (2, 8, 64), by way of so many hidden channels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(64, hidden, generator=draw) / 8)
        self.second = nn.Parameter(torch.randn(hidden, 64, generator=draw) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.second


#: Of the weights of the large model.
LARGE_BYTES = 2 * 64 * 65536 * 4


@dataclass(frozen=True)
class Pair:
    """Two bundles of the same inputs: of few weights, and of many."""

    small: Path
    large: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    for name, hidden in (("small", 8), ("large", 65536)):
        example = torch.randn(2, 8, 64)
        package.compile(
            Products(hidden).eval(), example, "ort", output=folder / name, timed=False, page=False
        )
    return Pair(folder / "small", folder / "large")


@pytest.fixture(scope="module")
def both(pair: Pair) -> dict[str, Any]:
    answer = tokexport("bench", pair.small, pair.large, *SHORT, "--threads", "1", "--json")
    assert answer.code == 0, answer
    return answer.json


def test_a_row_for_each_number_of_threads(tmp_path: Path) -> None:
    output = tmp_path / "bundle-bench.json"
    options = ("--threads", "2,1", *SHORT, "--output", output, "--json")
    answer = tokexport("bench", BUNDLES / "kernels_ort", *options)
    assert answer.code == 0, answer
    found = answer.json
    assert [row["threads"] for row in found["rows"]] == [2, 1]
    for row in found["rows"]:
        times = row["latency"]
        assert times["runs"] == 12 or row["time_limited"]
        order = ("min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms")
        assert sorted(times[name] for name in order) == [times[name] for name in order]
        assert row["batch"] == 4
        assert row["samples_per_s"] == pytest.approx(4e3 / times["mean_ms"])
        assert min(row[name] for name in ("import_ms", "load_ms", "first_run_ms")) > 0
        assert row["ratio"] is None
    assert found["host"] == ""
    (bundle,) = found["bundles"]
    assert (bundle["flavour"], bundle["precision"]) == ("onnxruntime-cpu", "fp32")
    files = (BUNDLES / "kernels_ort").iterdir()
    assert bundle["bundle_bytes"] == sum(path.stat().st_size for path in files)
    check_file(output)
    written = json.loads(output.read_text())
    assert {**written, "exit_code": 0, "error": None, "files": [str(output)]} == found
    again = typed(results.BundleBench, written)
    assert again.to_json() == written


def test_one_thread_and_all_by_default() -> None:
    answer = tokexport("bench", BUNDLES / "kernels_openvino", *SHORT, "--json")
    counts = sorted({1, usable_cores()})
    assert [row["threads"] for row in answer.json["rows"]] == counts


def test_two_bundles_are_timed_in_turns(both: dict[str, Any], pair: Pair) -> None:
    first, second = both["rows"]
    assert [row["bundle"] for row in both["rows"]] == [str(pair.small), str(pair.large)]
    assert first["ratio"] is None
    ratio = second["ratio"]
    assert ratio["of_medians"] < 1  # it has 8192 times the work
    assert ratio["low"] <= ratio["of_medians"] <= ratio["high"]
    assert first["latency"]["runs"] == second["latency"]["runs"]


def test_each_is_measured_in_a_process_of_its_own(both: dict[str, Any]) -> None:
    small, large = (row["memory"] for row in both["rows"])
    if small["peak_bytes"] is None:
        pytest.fail("this system says nothing of memory")
    assert large["loaded_bytes"] - small["loaded_bytes"] > 0.9 * LARGE_BYTES
    for one in (small, large):
        assert one["peak_bytes"] >= one["loaded_bytes"] > 0
    assert small["peak_bytes"] < LARGE_BYTES + (100 << 20)  # the large one is not in it


def test_the_tables_name_the_processor_and_each_bundle(pair: Pair) -> None:
    answer = tokexport("bench", pair.small, pair.large, *SHORT, "--threads", "1")
    assert answer.code == 0, answer
    for said in (str(pair.small), str(pair.large), "p99 ms", "first ÷ this", "MB at most", "cores"):
        assert said in answer.stdout
    assert "12 runs: its 99th percentile" in answer.said


def test_a_runtime_that_takes_fewer_threads_is_noted() -> None:
    many = usable_cores() + 2
    answer = tokexport("bench", BUNDLES / "kernels_openvino", *SHORT, "--threads", many, "--json")
    (row,) = answer.json["rows"]
    said = f"openvino-cpu took {row['threads']} threads, and {many} were asked for."
    assert (said in row["notes"]) == (row["threads"] != many)


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "an option of a model": (("--seed", "1"), 2, "measured as it is, without --seed"),
    "no thread": (("--threads", "0"), 2, "--threads '0' is not a list"),
    "no number": (("--threads", "1,x"), 2, "--threads '1,x' is not a list"),
    "no batch": (("--batches", "x"), 2, "--batches 'x' is not a list"),
    "a batch below 1": (("--batches", "0"), 2, "--batches '0' is not a list"),
    "a batch twice": (("--batches", "4,4"), 2, "A batch is given twice"),
    "a batch it has not": (("--batches", "8"), 2, "There is no artifact for 8 samples"),
    "a number twice": (("--threads", "1,1"), 2, "given twice"),
    "no run": (("--rounds", "0"), 2, "--rounds is 0"),
    "no time": (("--time-limit", "nan"), 2, "--time-limit is nan"),
    "endless": (("--time-limit", "inf"), 2, "--time-limit is inf"),
    "a model beside it": (("nowhere",), 5, "There is no bundle"),
    "nowhere to write": (("--output", "nowhere/a.json"), 4, "does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options, code, said = REFUSED[case]
    answer = tokexport("bench", BUNDLES / "kernels_ort", *options)
    refusal(answer, code, tmp_path, said)


def test_a_model_takes_no_second_argument_and_one_number_of_threads() -> None:
    answer = tokexport("bench", "models.cli_models:plain_vit", BUNDLES / "kernels_ort")
    assert (answer.code, "the first is none" in answer.said) == (2, True), answer
    answer = tokexport("bench", "models.cli_models:plain_vit", "--threads", "1,2")
    assert (answer.code, "of a bundle only" in answer.said) == (2, True), answer


def test_each_artifact_of_a_ladder_is_measured(tmp_path: Path) -> None:
    ladder, other = tmp_path / "ladder", tmp_path / "other"
    for folder, batch in ((ladder, (1, 3)), (other, (3, 5))):
        package.compile(
            Products(8).eval(),
            torch.randn(1, 8, 64),
            "ort",
            output=folder,
            batch=batch,
            timed=False,
            page=False,
        )
    answer = tokexport("bench", ladder, *SHORT, "--threads", "1", "--json")
    assert answer.code == 0, answer
    rows = answer.json["rows"]
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        expected = row["batch"] * 1e3 / row["latency"]["mean_ms"]
        assert row["samples_per_s"] == pytest.approx(expected)
    answer = tokexport("bench", ladder, *SHORT, "--threads", "1", "--batches", "3", "--json")
    assert [row["batch"] for row in answer.json["rows"]] == [3]
    answer = tokexport("bench", ladder, other, *SHORT, "--threads", "1", "--json")
    assert answer.code == 0, answer
    assert [row["batch"] for row in answer.json["rows"]] == [3, 3]
    said = "Only one of the bundles has an artifact for 1, 5 samples."
    assert said in answer.json["warnings"]


def damaged(folder: Path, name: str = "kernels_ort") -> Path:
    copy = folder / "a [bold]name[/] with 'quotes'"
    shutil.copytree(BUNDLES / name, copy)
    return copy


def test_an_odd_name_is_printed_as_it_is(tmp_path: Path) -> None:
    answer = tokexport("bench", damaged(tmp_path), *SHORT, "--threads", "1")
    assert answer.code == 0, answer
    assert answer.stdout.count("a [bold]name[/] with 'quotes'") >= 2


def test_an_altered_bundle_is_refused_by_the_measuring_process(tmp_path: Path) -> None:
    bundle = damaged(tmp_path)
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")
    answer = tokexport("bench", bundle, *SHORT)
    assert answer.code == 5, answer
    assert "'model.onnx' is not the one that was written" in answer.said


def test_a_bundle_without_reference_inputs_is_refused(tmp_path: Path) -> None:
    bundle = damaged(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["reference.npz"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    answer = tokexport("bench", bundle, *SHORT)
    assert answer.code == 5, answer
    assert "has no reference.npz" in answer.said


def test_two_bundles_of_other_inputs_are_refused(pair: Pair) -> None:
    answer: Answer = tokexport("bench", pair.small, BUNDLES / "kernels_ort", *SHORT)
    assert answer.code == 2, answer
    assert "take different inputs" in answer.said


def test_a_process_that_dies_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    job = probe.Job((str(BUNDLES / "kernels_ort"),), 4, 1, 5, 0.1, 0.0, False)
    dying = f"""
import os, sys
print("the end", file=sys.stderr, flush=True)
os.kill(os.getpid(), {signal.SIGABRT:d})
"""
    start = measure.subprocess.Popen

    def start_dying(program: list[str], **options: Any) -> Any:
        return start([*program[: program.index("-m")], "-c", dying], **options)

    monkeypatch.setattr(measure.subprocess, "Popen", start_dying)
    with pytest.raises(RunError) as caught:
        measure.in_own_process(job)
    assert "ended by signal SIGABRT before it answered" in caught.value.what
    assert caught.value.where == "The last that it printed: the end"


def test_a_process_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    job = probe.Job((str(BUNDLES / "kernels_ort"),), 4, 1, 5, 0.01, 0.0, False)
    monkeypatch.setenv("TOKEXPORT_TIME_LIMIT", "0.01")
    with pytest.raises(RunError, match="signal SIGKILL"):
        measure.in_own_process(job)


def test_percentiles_are_those_of_numpy() -> None:
    times = np.random.default_rng(0).gamma(2, 3, 257)
    found = results.latency_of(times.tolist())
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx(
        [np.quantile(times, share) for share in (0.5, 0.9, 0.99)]
    )
    assert results.latency_of([7.0]) == results.Latency(1, *[7.0] * 6)
    assert results.drift_of([1.0, 1.0]) is None
    assert results.drift_of([2.0, 9.0, 3.0]) == 1.5


def test_the_hottest_zone_is_read(tmp_path: Path) -> None:
    assert hottest_celsius(tmp_path) is None
    for at, text in enumerate(("41000\n", "63500\n", "not a number", "")):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{at}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    assert hottest_celsius(tmp_path) == 63.5


def test_from_python_no_more_than_two_bundles_are_timed() -> None:
    bundle = BUNDLES / "kernels_ort"
    with pytest.raises(UsageError, match="There are 3 bundles"):
        BundleBenchConfig(bundles=(bundle,) * 3)
    found = bench_bundles(BundleBenchConfig(bundles=(bundle,), threads=(1,), rounds=3))
    assert found.rows[0].latency.runs == 5
    assert os.fspath(bundle) in found.inputs
