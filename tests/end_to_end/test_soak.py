"""Threads that share a bundle for minutes find no fault; faults that are planted are found."""

from __future__ import annotations

import itertools
import json
import mmap
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak
from helpers.torchvision_ops import child_environment
from models.tiny_vit import image, tiny_tome

import tokexport
from tokexport.runtimes import Runner, load
from tokexport.runtimes.arrays import Array

ROOT = Path(__file__).parents[2]
SECONDS = 2


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for each runtime."""
    folder = tmp_path_factory.mktemp("soak")
    for target in soak.TARGETS:
        tokexport.compile(
            *(tiny_tome(), image(), target),
            output=folder / target,
            batch=soak.BATCHES,
            timed=False,
            page=False,
        )
    return folder


def test_a_few_seconds_on_each_runtime_find_no_fault(bundles: Path, tmp_path: Path) -> None:
    # In a process that has just begun, memory grows by what the runtimes keep.
    options = ("--minutes", str(SECONDS / 60), "--runtime-threads", "1", "--allowed-mib", "64")
    done = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "soak.py"), *options, "--folder", str(bundles)]
        + ["--results", str(tmp_path / "soak.jsonl")],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "soak.jsonl").read_text().splitlines()]
    assert [line["target"] for line in lines] == list(soak.TARGETS)
    for line in lines:
        assert line["passed"], line
        assert line["wrong"] == line["failed"] == 0, line
        assert all(line["answers"][way] > 0 for way in soak.WAYS), line
        assert line["seconds"] >= SECONDS


class Planted:
    """A runner with a fault: what is not its own is that of the runner beneath it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.numbers = itertools.count(1)  # of calls; no two threads get the same

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        return self._runner.run(arrays, out=out)

    def submit(self, arrays: Mapping[str, Array]) -> Future[dict[str, Array]]:
        return self._runner.submit(arrays)


class Swaps(Planted):
    """Gives every hundredth caller the answer of another question."""

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        if next(self.numbers) % 100 == 0:
            arrays = {name: np.roll(value, 1, axis=-1) for name, value in arrays.items()}
        return super().run(arrays, out)


class WritesNothing(Planted):
    """Leaves the memory of a caller as it was."""

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        found = super().run(arrays)
        return found if out is None else dict(out)


class Rounds(Planted):
    """Answers with other bits, far below any gate."""

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        found = super().run(arrays, out)
        for value in found.values():
            np.nextafter(value, np.float32(np.inf), out=value)
        return found


class Fails(Planted):
    """Fails once."""

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        found = super().run(arrays, out)
        if next(self.numbers) == 7:
            raise RuntimeError("The seventh call fails.")
        return found


class Leaks(Planted):
    """Keeps pages of its own of each run, behind those before the memory is first read."""

    BYTES, MOST = 2**20, 500
    BEFORE = 3 * soak.RUSHES * soak.MOST_SAMPLES * 2

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.kept: list[mmap.mmap] = []

    def run(
        self, arrays: Mapping[str, Array], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        if next(self.numbers) > self.BEFORE and len(self.kept) < self.MOST:
            # What is freed before leaves room on the heap, and a map of its own takes none of it.
            self.kept.append(mmap.mmap(-1, self.BYTES))
            self.kept[-1].write(b"\1" * self.BYTES)
        return super().run(arrays, out)


@pytest.fixture
def runner(bundles: Path) -> Iterator[Runner]:
    with load(bundles / "ort", threads=1) as loaded:
        yield loaded


def found_in(planted: Planted, runner: Runner) -> soak.Soaked:
    """What three threads find in a second of a runner with a fault."""
    given: Any = planted
    return soak.soaked(given, soak.questions(runner), 3, 1.0, soak.floor_of(runner))


@pytest.mark.parametrize("planted", [Swaps, WritesNothing])
def test_a_wrong_answer_is_found(planted: type[Planted], runner: Runner) -> None:
    found = found_in(planted(runner), runner)
    assert 0 < found.wrong < sum(found.answers.values())
    assert found.failed == found.other_bits == 0


def test_answers_of_other_bits_are_counted(runner: Runner) -> None:
    found = found_in(Rounds(runner), runner)
    assert found.other_bits == found.answers["run"] + found.answers["out"] > 0
    assert found.wrong == 0


def test_a_failed_call_is_counted_and_shown(runner: Runner) -> None:
    found = found_in(Fails(runner), runner)
    assert found.failed == 1
    assert "The seventh call fails." in found.messages[0]


def test_a_leak_is_found(runner: Runner) -> None:
    leaks = Leaks(runner)
    found = found_in(leaks, runner)
    assert found.wrong == found.failed == 0
    kept = len(leaks.kept) * Leaks.BYTES / 2**20
    assert kept > 0
    assert found.rss_mib[-1] - found.rss_mib[0] > kept / 2


def test_a_slope_is_that_of_the_pairs_in_the_middle() -> None:
    line = [(0.5 * place, 100 + 0.25 * place) for place in range(2000)]
    assert soak.slope(line) == pytest.approx(0.5)
    assert soak.slope([*line[:1500], (750.0, 9e3), *line[1501:]]) == pytest.approx(0.5)
    assert soak.slope([(float(at), 7.0) for at in range(9)]) == 0
    assert soak.slope(line[:1]) == 0
