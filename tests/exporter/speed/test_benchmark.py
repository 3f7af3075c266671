from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable

import numpy as np
import pytest

from tokexport.exporter.errors import GateError, InternalError
from tokexport.exporter.speed.interleaved import (
    MIN_PAIRS,
    Ratio,
    Speed,
    measure,
    over,
    require_speedup,
)
from tokexport.exporter.system.machine import describe_machine

MS = 1_000_000


class Clock:
    """Time that passes only when a candidate runs."""

    def __init__(self) -> None:
        self.now = 0
        self.runs: list[str] = []

    def __call__(self) -> int:
        """Returns the time, in nanoseconds."""
        return self.now

    def taking(self, name: str, *durations_ms: float) -> Callable[[], None]:
        """Makes a candidate whose runs take the durations in turn, the last one for ever."""
        left = list(durations_ms)

        def run() -> None:
            self.runs.append(name)
            self.now += int((left.pop(0) if len(left) > 1 else left[0]) * MS)

        return run


@pytest.fixture(autouse=True)
def _nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps measurements of a made-up clock from collecting the garbage of all other tests."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def test_the_same_rounds_over_another_baseline() -> None:
    clock = Clock()
    candidates = {
        "eager": clock.taking("eager", 30),
        "unreduced": clock.taking("unreduced", 60),
        "artifact": clock.taking("artifact", 10),
    }
    speed = measure(candidates, baseline="eager", pairs=5, clock=clock)
    again = over("unreduced", speed)
    assert again.timings == speed.timings
    assert {name: ratio.of_medians for name, ratio in again.ratios.items()} == {
        "eager": 2.0,
        "artifact": 6.0,
    }
    assert over("eager", again) == speed


def test_the_ratio_is_of_medians_and_of_minima() -> None:
    clock = Clock()
    candidates = {
        "eager": clock.taking("eager", 99, 30, 20, 40, 20, 90),  # the first is a warm-up
        "artifact": clock.taking("artifact", 99, 10, 10, 10, 5, 10),
    }
    speed = measure(candidates, baseline="eager", pairs=5, warm_up=1, clock=clock)
    assert speed.timings["eager"].samples_ms == (30, 20, 40, 20, 90)
    assert speed.timings["eager"].median_ms == 30
    assert speed.timings["artifact"].min_ms == 5
    ratio = speed.ratios["artifact"]
    assert ratio.of_medians == 3.0
    assert ratio.of_minima == 4.0
    assert (speed.pairs, speed.warm_ups, speed.time_limited) == (5, 1, False)
    assert set(speed.ratios) == {"artifact"}


def test_rounds_alternate_their_order() -> None:
    clock = Clock()
    candidates = {name: clock.taking(name, 1) for name in "abc"}
    measure(candidates, baseline="a", pairs=6, warm_up=1, clock=clock)
    assert "".join(clock.runs) == "abc" + "abccba" * 3


def test_a_steady_pair_has_an_interval_of_no_width() -> None:
    clock = Clock()
    candidates = {"eager": clock.taking("eager", 12), "artifact": clock.taking("artifact", 8)}
    ratio = measure(candidates, baseline="eager", clock=clock).ratios["artifact"]
    assert (ratio.of_medians, ratio.low, ratio.high) == (1.5, 1.5, 1.5)


def noisy(seed: int, pairs: int, shared: float, own: float) -> Speed:
    """Measures 20 ms against 10 ms: log-normal noise, shared by a round and of each run."""
    random = np.random.default_rng(seed)
    drift = np.exp(random.normal(0, shared, pairs))
    eager, artifact = (ms * drift * np.exp(random.normal(0, own, pairs)) for ms in (20, 10))
    clock = Clock()
    candidates = {
        "eager": clock.taking("eager", 1, *eager),
        "artifact": clock.taking("artifact", 1, *artifact),
    }
    return measure(
        candidates, baseline="eager", pairs=pairs, warm_up=1, clock=clock, time_limit_s=1e9
    )


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        ratio = noisy(seed, pairs=40, shared=0.0, own=0.1).ratios["artifact"]
        assert ratio.low <= ratio.of_medians <= ratio.high
        covered += ratio.low <= 2.0 <= ratio.high
    assert 88 <= covered <= 100


def test_drift_that_hits_a_whole_round_widens_the_interval_less_than_noise_of_its_own() -> None:
    def width(shared: float, own: float) -> float:
        ratios = [noisy(seed, 40, shared, own).ratios["artifact"] for seed in range(20)]
        return float(np.mean([ratio.high - ratio.low for ratio in ratios]))

    assert width(shared=0.2, own=0.02) < width(shared=0.02, own=0.2) / 3


def test_the_same_times_give_the_same_interval() -> None:
    assert noisy(1, 20, 0.1, 0.1) == noisy(1, 20, 0.1, 0.1)


def test_slow_candidates_stop_at_the_limit_but_not_before_five_pairs() -> None:
    clock = Clock()
    candidates = {"eager": clock.taking("eager", 1000), "artifact": clock.taking("artifact", 500)}
    speed = measure(candidates, baseline="eager", time_limit_s=20, clock=clock)
    assert speed.time_limited
    assert MIN_PAIRS < speed.pairs < 40
    assert clock.now <= 21_500 * MS

    clock = Clock()
    candidates = {name: clock.taking(name, 10_000) for name in ("eager", "artifact")}
    speed = measure(candidates, baseline="eager", time_limit_s=20, clock=clock)
    assert (speed.pairs, speed.warm_ups) == (MIN_PAIRS, 1)


def test_a_clock_coarser_than_a_run_gives_numbers() -> None:
    candidates: dict[str, Callable[[], object]] = {"a": lambda: None, "b": lambda: None}
    speed = measure(candidates, baseline="a", pairs=5, clock=lambda: 0)
    assert speed.ratios["b"].of_medians == 1.0


