"""ToFu against its reference."""

from __future__ import annotations

import torch
from helpers.reduction import tome as reference
from helpers.reduction.cases import Case, assert_comes_to, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.tofu import NORMS, ToFu

DEPTHS = st.integers(1, 6).flatmap(
    lambda depth: st.tuples(st.integers(0, depth - 1), st.just(depth))
)


@given(
    case=cases(sized=False),
    keep=st.sampled_from([1.0, 0.9, 0.75, 0.5, 0.1]),
    where=DEPTHS,
    norm=st.sampled_from(NORMS),
)
@settings(max_examples=80)
def test_tofu_prunes_early_and_merges_late(
    case: Case, keep: float, where: tuple[int, int], norm: str
) -> None:
    tokens, attention = case.tokens(), case.attention()
    if case.tied:  # rows of 1 and -1 may cancel out, and a mean of zero has no direction
        tokens = tokens.with_x(tokens.x + torch.linspace(0.1, 0.3, tokens.x.shape[-1]))
    layer, depth = where
    found = ToFu(keep=keep, norm=norm).after_attention(Layer(layer, depth), tokens, attention)
    wanted = [
        reference.tofu(
            tokens.x[number].numpy(),
            attention.k[number].numpy(),
            case.special,
            keep,
            layer,
            depth,
            norm,
        )
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


def test_tofu_puts_a_pruned_token_back_as_it_last_was() -> None:
    case = Case(0, 3, 1, 8)
    tokens = case.tokens()
    found = ToFu(keep=0.6).after_attention(Layer(0, 4), tokens, case.attention())
    assert found.count == 9 - 3
    assert found.trace is not None
    torch.testing.assert_close(found.trace.restored(found.x), tokens.x, rtol=0, atol=0)
