"""Times candidates against a baseline in interleaved rounds, with a confidence interval.

The speed of a processor drifts by more than the differences to measure, so no candidate is timed
alone: a round runs each once, the next round runs them in the opposite order, and the report gives
the ratio of two medians over the same rounds. A runtime's threads go on spinning for some
milliseconds after a run, on the cores that the next candidate needs: measured on two cores, two
sessions of ONNX Runtime timed one after the other take up to 1.7 times as long as alone. So before
each timed run there is a pause, and one run that is not timed. Its interval is the percentile
bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) with whole
rounds drawn, so a slow moment that hit every candidate of a round stays together.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from tokexport.exporter.errors import GateError, InternalError
from tokexport.exporter.speed.time_limits import time_limits

MIN_PAIRS = 5
RESAMPLES = 2000
CONFIDENCE = 0.95
_WARM_UP_SHARE = 0.25
#: How far the ratios of medians and of minima may lie apart before the pair counts as noisy.
NOISY_FACTOR = 1.5


@dataclass(frozen=True)
class Timing:
    """The times of the runs of one candidate.

    Attributes:
        samples_ms: One time per round, in the order of the rounds, in milliseconds.
        median_ms: Their median.
        min_ms: The shortest.
    """

    samples_ms: tuple[float, ...]
    median_ms: float
    min_ms: float


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline a candidate is; above 1 it is faster.

    Attributes:
        of_medians: Median of the baseline ÷ median of the candidate.
        low: Lower end of the 95 % bootstrap interval of ``of_medians``.
        high: Its upper end.
        of_minima: Shortest run of the baseline ÷ shortest run of the candidate.
        noisy: Whether the two ratios differ by more than ``NOISY_FACTOR``: something else wanted
            the processor, and neither says how fast the candidate is.
    """

    of_medians: float
    low: float
    high: float
    of_minima: float
    noisy: bool = field(init=False)

    def __post_init__(self) -> None:
        """Compares the two ratios."""
        low, high = sorted((self.of_medians, self.of_minima))
        object.__setattr__(self, "noisy", high > NOISY_FACTOR * low)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the true ratio; for a noisy pair it includes the ratio of minima."""
        if self.noisy:
            return min(self.low, self.of_minima), max(self.high, self.of_minima)
        return self.low, self.high

    @property
    def least(self) -> float:
        """The smaller of the two ratios, which is all that a noisy pair shows."""
        return min(self.of_medians, self.of_minima)


@dataclass(frozen=True)
class Speed:
    """The result of a measurement.

    Attributes:
        baseline: The candidate that the others are compared with.
        timings: The times of every candidate, the baseline among them.
        ratios: The ratio of every candidate but the baseline.
        pairs: The number of rounds measured.
        warm_ups: The number of rounds run before, and thrown away.
        time_limited: Whether the time limit ended the measurement before all rounds were run.
    """

    baseline: str
    timings: dict[str, Timing]
    ratios: dict[str, Ratio]
    pairs: int
    warm_ups: int
    time_limited: bool


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    pairs: int = 40,
    min_pairs: int = MIN_PAIRS,
    warm_up: int = 3,
    time_limit_s: float = 20.0,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    stopwatch: Callable[[], int] | None = None,
    settle_s: float | None = None,
) -> Speed:
    """Times the candidates in interleaved rounds.

    Every candidate is warmed up at least once and measured in the fewest rounds, however long that
    takes; beyond that the time limit counts, warm-ups included (they get a quarter of it).

    Args:
        candidates: What to run, by name; each call is one run over the same input.
        baseline: The name of the candidate to compare the others with.
        pairs: The most rounds to measure.
        min_pairs: The fewest.
        warm_up: The most rounds to run before.
        time_limit_s: After how many seconds no further round is begun.
        seed: The seed of the bootstrap.
        clock: Returns the time in nanoseconds.
        stopwatch: Returns what the runs are timed by, in nanoseconds; None takes the clock.
        settle_s: The pause before each timed run, that of ``time_limits`` where it is None; 0
            leaves out the pause and the run that is not timed.

    Raises:
        InternalError: The baseline is no candidate, or is the only one.
    """
    if baseline not in candidates or len(candidates) < 2:
        raise InternalError(
            f"There is nothing to compare with {baseline!r} in {sorted(candidates)}."
        )
    rounds = run_rounds(
        candidates,
        pairs=pairs,
        min_pairs=min_pairs,
        warm_up=warm_up,
        time_limit_s=time_limit_s,
        clock=clock,
        stopwatch=stopwatch,
        settle_s=settle_s,
    )
    return Speed(
        baseline=baseline,
        timings={name: _timing(times_ms) for name, times_ms in rounds.times_ms.items()},
        ratios=ratios(rounds.times_ms, baseline, seed),
        pairs=rounds.count,
        warm_ups=rounds.warm_ups,
        time_limited=rounds.time_limited,
    )


@dataclass(frozen=True, eq=False)
class Rounds:
    """The times of rounds, each of which ran every candidate once.

    Attributes:
        times_ms: The times of each candidate, (rounds,), in milliseconds.
        count: How many rounds there are.
        warm_ups: The number of rounds run before, and thrown away.
        time_limited: Whether the time limit ended them before all were run.
    """

    times_ms: dict[str, np.ndarray]
    count: int
    warm_ups: int
    time_limited: bool


def run_rounds(
    candidates: Mapping[str, Callable[[], object]],
    *,
    pairs: int,
    min_pairs: int = MIN_PAIRS,
    warm_up: int = 3,
    time_limit_s: float = 20.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    stopwatch: Callable[[], int] | None = None,
    settle_s: float | None = None,
) -> Rounds:
    """Runs candidates in interleaved rounds, or one alone; the arguments are those of ``measure``.

    Args:
        candidates: What to run, by name.
        pairs: The most rounds.
        min_pairs: The fewest.
        warm_up: The most rounds to run before.
        time_limit_s: After how many seconds no further round is begun.
        clock: Returns the time in nanoseconds.
        stopwatch: Returns what the runs are timed by, in nanoseconds; None takes the clock.
        settle_s: The pause before each timed run; one alone disturbs no other, and takes 0.
    """
    order = tuple(candidates)
    pause_s = time_limits().pause_s if settle_s is None else settle_s
    begin = clock()

    def within(share: float) -> bool:
        return clock() - begin < share * time_limit_s * 1e9

    with _garbage_collection_paused():
        warm_ups = 0
        while warm_ups == 0 or (warm_ups < warm_up and within(_WARM_UP_SHARE)):
            for name in order:
                candidates[name]()
            warm_ups += 1
        rounds: list[dict[str, int]] = []
        wanted = max(pairs, min_pairs)
        while len(rounds) < min_pairs or (len(rounds) < wanted and within(1.0)):
            direction = order if len(rounds) % 2 == 0 else order[::-1]
            rounds.append(
                {
                    name: _time_settled(candidates[name], stopwatch or clock, pause_s)
                    for name in direction
                }
            )

    times_ms = {name: np.array([each[name] for each in rounds]) / 1e6 for name in order}
    return Rounds(times_ms, len(rounds), warm_ups, time_limited=len(rounds) < wanted)


def repetitions(run: Callable[[], object], sample_s: float) -> int:
    """Returns how often a model must run to take long enough to be timed, at most 100 times."""
    run()
    begin = time.perf_counter()
    run()
    seconds = max(time.perf_counter() - begin, 1e-6)
    return max(1, min(100, math.ceil(sample_s / seconds)))


def repeated(run: Callable[[], object], count: int) -> Callable[[], object]:
    """Returns a candidate that runs so often."""
    return lambda: [run() for _ in range(count)]


def over(baseline: str, speed: Speed, seed: int = 0) -> Speed:
    """Returns the same rounds with another candidate as baseline."""
    times_ms = {name: np.array(timing.samples_ms) for name, timing in speed.timings.items()}
    return replace(speed, baseline=baseline, ratios=ratios(times_ms, baseline, seed))


def require_speedup(speed: Speed, candidate: str, min_speedup: float) -> None:
    """Checks the ratio of medians of a candidate, or the smaller ratio of a noisy pair.

    Raises:
        GateError: The candidate is less than ``min_speedup`` times as fast as the baseline.
    """
    ratio = speed.ratios[candidate]
    reached = ratio.least if ratio.noisy else ratio.of_medians
    if reached >= min_speedup:
        return
    noisy = (
        f"; the pair is noisy: {ratio.of_medians:.3g} of medians, {ratio.of_minima:.3g} of minima, "
        "and the smaller counts"
    )
    base, own = speed.timings[speed.baseline].median_ms, speed.timings[candidate].median_ms
    raise GateError(
        f"The speed-up of {candidate} over {speed.baseline} is {reached:.3g}, "
        f"and at least {min_speedup:g} was asked for.",
        where=f"Medians of {speed.pairs} interleaved pairs: {speed.baseline} {base:.2f} ms, "
        f"{candidate} {own:.2f} ms; 95 % interval {ratio.low:.3g} to {ratio.high:.3g}"
        f"{noisy if ratio.noisy else ''}",
        fix="Measure on an idle machine, reduce more tokens, or lower --min-speedup.",
    )


def _time_settled(run: Callable[[], object], clock: Callable[[], int], pause_s: float) -> int:
    """Times a run after a pause and an untimed run, for the threads of both candidates."""
    if pause_s > 0:
        time.sleep(pause_s)
        run()
    return _time_once(run, clock)


def _time_once(run: Callable[[], object], clock: Callable[[], int]) -> int:
    """Returns the nanoseconds of one run, at least 1: a clock may be coarser than the run."""
    start = clock()
    run()
    return max(1, clock() - start)


def _timing(times_ms: np.ndarray) -> Timing:
    return Timing(
        samples_ms=tuple(float(each) for each in times_ms),
        median_ms=float(np.median(times_ms)),
        min_ms=float(times_ms.min()),
    )


def ratios(times_ms: Mapping[str, np.ndarray], baseline: str, seed: int = 0) -> dict[str, Ratio]:
    """Returns the ratio of every candidate but the baseline, all from the same resampled rounds.

    Args:
        times_ms: The times of each, (rounds,), by its name.
        baseline: The one that the others are compared with.
        seed: The seed of the bootstrap.
    """
    rounds = len(times_ms[baseline])
    picks = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, rounds))
    return {
        name: _ratio(times_ms[baseline], own, picks)
        for name, own in times_ms.items()
        if name != baseline
    }


def _ratio(baseline_ms: np.ndarray, own_ms: np.ndarray, picks: np.ndarray) -> Ratio:
    """Computes the ratio of (rounds,) times, its interval from picks (resamples, rounds)."""
    resampled = np.median(baseline_ms[picks], axis=1) / np.median(own_ms[picks], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Ratio(
        of_medians=float(np.median(baseline_ms) / np.median(own_ms)),
        low=float(low),
        high=float(high),
        of_minima=float(baseline_ms.min() / own_ms.min()),
    )


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Keeps the collector from running inside one candidate's time and not the other's."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
