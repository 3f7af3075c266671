"""DivPrune against its reference."""

from __future__ import annotations

import pytest
from helpers.reduction import selections as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.divprune import DivPrune


@given(case=cases(), keep=st.sampled_from([1.0, 0.8, 0.5, 0.3, 0.098, 0.001]))
@settings(max_examples=70)
def test_it_keeps_what_is_most_unlike(case: Case, keep: float) -> None:
    tokens = case.tokens()
    found = DivPrune(keep=keep).after_mlp(Layer(10, 12), tokens, case.attention())
    wanted = [
        reference.divprune(*image(tokens, number), case.special, keep)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@pytest.mark.parametrize(("patches", "left"), [(576, 56), (5, 1), (1, 1)])
def test_by_default_it_keeps_a_tenth(patches: int, left: int) -> None:
    case = Case(0, 1, 1, patches)
    found = DivPrune().after_mlp(Layer(10, 12), case.tokens(), case.attention())
    assert found.count == 1 + left
