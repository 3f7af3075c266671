"""EViT and top-k against their reference."""

from __future__ import annotations

import torch
from helpers.reduction import selections as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.evit import EViT
from tokexport.graph_passes.reduction.methods.topk import TopK

SHARES = st.sampled_from([1.0, 0.9, 0.7, 0.5, 0.25, 0.01])


@given(case=cases(special=(1, 2, 5)), keep=SHARES, fuse=st.booleans())
@settings(max_examples=60)
def test_evit_keeps_what_the_class_token_attends_to(case: Case, keep: float, fuse: bool) -> None:
    tokens, attention = case.tokens(), case.attention()
    found = EViT(keep=keep, fuse=fuse).after_attention(Layer(3, 12), tokens, attention)
    attended = attention.probabilities[:, :, 0].mean(dim=1).tolist()
    wanted = [
        reference.evit(*image(tokens, number), attended[number], case.special, keep, fuse)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@given(case=cases(special=(1, 2, 5)), keep=SHARES)
@settings(max_examples=30)
def test_topk_keeps_the_same_without_a_fused_token(case: Case, keep: float) -> None:
    tokens, attention = case.tokens(), case.attention()
    found = TopK(keep=keep).after_attention(Layer(3, 12), tokens, attention)
    attended = attention.probabilities[:, :, 0].mean(dim=1).tolist()
    wanted = [
        reference.evit(*image(tokens, number), attended[number], case.special, keep, False)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@given(case=cases(special=(1,), tied=False))
@settings(max_examples=30)
def test_the_class_tokens_row_is_the_same_without_the_whole_matrix(case: Case) -> None:
    whole, row = case.attention(), case.attention()
    assert whole.probabilities.shape[-1] == case.count
    torch.testing.assert_close(row.of_class_token, whole.of_class_token, rtol=0, atol=1e-12)
    assert "probabilities" not in row.__dict__
    torch.testing.assert_close(row.result(), whole.result(), rtol=0, atol=1e-12)


def test_the_fused_token_competes_later() -> None:
    case = Case(seed=3, batch=2, special=1, patches=8)
    method, attention = EViT(keep=0.5), case.attention()
    once = method.after_attention(Layer(3, 12), case.tokens(), attention)
    assert once.count == 1 + 4 + 1
    later = Case(seed=5, batch=2, special=1, patches=5).attention()
    twice = method.after_attention(Layer(6, 12), once, later)
    assert twice.count == 1 + 3 + 1
    ranks = later.of_class_token[:, 1:].argsort(dim=1, descending=True)
    assert any(4 in row[:3] for row in ranks.tolist())  # the fused one stays in some image
    kept = ranks[:, :3, None].expand(-1, -1, once.x.shape[-1]) + 1
    torch.testing.assert_close(twice.x[:, 1:4], once.x.gather(1, kept), rtol=0, atol=0)


def test_it_acts_at_the_quarters() -> None:
    assert [n for n in range(12) if EViT().acts_in(Layer(n, 12))] == [3, 6, 9]
    assert [n for n in range(12) if EViT(layers=(0, 11)).acts_in(Layer(n, 12))] == [0, 11]
