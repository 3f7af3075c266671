"""The arithmetic of a benchmark's rows, on rounds that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tokexport.exporter.bench.candidate import Candidate, Entrant, Way
from tokexport.exporter.bench.results import Realisation, Row, realisation, rows_of
from tokexport.exporter.bench.tables import cells, remark
from tokexport.exporter.speed.interleaved import Ratio, Speed, Timing, measure

EAGER = Candidate(Way.EAGER)
PLAIN = Candidate(Way.PLAIN, "ort")
OURS = Candidate(Way.OURS, "ort")
INT8 = Candidate(Way.OURS, "ort", "int8")
FLOOR = Candidate(Way.FLOOR, "ort")
PLAIN_BEFORE = Candidate(Way.PLAIN, "ort", unreduced=True)
OURS_BEFORE = Candidate(Way.OURS, "ort", unreduced=True)
INT8_BEFORE = Candidate(Way.OURS, "ort", "int8", unreduced=True)
TIMES = {
    EAGER: 60.0,
    PLAIN: 30.0,
    OURS: 20.0,
    INT8: 10.0,
    FLOOR: 16.0,
    PLAIN_BEFORE: 48.0,
    OURS_BEFORE: 40.0,
    INT8_BEFORE: 16.0,
}


def timing(median: float) -> Timing:
    return Timing((median / 2, median, 2 * median), median, median / 2)


def rows(times: dict[Candidate, float], macs_ratio: float | None = 1.6) -> dict[Candidate, Row]:
    speed = Speed(EAGER.name, {one.name: timing(ms) for one, ms in times.items()}, {}, 3, 1, False)
    entrants = [Entrant(one, lambda: None) for one in times]
    return {row.candidate: row for row in rows_of(entrants, speed, macs_ratio, seed=0)}


def test_realisation_is_the_speed_up_over_the_ratio_of_macs() -> None:
    assert realisation(2.0, 1.6) == 1.25
    found = rows(TIMES)
    assert found[OURS].realisation == Realisation(48 / 20 / 1.6, 40 / 20 / 1.6)
    assert found[PLAIN].realisation == Realisation(48 / 30 / 1.6, 40 / 30 / 1.6)


def test_another_precision_is_realised_over_its_own_unreduced_model_only() -> None:
    assert rows(TIMES)[INT8].realisation == Realisation(None, 16 / 10 / 1.6)


def test_nothing_is_realised_by_what_is_not_the_reduced_model_on_a_runtime() -> None:
    found = rows(TIMES)
    for one in (EAGER, FLOOR, PLAIN_BEFORE, OURS_BEFORE, INT8_BEFORE):
        assert found[one].realisation is None


def test_without_the_unreduced_model_nothing_is_realised() -> None:
    alone = {one: ms for one, ms in TIMES.items() if not one.unreduced}
    assert all(row.realisation is None for row in rows(alone, None).values())
    assert all(row.realisation is None for row in rows(alone).values())


def test_ratios_are_over_the_plain_export_and_the_floor() -> None:
    found = rows(TIMES)
    ratio = found[OURS].over_plain
    assert ratio is not None
    assert (ratio.of_medians, ratio.of_minima) == (1.5, 1.5)
    assert ratio.low <= 1.5 <= ratio.high
    assert found[OURS].held_against == PLAIN.name
    assert found[OURS].over_floor == pytest.approx(1.25)
    assert found[INT8].held_against == PLAIN.name
    assert found[PLAIN].over_plain is None
    assert found[FLOOR].over_floor is None


def test_an_export_is_held_against_the_one_of_its_runtime_and_precision() -> None:
    target = "openvino"
    times = {EAGER: 60.0, PLAIN: 30.0}
    times |= {Candidate(Way.PLAIN, target, p): ms for p, ms in (("fp32", 24.0), ("bf16", 12.0))}
    times |= {Candidate(Way.OURS, target, p): 6.0 for p in ("fp32", "bf16", "int8")}
    found = rows(times, None)
    ratios = {
        row.candidate.precision: (row.held_against, row.over_plain.of_medians)
        for row in found.values()
        if row.candidate.way is Way.OURS and row.over_plain is not None
    }
    assert ratios == {
        "fp32": ("plain export, openvino fp32", 4.0),
        "bf16": ("plain export, openvino bf16", 2.0),
        "int8": ("plain export, openvino fp32", 4.0),
    }


def test_what_cannot_run_has_its_reason_and_no_numbers() -> None:
    found = rows_of([Entrant(PLAIN, note="refused")], None, 2.0, 0)[0]
    assert remark(found) == "refused"
    assert set(cells(found)) == {""}
    no_plain = rows({EAGER: 1.0, OURS: 1.0})
    assert no_plain[OURS].over_plain is None
    assert no_plain[OURS].held_against is None


def test_eager_alone_is_not_timed() -> None:
    entrants = [Entrant(EAGER, lambda: None, note="1 thread"), Entrant(OURS, note="refused")]
    found = rows_of(entrants, None, None, 0)
    assert [remark(row) for row in found] == ["not timed: nothing else can run", "refused"]


def test_a_row_says_its_threads_and_whether_its_ratio_is_noisy() -> None:
    entrants = [
        Entrant(PLAIN, lambda: None, threads=2),
        Entrant(OURS, lambda: None, threads=1, note="a near-tie"),
    ]
    samples = {PLAIN.name: (8.0, 8.0, 8.0, 8.0, 8.0), OURS.name: (1.0, 4.0, 4.0, 4.0, 4.0)}
    clock = [0.0]
    speed = measure(
        {name: _taking(clock, times) for name, times in samples.items()},
        baseline=PLAIN.name,
        pairs=5,
        warm_up=1,
        clock=lambda: int(clock[0] * 1e6),
        settle_s=0,
    )
    plain, ours = rows_of(entrants, speed, None, 0)
    assert remark(plain) == "2 threads"
    assert remark(ours) == "a near-tie; 1 thread; noisy"


def _taking(clock: list[float], times: tuple[float, ...]) -> Callable[[], None]:
    left = iter((times[0], *times))  # the first is the warm-up

    def run() -> None:
        clock[0] += next(left)

    return run


def test_what_is_wrong_says_by_how_much_beside_its_times() -> None:
    ratio = Ratio(2.0, 1.5, 2.5, 2.1)
    row = Row(PLAIN.name, PLAIN, timing(4.0), "x", ratio, 1.5, None, math.inf, True, "other shapes")
    assert remark(row) == "wrong by inf: other shapes"
    assert cells(row) == ["4.00", "2.00", "2.00 (1.50 … 2.50)", "2.10", "1.50", "", "", "inf"]
