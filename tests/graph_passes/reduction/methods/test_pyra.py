"""PYRA against its reference."""

from __future__ import annotations

import pytest
import torch
from helpers.reduction import tome as reference
from helpers.reduction.cases import WIDTH, Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.pyra import PYRA, Modulation


@given(case=cases(), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60)
def test_pyra_modulates_what_merges(case: Case, seed: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(0, case.patches // 2))
    torch.manual_seed(seed)
    method, layer = PYRA(r=r), Layer(1, 4)
    trained = method.trained(layer, WIDTH)
    a, b = [], [0.0] * WIDTH
    if r:
        assert isinstance(trained, Modulation)
        trained = trained.double()
        trained.b.data.normal_()
        a, b = trained.a.flatten().tolist(), trained.b.flatten().tolist()
    else:
        assert trained is None
    tokens, attention = case.tokens(), case.attention()
    with torch.no_grad():
        found = method.after_attention(Layer(1, 4, trained), tokens, attention)
    wanted = [
        reference.pyra(*image(tokens, number), attention.k[number].numpy(), case.special, r, a, b)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@given(case=cases(), data=st.data())
@settings(max_examples=30)
def test_pyra_is_tome_before_it_is_trained(case: Case, data: st.DataObject) -> None:
    r = data.draw(st.integers(0, case.patches // 2))
    method, layer = PYRA(r=r), Layer(0, 4)
    trained = method.trained(layer, WIDTH)
    tokens, attention = case.tokens(), case.attention()
    with torch.no_grad():
        layer = Layer(0, 4, None if trained is None else trained.double())
        found = method.after_attention(layer, tokens, attention)
    wanted = [
        reference.tome(*image(tokens, number), attention.k[number].numpy(), case.special, r)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


def test_pyra_takes_no_other_r_than_it_was_trained_with() -> None:
    case, method = Case(0, 1, 1, 6), PYRA(r=4)
    layer = Layer(2, 4, method.trained(Layer(2, 4), WIDTH))
    with pytest.raises(SurgeryError, match=r"r is 4 in block 2, where at most 3 tokens can merge"):
        method.after_attention(layer, case.tokens(), case.attention())


def test_pyra_leaves_the_tokens_it_was_given() -> None:
    case, method = Case(0, 1, 1, 6), PYRA(r=2)
    tokens, attention = case.tokens(), case.attention()
    before = tokens.x.clone()
    trained = Modulation(2, WIDTH).double()
    torch.nn.init.normal_(trained.b)
    with torch.no_grad():
        method.after_attention(Layer(0, 4, trained), tokens, attention)
    torch.testing.assert_close(tokens.x, before, rtol=0, atol=0)