def test_real_runs_give_finite_numbers_that_json_takes() -> None:
    candidates: dict[str, Callable[[], object]] = {
        "long": lambda: sum(range(20_000)),
        "short": lambda: sum(range(10)),
    }
    speed = measure(candidates, baseline="long", pairs=5)
    json.dumps(dataclasses.asdict(speed), allow_nan=False)
    assert speed.ratios["short"].of_minima > 0


def test_the_collector_rests_while_timing_and_comes_back_after_a_failure() -> None:
    on: list[bool] = []

    def fail() -> None:
        on.append(gc.isenabled())
        raise RuntimeError("of the candidate")

    with pytest.raises(RuntimeError, match="of the candidate"):
        measure({"a": fail, "b": fail}, baseline="a")
    assert on == [False]
    assert gc.isenabled()


def test_refuses_a_baseline_that_is_no_candidate() -> None:
    with pytest.raises(InternalError, match="'eager'"):
        measure({"artifact": lambda: None}, baseline="eager")
    with pytest.raises(InternalError, match="nothing to compare"):
        measure({"eager": lambda: None}, baseline="eager")


def test_the_speed_gate_names_what_was_measured_and_wanted() -> None:
    clock = Clock()
    candidates = {"eager": clock.taking("eager", 12), "artifact": clock.taking("artifact", 8)}
    speed = measure(candidates, baseline="eager", clock=clock)
    require_speedup(speed, "artifact", 1.5)
    with pytest.raises(GateError) as caught:
        require_speedup(speed, "artifact", 1.51)
    assert "speed-up of artifact over eager is 1.5, and at least 1.51" in caught.value.what
    assert "40 interleaved pairs: eager 12.00 ms, artifact 8.00 ms" in caught.value.where
    assert "95 % interval 1.5 to 1.5" in caught.value.where
    assert "--min-speedup" in caught.value.fix


def test_a_pair_whose_medians_and_minima_disagree_is_noisy() -> None:
    clock = Clock()
    candidates = {
        "eager": clock.taking("eager", 1, *[10] * 40),
        "artifact": clock.taking("artifact", 1, *[8] * 30, *[1] * 11),
    }
    speed = measure(candidates, baseline="eager", warm_up=1, clock=clock, settle_s=0)
    ratio = speed.ratios["artifact"]
    assert (ratio.of_medians, ratio.of_minima, ratio.noisy) == (1.25, 10.0, True)
    assert ratio.interval[1] >= 10.0
    require_speedup(speed, "artifact", 1.25)
    with pytest.raises(GateError, match=r"is 1\.25") as caught:
        require_speedup(speed, "artifact", 1.3)
    assert "the pair is noisy: 1.25 of medians, 10 of minima" in caught.value.where


@pytest.mark.parametrize(
    ("of_medians", "of_minima", "noisy"),
    [(3.0, 2.0, False), (2.0, 3.0, False), (3.1, 2.0, True), (2.0, 3.1, True), (0.5, 0.8, True)],
)
def test_how_far_the_ratios_may_lie_apart(of_medians: float, of_minima: float, noisy: bool) -> None:
    ratio = Ratio(of_medians, 0.9 * of_medians, 1.1 * of_medians, of_minima)
    assert ratio.noisy is noisy
    assert ratio.least == min(of_medians, of_minima)
    assert (ratio.interval == (ratio.low, ratio.high)) is not noisy


def test_a_noisy_pair_does_not_pass_a_gate_by_its_medians() -> None:
    clock = Clock()
    slow_once = [1, *[9] * 25, *[3] * 15]
    candidates = {"eager": clock.taking("e", *slow_once), "artifact": clock.taking("a", 1, 2)}
    speed = measure(candidates, baseline="eager", warm_up=1, clock=clock, settle_s=0)
    assert speed.ratios["artifact"].of_medians == 4.5
    with pytest.raises(GateError, match=r"is 1\.5, and at least 2"):
        require_speedup(speed, "artifact", 2.0)


def test_the_machine_is_described_in_plain_values() -> None:
    machine = describe_machine(threads={"torch": 2})
    assert json.loads(json.dumps(machine, allow_nan=False)) == machine
    assert machine["processor"]
    assert 1 <= machine["cores"]["usable"] <= machine["cores"]["logical"]
    assert machine["memory_bytes"] > 1 << 28
    assert machine["packages"]["numpy"] == np.__version__
    assert machine["threads"] == {"torch": 2}


def test_runs_are_timed_by_a_stopwatch_where_there_is_one() -> None:
    clock, stopwatch = Clock(), Clock()

    def both(name: str, lasts_ms: float, works_ms: float) -> Callable[[], None]:
        lasts, works = clock.taking(name, lasts_ms), stopwatch.taking(name, works_ms)

        def run() -> None:
            lasts()
            works()

        return run

    candidates = {"a": both("a", 900, 2), "b": both("b", 100, 4)}
    speed = measure(candidates, baseline="a", time_limit_s=10, clock=clock, stopwatch=stopwatch)
    assert (speed.timings["a"].median_ms, speed.timings["b"].median_ms) == (2, 4)
    assert speed.time_limited  # by the clock


def test_each_timed_run_follows_one_that_is_not_timed() -> None:
    clock = Clock()
    candidates = {"a": clock.taking("a", 1, 7, 2), "b": clock.taking("b", 1, 9, 3)}
    speed = measure(candidates, baseline="a", pairs=5, warm_up=1, clock=clock, settle_s=1e-4)
    assert speed.timings["a"].samples_ms == (2,) * 5
    assert speed.timings["b"].samples_ms == (3,) * 5
    assert clock.runs[:6] == ["a", "b", "a", "a", "b", "b"]
