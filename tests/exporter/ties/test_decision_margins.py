"""Whether rounding explains a decision: exact on random scores, and not fooled by wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.exporter.rounding.score_rounding import moved
from tokexport.exporter.ties.decision_margins import DecisionDiff, compare_decision
from tokexport.exporter.ties.held_scores import Allowance, hold_scores
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decision_kinds import Decision, DecisionKind
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import epsilon

MATCH = Decision(
    operator="tokexport.bipartite_match",
    line="",
    kind=DecisionKind.MATCH,
    dim=1,
    ordered="index",
    scores=("s",),
    replayed={0: "t0", 1: "t1", 2: "t2"},
    own={0: "o0", 1: "o1", 2: "o2"},
)
ORDER = replace(
    MATCH,
    operator="aten.topk",
    kind=DecisionKind.ORDER,
    ordered="",
    replayed={1: "t1"},
    own={1: "o1"},
)
COMPARISON = replace(
    ORDER,
    operator="aten.gt",
    kind=DecisionKind.COMPARISON,
    replayed={0: "t0"},
    own={0: "o0"},
    rule="gt",
)
STAIRCASE = replace(COMPARISON, operator="aten.floor", kind=DecisionKind.STAIRCASE)


def diff(
    decision: Decision,
    scores: Array,
    near: Array,
    choices: list[Array],
    own: list[Array],
    allowance: Allowance | None = None,
) -> DecisionDiff:
    """Holds one choice to another; the results are given in the order of the positions."""
    eager = dict(zip(decision.replayed.values(), choices, strict=True))
    step = dict(zip(decision.own.values(), own, strict=True))
    return compare_decision(decision, [hold_scores(scores, near, allowance)], eager, step)


def alone(floor: float, decides_on_shown: bool = True) -> Allowance:
    """What scores may be off by where nothing is known of rounding."""
    return Allowance(floor, decides_on_shown=decides_on_shown)


FP32 = alone(1e-5)


def matched(scores: Array, r: int, order: str) -> list[Array]:
    """What ``bipartite_match`` decides."""
    return [part.numpy() for part in ops.bipartite_match(torch.from_numpy(scores), r, order)]


#: What a mask puts in the place of scores.
FILLS = (-np.inf, -1e4, float(np.finfo(np.float32).min))


def rounded(scores: Array, rounding_error: float, random: np.random.Generator) -> Array:
    """Moves every number by a share of itself and of the scale, but what a mask put there."""
    return scores + random.uniform(-1, 1, scores.shape) * most(scores, rounding_error)


def most(scores: Array, rounding_error: float) -> Array:
    """How far rounding moves each number."""
    return np.where(np.abs(scores) > 1e3, 0.0, rounding_error * (1 + np.abs(scores).clip(0, 10)))


def measured(scores: Array, rounding_error: float) -> Allowance:
    """What such scores may be off by where that was measured, and nothing beyond."""
    return Allowance(measured={0: moved(scores, most(scores, rounding_error), 1)})


@given(
    seed=st.integers(0, 2**32 - 1),
    rounding_error=st.sampled_from([0.0, 1e-7, 1e-4, 0.3]),
    order=st.sampled_from(ops.ORDERS),
    r=st.integers(1, 6),
    fill=st.sampled_from(FILLS),
    width=st.sampled_from([5, 9]),
)
def test_a_match_on_noisy_scores_is_always_explained_by_the_noise(
    seed: int, rounding_error: float, order: str, r: int, fill: float, width: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((2, 7, width)).round(1)  # full of exact ties
    scores[:, 0] = fill
    scores[:, :, 3] = np.where(random.random((2, 7)) < 0.5, fill, scores[:, :, 3])
    near = rounded(scores, rounding_error, random)
    decision = replace(MATCH, ordered=order)
    choices = matched(scores, r, order), matched(near, r, order)
    found = diff(decision, scores, near, *choices, measured(scores, rounding_error))
    assert found.is_tie, found.why_not
    assert np.isfinite(found.margin)
    assert found.flips == 0 or rounding_error > 0


@given(
    seed=st.integers(0, 2**32 - 1),
    rounding_error=st.sampled_from([0.0, 1e-6, 0.2]),
    count=st.sampled_from([1, 5, 8]),
    dim=st.sampled_from([1, 2]),
    negative=st.booleans(),
)
def test_so_is_an_order(
    seed: int, rounding_error: float, count: int, dim: int, negative: bool
) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((3, 8, 9)).round(1)
    scores[1, 2:5, 2:5] = random.choice(FILLS)
    near = rounded(scores, rounding_error, random)
    sign = 1 if negative else -1
    choices, own = (
        np.argsort(sign * each, axis=dim, kind="stable").take(range(count), axis=dim)
        for each in (scores, near)
    )
    decision = replace(ORDER, dim=dim, negative=negative, stable=True)
    found = diff(decision, scores, near, [choices], [own], measured(scores, rounding_error))
    assert found.is_tie, found.why_not


@given(
    seed=st.integers(0, 2**32 - 1),
    operator=st.sampled_from(["gt", "ge", "lt", "le", "eq", "ne"]),
    rounding_error=st.sampled_from([0.0, 1e-6, 0.2]),
)
def test_so_is_a_comparison_and_turned_over_it_is_none(
    seed: int, operator: str, rounding_error: float
) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((3, 8)).round(1)
    scores[0, 3] = -np.inf
    near = rounded(scores, rounding_error, random)
    decision = replace(COMPARISON, rule=operator, beside=0.5)
    choices, own = (getattr(np, NUMPYS[operator])(each, 0.5) for each in (scores, near))
    found = diff(decision, scores, near, [choices], [own], measured(scores, rounding_error))
    assert found.is_tie, found.why_not
    own[1, 2] = not own[1, 2]
    turned = diff(decision, scores, near, [choices], [own], measured(scores, rounding_error))
    assert turned.why_not == "it gets 1 of its own comparisons wrong"


STAIRCASES: dict[str, Callable[[Array], Array]] = {
    "round": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "sign": np.sign,
}


@given(
    seed=st.integers(0, 2**32 - 1),
    rule=st.sampled_from([*STAIRCASES]),
    rounding_error=st.sampled_from([0.0, 1e-6, 0.2]),
    dtype=st.sampled_from(["float32", "int64"]),
)
def test_so_are_the_steps_of_a_staircase_and_one_further_is_none(
    seed: int, rule: str, rounding_error: float, dtype: str
) -> None:
    random = np.random.default_rng(seed)
    scores = (2 * random.standard_normal((3, 8))).round(0) / 2  # on the edges of all of them
    near = rounded(scores, rounding_error, random)
    if dtype == "float32":
        scores[0, 3] = near[0, 3] = -np.inf
    choices, own = (STAIRCASES[rule](each).astype(dtype) for each in (scores, near))
    decision = replace(STAIRCASE, rule=rule)
    found = diff(decision, scores, near, [choices], [own], measured(scores, rounding_error))
    assert found.is_tie, found.why_not
    assert found.flips == 0 or (found.is_near and found.margin <= rounding_error * 4)
    own[1, 2] += 1
    wrong = diff(decision, scores, near, [choices], [own], measured(scores, rounding_error))
    assert wrong.why_not == f"it gives 1 of its own numbers another {rule}"


def test_a_rounding_to_decimals_is_one_by_a_product_that_rounds() -> None:
    scores = np.array([[0.125, 0.13499999, 0.265, 12.345]])
    hundredth = replace(STAIRCASE, rule="round", digits=2)
    choices = np.array([[0.12, 0.13, 0.26, 12.34]], np.float32)
    own = np.array([[0.12, 0.14, 0.27, 12.35]], np.float32)
    assert diff(hundredth, scores, scores, [choices], [choices]).is_tie
    found = diff(hundredth, scores, scores, [choices], [own])
    assert found.is_tie
    assert found.flips == 3
    own[0, 1] = 0.15
    assert not diff(hundredth, scores, scores, [choices], [own]).is_tie


@pytest.mark.parametrize("number", [3e9, -1.0, np.inf])
def test_of_a_number_that_a_type_cannot_hold_a_cast_says_nothing(number: float) -> None:
    scores, kind = np.array([[1.5, number]]), np.uint8 if number == -1 else np.int32
    choices, own = np.array([[1, 7]], kind), np.array([[1, 9]], kind)
    assert diff(replace(STAIRCASE, rule="trunc"), scores, scores, [choices], [own]).is_tie
    own[0, 0] = 2
    assert not diff(replace(STAIRCASE, rule="trunc"), scores, scores, [choices], [own]).is_tie


NUMPYS = {
    "gt": "greater",
    "ge": "greater_equal",
    "lt": "less",
    "le": "less_equal",
    "eq": "equal",
    "ne": "not_equal",
}


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["float16", "bfloat16"]))
def test_in_half_a_step_may_decide_in_more_bits_than_it_shows(seed: int, kind: str) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 9, 6, generator=draw)
    error = epsilon(kind)
    wide = scores * (1 + error * (2 * torch.rand(scores.shape, generator=draw) - 1))
    shown = wide.to(getattr(torch, kind)).float().numpy()
    rounding_error = moved(scores.numpy(), np.abs(scores.numpy()) * error, 2).times(2)
    allowance = Allowance(
        0.0, {0: rounding_error}, samples=2, computed_in=kind, decides_on_shown=False
    )
    choices = matched(scores.numpy(), 4, "score"), matched(wide.numpy(), 4, "score")
    found = diff(MATCH_BY["score"], scores.numpy(), shown, *choices, allowance)
    assert found.is_tie, found.why_not
    assert found.flips == 0 or found.is_near


def with_one_loud(where: tuple[int | slice, ...]) -> tuple[Array, Array]:
    """Scores (2, 8, 6) of which a part is large, and off by much of what the rest is."""
    scores = np.random.default_rng(0).standard_normal((2, 8, 6))
    scores[where] *= 1e6
    near = scores.copy()
    near[where] *= 1 + 1e-6
    return scores, near


LOUD = pytest.mark.parametrize(
    "where",
    [(0, 3), (slice(None), slice(None), 2), (1,), (0, 3, 2)],
    ids=["row", "column", "sample", "score"],
)


@LOUD
def test_beside_what_is_loud_a_score_that_is_wrong_is_no_tie(where: tuple[int, ...]) -> None:
    scores, near = with_one_loud(where)
    right = matched(scores, 3, "index")
    allowance = Allowance(1e-5, samples=2)
    assert diff(MATCH, scores, near, right, matched(near, 3, "index"), allowance).is_tie
    near[0, 5, 4] += 0.1
    found = diff(MATCH, scores, near, right, matched(near, 3, "index"), allowance)
    assert found.why_not.startswith("its scores are off by ")


@LOUD
def test_beside_what_is_loud_a_choice_that_is_wrong_is_no_tie(where: tuple[int, ...]) -> None:
    scores, near = with_one_loud(where)
    right, own = (matched(each, 6, "index") for each in (scores, near))
    own[2][0, -1] = (own[2][0, -1] + 1) % 6  # another partner for the last that merges
    found = diff(MATCH, scores, near, right, own, Allowance(1e-5, samples=2))
    assert found.why_not.startswith("it chooses what is worse by ")


def test_scores_that_agree_to_the_last_bit_change_no_places_for_what_others_are_off_by() -> None:
    scores = np.array([[1.0, 1.0 + 4e-6, 2.0, 3.0]])
    near = scores + [[0.0, 0.0, 0.0, 9e-6]]
    right, wrong = np.array([[3, 2, 1, 0]]), np.array([[3, 2, 0, 1]])
    assert diff(ORDER, scores, near, [right], [right], FP32).is_tie
    found = diff(ORDER, scores, near, [right], [wrong], FP32)
    assert found.why_not.startswith("it chooses what is worse by ")
    assert not found.is_near
    assert diff(ORDER, scores, near + [[6e-6, 0.0, 0.0, 0.0]], [right], [wrong], FP32).is_tie


def test_of_equal_scores_the_lower_index_comes_first_where_a_decision_says_so() -> None:
    scores = np.array([[1.0, 3.0, 1.0, 3.0, 1.0]])
    stable = replace(ORDER, stable=True)
    right = np.array([[1, 3, 0, 2]])
    assert diff(stable, scores, scores, [right], [right]).is_tie
    for other in ([[3, 1, 0, 2]], [[1, 3, 2, 0]], [[1, 3, 0, 4]]):
        own = np.array(other)
        assert diff(ORDER, scores, scores, [right], [own]).is_tie
        found = diff(stable, scores, scores, [right], [own])
        assert found.why_not == "it takes equal scores in another order than that of their places"


@pytest.mark.parametrize("worse", [0.5, 5.0])
def test_a_kernel_that_matches_anew_may_be_worse_by_what_rounding_does_there(worse: float) -> None:
    random = np.random.default_rng(0)
    scores = random.standard_normal((1, 8, 6))
    scores[0, 2] *= 1e6
    rounding = moved(scores, np.abs(scores) * 1e-7, 1)
    best = scores[0, 5].argmax()
    other = (best + 1) % 6
    scores[0, 5, other] = scores[0, 5, best] - worse * 1e-7 * np.abs(scores[0, 5]).max()
    right = matched(scores, 8, "index")
    own = [part.copy() for part in right]
    own[2][own[1] == 5] = other
    allowance = Allowance(1e-5, {0: rounding})
    anew = replace(allowance, decides_on_shown=False)
    assert diff(MATCH, scores, scores, right, own, anew).is_tie == (worse < 1)
    assert not diff(MATCH, scores, scores, right, own, allowance).is_tie


def test_all_numbers_may_be_ordered_as_one() -> None:
    scores = np.array([[0.1, 0.4, 0.2], [0.3, 0.0, 0.5]])
    flat = replace(ORDER, operator="aten.argmax", dim=None, replayed={0: "t0"}, own={0: "o0"})
    right, wrong = np.array(5), np.array(3)
    assert diff(flat, scores, scores, [right], [right]).is_tie
    assert not diff(flat, scores, scores, [right], [wrong]).is_tie


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
    found = diff(MATCH, SCORES, SCORES + 1e-7, right, own, FP32)
    assert found.flips > 0
    assert not found.is_tie


@pytest.mark.parametrize(("negative", "turned"), [(True, False), (False, True), (True, True)])
def test_scores_in_another_form_are_judged_as_they_are_decided_on(
    negative: bool, turned: bool
) -> None:
    decision = replace(MATCH, negative=negative, turned=turned)
    given = np.swapaxes(SCORES, 1, 2) if turned else SCORES
    given = -given if negative else given
    right = matched(SCORES, 2, "index")
    scale = hold_scores(given, given).scale
    same = diff(decision, given, given, right, right)
    assert same == DecisionDiff(0, 0.0, 0.0, tie_gap=same.tie_gap, is_near=False)
    assert 0.1 / scale.max() - 1e-9 <= same.tie_gap <= 0.1 / scale.min() + 1e-9
    own = [np.array(part) for part in ([[1]], [[0, 2]], [[0, 1]])]
    margin = diff(decision, given, given, right, own).margin
    assert 0.1 / scale.max() - 1e-9 <= margin <= 0.1 / scale.min() + 1e-9


def test_kept_rows_out_of_order_are_no_tie() -> None:
    scores = np.array([[[0.9], [0.1], [0.2], [0.3]]])
    right = matched(scores, 1, "index")
    own = [right[0][:, ::-1], *right[1:]]
    assert not diff(MATCH, scores, scores + 1e-7, right, own, FP32).is_tie


def test_scores_that_are_off_are_no_rounding() -> None:
    scores = np.array([[1.0, 2.0, 3.0]])
    order = np.argsort(-scores, axis=1)
    found = diff(ORDER, scores, scores + 0.1, [order], [order], FP32)
    assert 0.1 / 3 < found.score_error < 0.1
    assert found.why_not.startswith("its scores are off by ")
    assert diff(ORDER, scores, scores + 1e-6, [order], [order], FP32).is_tie


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_agrees_with_itself_only(fill: float) -> None:
    scores = np.array([[1.0, fill, 3.0, fill, 2.0]])
    order = np.argsort(-scores, axis=1, kind="stable")
    assert diff(ORDER, scores, scores, [order], [order], FP32).is_tie
    moved_fill = np.where(scores == fill, -1e9, scores)
    assert not diff(ORDER, scores, moved_fill, [order], [order], FP32).is_tie


@pytest.mark.parametrize(
    ("end", "kind"), [(-3.4028235e38, "float32"), (-3.3895e38, "bfloat16"), (-65504.0, "float16")]
)
def test_a_largest_of_nothing_but_minus_infinity_may_be_the_least_number(
    end: float, kind: str
) -> None:
    scores = np.array([[-np.inf, 2.0, 1.0]])
    order = np.array([[1, 2, 0]])
    near = np.array([[end, 2.0, 1.0]])
    allowance = replace(FP32, computed_in=kind)
    found = diff(ORDER, scores, near, [order], [order], allowance)
    assert found.is_tie, found.why_not
    assert not diff(ORDER, scores, np.array([[-1e4, 2.0, 1.0]]), [order], [order], allowance).is_tie
    assert not diff(ORDER, scores, -near, [order], [order], allowance).is_tie
    least = np.array([[end, 2.0, 1.0]])
    assert not diff(ORDER, least, np.array([[end / 2, 2.0, 1.0]]), [order], [order], FP32).is_tie


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from(ops.ORDERS),
    r=st.integers(0, 7),
    amount=st.sampled_from([1e-3, 0.02, 0.1, 0.5]),
)
def test_a_match_is_near_a_tie_where_such_a_change_of_single_scores_turns_it(
    seed: int, order: str, r: int, amount: float
) -> None:
    scores = np.random.default_rng(seed).standard_normal((1, 7, 5))
    right = matched(scores, r, order)

    def merged(given: Array) -> object:
        kept, src, dst = matched(given, r, order)
        pairs = zip(src[0].tolist(), dst[0].tolist(), strict=True)
        return (src.tolist(), dst.tolist(), kept.tolist()) if order == "score" else {*pairs}

    turned = any(merged(scores + change) != merged(scores) for change in changes(scores, amount))
    found = diff(MATCH_BY[order], scores, scores + amount, right, right)
    assert found.is_near == turned


MATCH_BY = {order: replace(MATCH, ordered=order) for order in ops.ORDERS}


def changes(scores: Array, amount: float) -> list[Array]:
    """Lifts one score and lowers all others, one after another."""
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
    for choice in (sorts, two, one):
        assert diff(ORDER, scores, scores, [choice], [choice]).tie_gap == pytest.approx(1 / 4)
    apart = np.array([[5.0, 2.0, 2.0, -np.inf]])  # which of two that are left out makes no odds
    one = apart.argmax(axis=1)
    assert diff(ORDER, apart, apart, [one], [one]).tie_gap == pytest.approx(3 / 2)
    assert not diff(ORDER, apart, apart + [[0, 0, 0.5, 0]], [one], [one]).is_near
    blocked = np.array([[5.0, -np.inf, -np.inf]])
    order = np.argsort(-blocked, axis=1)
    assert diff(ORDER, blocked, blocked, [order], [order]).tie_gap == np.inf


def test_how_near_a_comparison_is_to_a_tie() -> None:
    scores = np.array([0.3, -0.6, np.inf])
    found = diff(COMPARISON, scores, scores, [scores > 0], [scores > 0])
    assert found.tie_gap == pytest.approx(1.0)
    assert not found.is_near
    near = diff(COMPARISON, scores, scores + [0.31, 0, 0], [scores > 0], [scores > 0])
    assert near.is_near
    elsewhere = diff(COMPARISON, scores, scores + [0, 0.31, 0], [scores > 0], [scores > 0])
    assert not elsewhere.is_near


def test_without_rounding_not_even_equal_scores_are_near_a_tie() -> None:
    scores = np.array([[1.0, 1.0]])
    order = np.argsort(-scores, axis=1, kind="stable")
    found = diff(ORDER, scores, scores, [order], [order])
    assert (found.tie_gap, found.is_near) == (0.0, False)
    assert diff(ORDER, scores, scores + [1e-6, 0], [order], [order]).is_near
