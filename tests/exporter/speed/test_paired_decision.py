"""What blocks of rounds say, on made-up times: no test here reads a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log

import numpy as np
import pytest

from tokexport.exporter.speed.paired_decision import (
    NEIGHBOUR_BIAS,
    Block,
    Decision,
    Verdict,
    decide,
    log_ratio,
    round_set,
)

ALLOWED = 0.03
#: As many blocks as three minutes have room for.
BLOCKS = 50
ROUNDS = 14


@dataclass
class Machine:
    """Makes up the times of two programs, as a machine might give them.

    Attributes:
        seed: Of all that is drawn.
        ratio: How many times as long as the old program the new one takes.
        each: How far a time scatters by itself, as a share; its tails are heavy.
        load: How far what a load decides by chance moves a block, as a share.
        first: How much longer the first of a round takes.
        drift: By how much the level of all times wanders from run to run.
        burst: How much longer runs take while a neighbour is busy, at most.
        uneven: How far one spell of a neighbour moves the ratio, as a share.
        lasting: For how many rounds a spell lasts, on average.
    """

    seed: int
    ratio: float = 1.0
    each: float = 0.03
    load: float = 0.005
    first: float = 0.0
    drift: float = 0.0
    burst: float = 0.0
    uneven: float = 0.0
    lasting: float = 1.0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._level = 0.0
        self._busy = False
        self._moved = np.zeros(2)

    def block(self) -> Block:
        """Runs a block of rounds."""
        random = self._random
        logs = self.each * random.standard_t(3, (2, ROUNDS)) / np.sqrt(3)
        logs += self.load * random.normal(0, 1, (2, 1))
        logs[1] += log(self.ratio)
        for place in range(ROUNDS):
            if random.random() < 1 / self.lasting:
                self._busy = random.random() < 0.3
                self._moved = self.uneven * random.normal(0, 1, 2)
            for turn, program in enumerate((0, 1) if place % 2 == 0 else (1, 0)):
                self._level += self.drift * random.normal()
                logs[program, place] += self._level + self.first * (turn == 0)
                if self._busy:
                    logs[program, place] += self.burst * random.random() + self._moved[program]
        old, new = 10 * np.exp(logs)
        return Block(log_ratio(old, new))


#: Machines that a bundle may be timed on.
MACHINES: dict[str, dict[str, float]] = {
    "idle": {},
    "drifting": {"drift": 0.02, "first": 0.02},
    "busy for moments": {"burst": 0.4},
    "busy for seconds": {"burst": 0.3, "lasting": 40.0},
    "busy for minutes, and unevenly": {"burst": 0.1, "uneven": 0.02, "lasting": 100.0},
    "loads that differ": {"load": 0.015},
}


def count_to(most: int) -> Callable[[], bool]:
    """A budget of so many blocks, the first one of which is not asked for."""
    left = iter(range(most - 1))
    return lambda: next(left, None) is not None


def verdicts(machine: str, ratio: float, runs: int) -> Counter[Verdict]:
    """What so many runs on a machine say."""
    return Counter(
        decide(Machine(seed, ratio, **MACHINES[machine]).block, ALLOWED, count_to(BLOCKS)).verdict
        for seed in range(runs)
    )


def scripted(*ratios: float) -> tuple[Callable[[], Block], Callable[[], bool]]:
    """Blocks of given ratios, which scatter a little, and a budget of so many."""
    given: Iterator[float] = iter(ratios)
    signs = iter([0.001, -0.001] * len(ratios))
    return lambda: Block(log(next(given)) + next(signs)), count_to(len(ratios))


@pytest.mark.parametrize("machine", MACHINES)
def test_equal_programs_are_not_called_slower(machine: str) -> None:
    found = verdicts(machine, 1.0, 60)
    assert found[Verdict.SLOWER] == 0
    assert found[Verdict.UNDECIDED] <= 12


def test_a_slowdown_of_twice_what_is_allowed_is_found() -> None:
    assert verdicts("idle", 1.06, 50)[Verdict.SLOWER] >= 48


@pytest.mark.thorough
@pytest.mark.parametrize("machine", MACHINES)
def test_one_run_of_equal_programs_in_200_is_called_slower_at_most(machine: str) -> None:
    found = verdicts(machine, 1.0, 1000)
    assert found[Verdict.SLOWER] <= 5
    assert found[Verdict.UNDECIDED] <= 200


@pytest.mark.thorough
@pytest.mark.parametrize("machine", MACHINES)
def test_a_slowdown_of_6_percent_is_found_on_every_machine(machine: str) -> None:
    assert verdicts(machine, 1.06, 200)[Verdict.SLOWER] >= 190


@pytest.mark.thorough
@pytest.mark.parametrize("machine", MACHINES)
def test_a_slowdown_of_just_what_is_allowed_is_seldom_called_slower(machine: str) -> None:
    assert verdicts(machine, 1 + ALLOWED, 200)[Verdict.SLOWER] <= 5


@pytest.mark.thorough
def test_a_machine_that_shakes_decides_nothing() -> None:
    runs = [
        decide(Machine(seed, each=0.8, load=0.1).block, ALLOWED, count_to(BLOCKS)).verdict
        for seed in range(50)
    ]
    assert Counter(runs)[Verdict.UNDECIDED] >= 45
    assert Verdict.SLOWER not in runs


def test_a_ratio_cancels_who_went_first_and_a_steady_drift() -> None:
    drift = np.exp(0.01 * np.arange(24).reshape(12, 2))
    old, new = drift[:, 0].copy(), drift[:, 1].copy()
    old[1::2], new[1::2] = drift[1::2, 1], drift[1::2, 0]
    old[::2] *= 1.3
    new[1::2] *= 1.3
    assert log_ratio(old, 1.05 * new) == pytest.approx(log(1.05))


def test_a_ratio_leaves_out_rounds_far_off_and_an_odd_one_at_the_end() -> None:
    old = np.full(17, 10.0)
    new = np.full(17, 11.0)
    new[4] = old[11] = new[16] = 1e3
    assert log_ratio(old, new) == pytest.approx(log(1.1))
    assert log_ratio(old[:2], new[:2]) == pytest.approx(log(1.1))


def test_slower_takes_two_sets_of_rounds() -> None:
    found = run(*[1.06] * 12)
    assert (found.verdict, found.why) == (Verdict.SLOWER, "")
    assert [one.verdict for one in found.sets] == [Verdict.SLOWER] * 2
    assert [len(one.blocks) for one in found.sets] == [6, 6]


def test_not_slower_takes_one_set() -> None:
    found = run(*[0.9] * 12)
    assert (found.verdict, found.why) == (Verdict.NOT_SLOWER, "")
    assert [len(one.blocks) for one in found.sets] == [6]
    (only,) = found.sets
    assert only.low is not None
    assert only.high is not None
    assert 0.89 < only.low < only.ratio < only.high < 0.91


def test_sets_that_contradict_one_another_decide_nothing() -> None:
    found = run(*[1.06] * 6, *[1.0] * 6)
    assert found.verdict is Verdict.UNDECIDED
    assert "contradict" in found.why


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([1.06], "enough for 1 block of rounds, too few"),
        ([1.06] * 5, "enough for 5 blocks of rounds, too few"),
        ([1.06] * 6, "the time ended before a second one began"),
        ([1.06] * 9, "the time ended before a second one confirmed it"),
        ([1.03] * 9, "still held 1.03"),
    ],
)
def test_an_answer_that_the_time_cut_short_says_why(blocks: list[float], why: str) -> None:
    found = run(*blocks)
    assert found.verdict is Verdict.UNDECIDED
    assert why in found.why
    assert sum(len(one.blocks) for one in found.sets) == len(blocks)


def test_what_others_take_of_the_cores_widens_the_interval() -> None:
    ratios = [log(1.06) + off for off in (0.001, -0.001) * 4]
    alone = round_set([Block(one) for one in ratios], ALLOWED)
    shared = round_set([Block(one, withheld=0.5) for one in ratios], ALLOWED)
    assert (alone.verdict, shared.verdict) == (Verdict.SLOWER, Verdict.UNDECIDED)
    assert alone.low is not None
    assert shared.low is not None
    assert shared.widened == pytest.approx(exp(0.5 * NEIGHBOUR_BIAS))
    assert shared.low * shared.widened == pytest.approx(alone.low)
    far = round_set([Block(one + log(2), withheld=1.0) for one in ratios], ALLOWED)
    assert far.verdict is Verdict.SLOWER


def run(*ratios: float) -> Decision:
    """Decides on blocks of given ratios, as many as there are."""
    draw, has_time = scripted(*ratios)
    return decide(draw, ALLOWED, has_time)
