"""MCTF against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.reduction import mctf as reference
from helpers.reduction.cases import HEADS, Case, assert_comes_to, cases, image
from helpers.reduction.projections import head_rows, probabilities, projections
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.mctf import AHEAD, LATER, MCTF, PRECISE

LAYER = Layer(1, 4)
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "r": st.one_of(st.integers(0, 16), st.sampled_from([0.1, 0.25, 0.5, 0.99])),
        "bidirectional": st.booleans(),
        "pooling": st.integers(0, 3),
        "least": st.sampled_from([1, 2, 5, 10]),
        "tau_sim": st.sampled_from([1.0, 0.5]),
        "tau_info": st.sampled_from([20.0, 1.0]),
        "tau_size": st.sampled_from([40.0, 1.0]),
    }
)


def _wanted_options(options: dict[str, Any]) -> reference.Options:
    return reference.Options(**{key: one for key, one in options.items() if key != "r"})


@given(case=cases(tied=False), options=OPTIONS, ahead=st.sampled_from([AHEAD, PRECISE]))
@settings(max_examples=80)
def test_it_merges_one_step_ahead(case: Case, options: dict[str, Any], ahead: int) -> None:
    block, tokens = projections(case.seed), case.tokens()
    method = MCTF(one_step_ahead=ahead, **options)
    found, attention = method.before_attention(LAYER, tokens, block)
    wanted, matrices, values = [], [], []
    for number in range(case.batch):
        x, size = image(tokens, number)
        before = probabilities(x, size, block)
        outcome, merged = reference.mctf(
            x, before, size, case.special, options["r"], _wanted_options(options)
        )
        if ahead == PRECISE:
            merged = probabilities(np.array(outcome.x), outcome.size, block)
        wanted.append(outcome)
        matrices.append(merged)
        values.append([head_rows(np.array(outcome.x), block.v, head) for head in range(HEADS)])
    assert_comes_to(found, wanted, tokens)
    result = np.array(matrices) @ np.array(values)
    np.testing.assert_allclose(attention.result().numpy(), result, rtol=0, atol=1e-8)


@given(case=cases(tied=False), options=OPTIONS)
@settings(max_examples=40)
def test_it_merges_behind_the_mlp(case: Case, options: dict[str, Any]) -> None:
    block, tokens = projections(case.seed), case.tokens()
    method = MCTF(one_step_ahead=LATER, **options)
    same, attention = method.before_attention(LAYER, tokens, block)
    assert same is tokens
    later = tokens.with_x(tokens.x.flip(-1) + 1)
    found = method.after_mlp(LAYER, later, attention)
    wanted = []
    for number in range(case.batch):
        x, size = image(tokens, number)
        before = probabilities(x, size, block)
        x, _ = image(later, number)
        options_ = _wanted_options(options)
        wanted.append(reference.mctf(x, before, size, case.special, options["r"], options_)[0])
    assert_comes_to(found, wanted, later)


@given(case=cases(), options=OPTIONS)
@settings(max_examples=80)
def test_of_equal_scores_the_lower_index_comes_first(case: Case, options: dict[str, Any]) -> None:
    options = {**options, "tau_sim": 1.0, "tau_info": 1.0, "tau_size": 1.0}
    tokens, attention = case.tokens(), case.attention()
    found = MCTF(one_step_ahead=LATER, **options).after_mlp(LAYER, tokens, attention)
    wanted = []
    for number in range(case.batch):
        x, size = image(tokens, number)
        given_ = attention.probabilities[number].numpy()
        options_ = _wanted_options(options)
        wanted.append(reference.mctf(x, given_, size, case.special, options["r"], options_)[0])
    assert_comes_to(found, wanted, tokens)


@pytest.mark.parametrize("ahead", [AHEAD, PRECISE])
def test_it_does_nothing_behind_the_mlp_where_it_merged_before(ahead: int) -> None:
    tokens, block = Case(0, 2, 1, 20).tokens(), projections(0)
    method = MCTF(r=4, one_step_ahead=ahead)
    merged, attention = method.before_attention(LAYER, tokens, block)
    assert merged.count == 17
    assert method.after_mlp(LAYER, merged, attention) is merged


def test_attention_of_before_the_merge_is_not_taken_for_that_behind_it() -> None:
    tokens, block = Case(0, 2, 1, 20).tokens(), projections(0)
    _, attention = MCTF(r=4).before_attention(LAYER, tokens, block)
    for ask in (lambda: attention.probabilities, lambda: attention.of_class_token):
        with pytest.raises(NotImplementedError, match="no matrix of the merged tokens"):
            ask()


@pytest.mark.parametrize(
    ("r", "count", "left"),
    [
        (16, 197, 181),
        (0.2, 197, 158),  # of 196 patches 39 go
        (120, 197, 99),  # at most half
        (18, 37, 19),
        (18, 19, 10),  # ten stay
        (18, 10, 10),
        (0, 37, 37),
    ],
)
def test_how_many_stay(r: float, count: int, left: int) -> None:
    case = Case(0, 1, 1, count - 1)
    found, _ = MCTF(r=r).before_attention(LAYER, case.tokens(), projections(0))
    assert found.count == left


def test_it_leaves_the_first_block_alone() -> None:
    acts = [MCTF().acts_in(Layer(index, 12)) for index in range(12)]
    assert acts == [False] + [True] * 11
    fast = MCTF(layers=(3, 6, 9))
    assert [n for n in range(12) if fast.acts_in(Layer(n, 12))] == [3, 6, 9]
