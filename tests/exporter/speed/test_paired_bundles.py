"""Two bundles timed here in turns, with the real runtimes; no test asserts a time."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import UsageError
from tokexport.exporter.speed.paired_bundles import PairedSpeed, compare_speed
from tokexport.exporter.speed.paired_decision import Verdict
from tokexport.exporter.speed.paired_text import render_paired_speed
from tokexport.exporter.speed.time_limits import TimeLimits
from tokexport.runtimes.native_library import VARIABLE, KernelsWarning
from tokexport.runtimes.processor import usable_cores

#: Small blocks, so that six are run in a moment; a busy machine may take more of them.
QUICK = TimeLimits(bundles_s=600, block_s=0.05, pause_s=0, bundle_sample_s=0.001)


class Products(nn.Module):
    """Two products of an input (1, 64, width), by way of so many hidden channels."""

    def __init__(self, hidden: int, width: int = 96) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(width, hidden, generator=draw) / width**0.5)
        self.second = nn.Parameter(torch.randn(hidden, width, generator=draw) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.second


class Renamed(Products):
    """The same of another name for its input."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows)


@dataclass(frozen=True)
class Bundles:
    """The folders of bundles: of little work, of much with a renamed input, and of other inputs."""

    little: Path
    much: Path
    narrow: Path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    models = {"little": Products(8), "much": Renamed(8192), "narrow": Products(8, width=32)}
    for name, model in models.items():
        example = torch.randn(1, 64, len(model.first))
        tokexport.compile(model.eval(), example, "ort", output=folder / name, timed=False)
    return Bundles(folder / "little", folder / "much", folder / "narrow")


@pytest.fixture(scope="module")
def slower(bundles: Bundles) -> PairedSpeed:
    """The bundle of much work timed against that of little."""
    return compare_speed(bundles.little, bundles.much, threads=1, limits=QUICK)


def shown(found: PairedSpeed) -> str:
    text = io.StringIO()
    render_paired_speed(found, Console(width=200, file=text))
    return text.getvalue()


def test_much_more_work_is_slower(slower: PairedSpeed) -> None:
    assert slower.verdict is Verdict.SLOWER
    assert [one.verdict for one in slower.sets] == [Verdict.SLOWER] * 2
    assert slower.low is not None
    assert slower.high is not None
    assert 1.03 < slower.low < slower.ratio < slower.high
    assert slower.pairs >= 2 * 6 * 2
    assert slower.old.median_ms < slower.new.median_ms


def test_a_slower_bundle_fails_the_gate(slower: PairedSpeed, bundles: Bundles) -> None:
    error = slower.failed()
    assert error is not None
    assert "times as long as the old one, and 1.03 times is allowed" in error.what
    assert str(bundles.much) in error.where
    assert "95 % interval" in error.where


def test_what_was_found_is_json_and_text(slower: PairedSpeed, bundles: Bundles) -> None:
    data = json.loads(json.dumps(slower.to_json(), allow_nan=False))
    assert data["verdict"] == "slower"
    assert data["old"]["runtime"]["details"]["threads"] == 1
    assert data["timed_by"] == "processor time"
    assert len(data["sets"][0]["blocks"]) >= 6
    text = shown(slower)
    assert f"old        {bundles.little} (onnxruntime-cpu" in text
    assert "slower  by more than 3 %, and a second set of rounds confirms it" in text


def test_much_less_work_is_not_slower(bundles: Bundles) -> None:
    found = compare_speed(bundles.much, bundles.little, threads=1, limits=QUICK)
    assert found.verdict is Verdict.NOT_SLOWER
    assert found.failed() is None
    assert "not slower  by more than 3 %" in shown(found)


def test_a_bundle_beside_itself_without_time_is_undecided(bundles: Bundles) -> None:
    found = compare_speed(bundles.little, bundles.little)  # the suite gives no time
    assert found.verdict is Verdict.UNDECIDED
    assert (found.low, found.high) == (None, None)
    assert found.failed() is None
    assert found.notes[-1] == "The time was enough for 1 block of rounds, too few."
    assert found.pairs == 2
    assert found.timed_by == ("clock" if usable_cores() > 1 else "processor time")
    assert "undecided  whether it is slower by more than 3 %: this is no failure" in shown(found)


def test_the_inputs_are_those_of_the_new_bundle(slower: PairedSpeed, bundles: Bundles) -> None:
    assert slower.inputs == f"the first batch of the reference inputs of {bundles.much}"


def test_the_inputs_are_those_of_the_old_bundle_where_the_new_one_has_none(
    bundles: Bundles, tmp_path: Path
) -> None:
    bare = without_reference(bundles.much, tmp_path / "new")
    found = compare_speed(bundles.little, bare)
    assert found.inputs == f"the first batch of the reference inputs of {bundles.little}"
    with pytest.raises(UsageError, match="Neither bundle has reference inputs") as caught:
        compare_speed(without_reference(bundles.little, tmp_path / "old"), bare)
    assert "no reference.npz" in caught.value.where


def without_reference(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle without its reference data."""
    shutil.copytree(bundle, copy)
    (copy / "reference.npz").unlink()
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["reference.npz"]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


def test_bundles_of_different_inputs_are_refused(bundles: Bundles) -> None:
    with pytest.raises(UsageError, match="take different inputs") as caught:
        compare_speed(bundles.little, bundles.narrow)
    assert "The old one: x float32 (1, 64, 96)" in caught.value.where
    assert "the new one: x float32 (1, 64, 32)" in caught.value.where


@pytest.mark.parametrize("share", [0.0, -0.1, float("nan"), float("inf")])
def test_a_share_that_allows_nothing_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share that the new bundle may be slower"):
        compare_speed(Path("old"), Path("new"), slower=share)


def test_a_number_of_threads_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--threads is 0"):
        compare_speed(Path("old"), Path("new"), threads=0)


def test_notes_are_shown(slower: PairedSpeed) -> None:
    assert "\nA neighbour was loud.\n" in shown(replace(slower, notes=("A neighbour was loud.",)))


def test_kernels_that_do_not_load_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.so"))
    bundle = Path(__file__).parents[2] / "bundles" / "kernels_ort"
    with pytest.warns(KernelsWarning, match="cannot be loaded") as warned:
        found = compare_speed(bundle, bundle, limits=QUICK.at_most(1))
    assert len(warned) == 2
    assert [note.split(".")[0] for note in found.notes[:2]] == [
        "The old bundle ran without its kernels",
        "The new bundle ran without its kernels",
    ]


def test_no_torch_is_imported(bundles: Bundles) -> None:
    program = f"""
import sys
from pathlib import Path
from tokexport.exporter.speed.paired_bundles import compare_speed
from tokexport.exporter.speed.paired_text import render_paired_speed
print(compare_speed(Path({str(bundles.little)!r}), Path({str(bundles.little)!r})).verdict)
assert not {{"torch", "onnx", "onnx_ir"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "undecided\n"), done.stderr
