"""AIM's merging stage against its reference."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reduction import tome as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from helpers.reduction.outcome import Array, Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.aim_merge import AimMerge


@given(case=cases(sized=False), rounds=st.integers(1, 3))
@settings(max_examples=60)
def test_aim_merges_by_halves(case: Case, rounds: int) -> None:
    rounds = 1 if case.tied else rounds  # means of the first round are no exact numbers
    tokens = case.tokens()
    found = AimMerge(rounds=rounds).after_mlp(Layer(2, 4), tokens, case.attention())
    wanted = [
        _rounds(image(tokens, number)[0], case.special, rounds) for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


def _rounds(x: Array, special: int, rounds: int) -> Outcome:
    outcome = Outcome([[n] for n in range(len(x))], list(x), None)
    for _ in range(rounds):
        after = reference.aim_round(np.array(outcome.x), special)
        groups = [[n for one in group for n in outcome.groups[one]] for group in after.groups]
        outcome = Outcome(groups, after.x, None)
    return outcome


@pytest.mark.parametrize(("patches", "left"), [(36, 9), (35, 9), (576, 144), (2, 1), (1, 1)])
def test_two_rounds_of_aim_leave_a_quarter(patches: int, left: int) -> None:
    case = Case(0, 1, 0, patches)
    found = AimMerge().after_mlp(Layer(2, 4), case.tokens(), case.attention())
    assert found.count == left
