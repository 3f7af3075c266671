"""CrossGET against its reference."""

from __future__ import annotations

import torch
from helpers.reduction import groupings as reference
from helpers.reduction.cases import WIDTH, Case, assert_comes_to, cases, image
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.crossget import CrossGET, CrossToken


@torch.no_grad()
@given(case=cases(), r=st.integers(0, 16), seed=st.integers(0, 99))
@example(case=Case(7365286, 1, 0, 10), r=4, seed=0)  # a product that is not symmetric
@settings(max_examples=80)
def test_it_merges_what_is_not_asked_for(case: Case, r: int, seed: int) -> None:
    torch.manual_seed(seed)
    method = CrossGET(r=r)
    trained = method.trained(Layer(0, 4), WIDTH).double()
    assert isinstance(trained, CrossToken)
    if case.tied:
        trained.token.data = trained.token.data.sign()
    tokens, attention = case.tokens(), case.attention()
    found = method.after_attention(Layer(0, 4, trained), tokens, attention)
    wanted = [
        reference.crossget(
            *image(tokens, number),
            attention.k[number].numpy(),
            case.special,
            r,
            trained.token.numpy(),
        )
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


def test_log_size_is_in_its_attention() -> None:
    assert CrossGET().adds_sizes()
