"""Whether rounding explains a decision: exact on random scores, and not fooled by wrong ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.exporter.decision_margins import Fall, held_against
from tokexport.graph_passes import ops
from tokexport.graph_passes.decisions import Decision, DecisionKind
from tokexport.runtimes.base import Array

MATCH = Decision(
    operator="tokexport.bipartite_match",
    line="",
    kind=DecisionKind.MATCH,
    dim=1,
    ordered="index",
    scores=("s",),
    told={0: "t0", 1: "t1", 2: "t2"},
    own={0: "o0", 1: "o1", 2: "o2"},
)
ORDER = replace(
    MATCH, operator="aten.topk", kind=DecisionKind.ORDER, ordered="", told={1: "t1"}, own={1: "o1"}
)
COMPARISON = replace(
    ORDER, operator="aten.gt", kind=DecisionKind.COMPARISON, told={0: "t0"}, own={0: "o0"}
)


def fall(
    decision: Decision, scores: Array, near: Array, told: list[Array], own: list[Array]
) -> Fall:
    """Holds one choice to another; the results are given in the order of the positions."""
    eager = dict(zip(decision.told.values(), told, strict=True))
    step = dict(zip(decision.own.values(), own, strict=True))
    return held_against(decision, {"s": scores, **eager}, {"s": near, **step})


def matched(scores: Array, r: int, order: str) -> list[Array]:
    """What ``bipartite_match`` decides."""
    return [part.numpy() for part in ops.bipartite_match(torch.from_numpy(scores), r, order)]


@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 1e-7, 1e-4, 0.3]),
    order=st.sampled_from(ops.ORDERS),
    r=st.integers(1, 6),
)
def test_a_match_on_noisy_scores_is_always_explained_by_the_noise(
    seed: int, noise: float, order: str, r: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((2, 7, 5)).round(1)  # full of exact ties
    scores[:, 0] = -np.inf
    near = scores + noise * random.uniform(-1, 1, scores.shape)
    decision = replace(MATCH, ordered=order)
    found = fall(decision, scores, near, matched(scores, r, order), matched(near, r, order))
    assert found.margin <= 2 * found.noise + 1e-15
    assert found.is_tie(tolerance=1.0)


@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.0, 1e-6, 0.2]))
def test_so_is_an_order(seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((3, 8)).round(1)
    near = scores + noise * random.uniform(-1, 1, scores.shape)
    told, own = (np.argsort(-each, axis=1)[:, :5] for each in (scores, near))
    assert fall(ORDER, scores, near, [told], [own]).is_tie(tolerance=1.0)


def test_a_comparison_is_explained_where_the_numbers_are_that_close() -> None:
    near = np.array([1e-8, -0.5, 0.5])
    scores = np.array([-1e-8, -0.5, 0.5])
    found = fall(COMPARISON, scores, near, [scores > 0], [near > 0])
    assert (found.flips, found.is_tie(1e-5)) == (1, True)
    wrong = fall(COMPARISON, scores, near, [scores > 0], [near < 0])
    assert wrong.margin == pytest.approx(1.0)
    assert not wrong.is_tie(1e-5)


SCORES = np.array([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]])


@pytest.mark.parametrize(
    ("kept", "src", "dst"),
    [
        ([[1]], [[0, 2]], [[0, 1]]),  # the third best for the second
        ([[2]], [[0, 1]], [[0, 1]]),  # another partner than the best
        ([[2]], [[0, 0]], [[0, 0]]),  # a row twice
        ([[1]], [[0, 1]], [[0, 0]]),  # a row kept and merged
        ([[2]], [[0, 1]], [[0, 5]]),  # a partner that is not there
    ],
)
def test_a_wrong_match_is_no_tie(kept: list[Array], src: list[Array], dst: list[Array]) -> None:
    right = matched(SCORES, 2, "index")
    assert [part.tolist() for part in right] == [[[2]], [[0, 1]], [[0, 0]]]
    own = [np.array(part) for part in (kept, src, dst)]
    found = fall(MATCH, SCORES, SCORES + 1e-7, right, own)
    assert found.flips > 0
    assert not found.is_tie(1e-5)


@pytest.mark.parametrize(("negative", "turned"), [(True, False), (False, True), (True, True)])
def test_scores_in_another_form_are_judged_as_they_are_decided_on(
    negative: bool, turned: bool
) -> None:
    decision = replace(MATCH, negative=negative, turned=turned)
    given = np.swapaxes(SCORES, 1, 2) if turned else SCORES
    given = -given if negative else given
    right = matched(SCORES, 2, "index")
    same = fall(decision, given, given, right, right)
    assert same == Fall(0, 0.0, 0.0, edge=pytest.approx(0.1 / 0.9))
    own = [np.array(part) for part in ([[1]], [[0, 2]], [[0, 1]])]
    assert fall(decision, given, given, right, own).margin == pytest.approx(0.1 / 0.9)


def test_kept_rows_out_of_order_are_no_tie() -> None:
    scores = np.array([[[0.9], [0.1], [0.2], [0.3]]])
    right = matched(scores, 1, "index")
    own = [right[0][:, ::-1], *right[1:]]
    assert not fall(MATCH, scores, scores + 1e-7, right, own).is_tie(1e-5)


def test_scores_that_are_off_are_no_rounding() -> None:
    scores = np.array([[1.0, 2.0, 3.0]])
    order = np.argsort(-scores, axis=1)
    found = fall(ORDER, scores, scores + 0.1, [order], [order])
    assert found.noise == pytest.approx(0.1 / 3)
    assert not found.is_tie(1e-5)
    assert fall(ORDER, scores, scores + 1e-6, [order], [order]).is_tie(1e-5)


def test_infinite_scores_agree_with_themselves_only() -> None:
    scores = np.array([[1.0, -np.inf, 3.0]])
    order = np.argsort(-scores, axis=1)
    assert fall(ORDER, scores, scores, [order], [order]).noise == 0.0
    assert fall(ORDER, scores, np.array([[1.0, -1e9, 3.0]]), [order], [order]).noise == np.inf


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), order=st.sampled_from(ops.ORDERS), r=st.integers(0, 7))
def test_a_match_is_as_near_to_a_tie_as_the_least_change_that_turns_it(
    seed: int, order: str, r: int
) -> None:
    scores = np.random.default_rng(seed).standard_normal((1, 7, 5))
    right = matched(scores, r, order)
    edge = fall(MATCH_BY[order], scores, scores, right, right).edge * np.abs(scores).max()

    def merged(given: Array) -> object:
        kept, src, dst = matched(given, r, order)
        pairs = zip(src[0].tolist(), dst[0].tolist(), strict=True)
        return (src.tolist(), dst.tolist(), kept.tolist()) if order == "score" else {*pairs}

    below = [merged(scores + change) for change in changes(scores, edge * 0.49)]
    assert all(each == merged(scores) for each in below)
    if np.isfinite(edge):
        above = [merged(scores + change) for change in changes(scores, edge * 0.51)]
        assert any(each != merged(scores) for each in above)


MATCH_BY = {order: replace(MATCH, ordered=order) for order in ops.ORDERS}


def changes(scores: Array, amount: float) -> list[Array]:
    """Lifts one score and lowers all others, one after another; nothing by infinity."""
    if not np.isfinite(amount):
        return []
    found = []
    for place in np.ndindex(scores.shape):
        change = np.full(scores.shape, -amount)
        change[place] = amount
        found.append(change)
    return found


def test_how_near_an_order_is_to_a_tie() -> None:
    scores = np.array([[5.0, 1.0, 2.5, 4.0]])
    sorts = np.argsort(-scores, axis=1)
    two, one = sorts[:, :2], scores.argmax(axis=1)
    assert fall(ORDER, scores, scores, [sorts], [sorts]).edge == pytest.approx(1.0 / 5)
    assert fall(ORDER, scores, scores, [two], [two]).edge == pytest.approx(1.0 / 5)
    assert fall(ORDER, scores, scores, [one], [one]).edge == pytest.approx(1.0 / 5)
    apart = np.array([[5.0, 2.0, 2.0, -np.inf]])  # which of two that are left out makes no odds
    one = apart.argmax(axis=1)
    assert fall(ORDER, apart, apart, [one], [one]).edge == pytest.approx(3.0 / 5)
    blocked = np.array([[5.0, -np.inf, -np.inf]])
    order = np.argsort(-blocked, axis=1)
    assert fall(ORDER, blocked, blocked, [order], [order]).edge == np.inf


def test_how_near_a_comparison_is_to_a_tie() -> None:
    scores = np.array([0.3, -0.6, np.inf])
    found = fall(COMPARISON, scores, scores, [scores > 0], [scores > 0])
    assert found.edge == pytest.approx(0.5)
    assert not found.is_near
    near = fall(COMPARISON, scores, scores + [0.31, 0, 0], [scores > 0], [scores > 0])
    assert near.is_near


def test_without_rounding_not_even_equal_scores_are_near_a_tie() -> None:
    scores = np.array([[1.0, 1.0]])
    order = np.argsort(-scores, axis=1, kind="stable")
    found = fall(ORDER, scores, scores, [order], [order])
    assert (found.edge, found.is_near) == (0.0, False)
    assert fall(ORDER, scores, scores + [1e-6, 0], [order], [order]).is_near
