"""ToMe against its reference."""

from __future__ import annotations

import pytest
from helpers.reduction import tome as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.pyra import PYRA
from tokexport.graph_passes.reduction.methods.tome import ToMe


@given(case=cases(), r=st.integers(0, 16))
@settings(max_examples=70)
def test_tome_merges_the_best_pairs(case: Case, r: int) -> None:
    tokens, attention = case.tokens(), case.attention()
    found = ToMe(r=r).after_attention(Layer(0, 4), tokens, attention)
    wanted = [
        reference.tome(*image(tokens, number), attention.k[number].numpy(), case.special, r)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@given(case=cases(special=(0, 1)), depth=st.integers(1, 5))
@settings(max_examples=30)
def test_tome_takes_each_blocks_own_number(case: Case, depth: int) -> None:
    schedule = tuple(range(depth))
    tokens, attention = case.tokens(), case.attention()
    for index in range(depth):
        found = ToMe(r=schedule).after_attention(Layer(index, depth), tokens, attention)
        assert found.count == case.count - min(index, case.patches // 2)


@pytest.mark.parametrize(("prop_attn", "kind"), [(True, ToMe), (False, ToMe), (True, PYRA)])
def test_sizes_are_in_the_attention_unless_asked(prop_attn: bool, kind: type[ToMe]) -> None:
    assert kind(prop_attn=prop_attn).adds_sizes() is prop_attn
