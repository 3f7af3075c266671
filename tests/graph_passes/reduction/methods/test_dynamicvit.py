"""DynamicViT against its reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.reduction import selections as reference
from helpers.reduction.cases import WIDTH, Case, assert_comes_to, cases, image
from helpers.reduction.outcome import Array
from helpers.reduction.projections import projections
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.dynamicvit import DynamicViT, Predictor

#: Scores, of float64, that are no further apart may change places by rounding.
NEAR_TIE = 1e-12


def _scores(predictor: Predictor, patches: Array) -> list[float]:
    """The predictor's log-probabilities of keeping, patch after patch."""
    local = [_through(predictor.in_conv, row) for row in patches]
    half = patches.shape[1] // 2
    overall = sum(row[half:] for row in local) / len(local)
    both = [[*row[:half], *overall] for row in local]
    scores = []
    for row in both:
        drop_or_keep = _through(predictor.out_conv[:-1], row)
        scores.append(drop_or_keep[0] - math.log(sum(math.exp(one) for one in drop_or_keep)))
    return scores


def _through(layers: nn.Sequential, row: Array) -> Array:
    row = np.array(row)
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            spread = math.sqrt(float(((row - row.mean()) ** 2).mean()) + layer.eps)
            row = (row - row.mean()) / spread * layer.weight.numpy() + layer.bias.numpy()
        elif isinstance(layer, nn.Linear):
            row = layer.weight.numpy() @ row + layer.bias.numpy()
        else:
            assert isinstance(layer, nn.GELU)
            row = np.array([0.5 * one * (1 + math.erf(one / math.sqrt(2))) for one in row])
    return row


@torch.no_grad()
@given(
    case=cases(special=(0, 1, 2, 5), tied=False),
    keep=st.sampled_from([1.0, 0.7, 0.5, 0.05]),
    layer=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_it_keeps_what_the_predictor_picks(case: Case, keep: float, layer: int, seed: int) -> None:
    torch.manual_seed(seed)
    predictor = Predictor(WIDTH).double()
    for parameter in predictor.parameters():
        nn.init.normal_(parameter)
    method = DynamicViT(keep=keep, layers=(0, 2, 3))
    times = [1, 1, 2, 3][layer]
    tokens, block = case.tokens(), projections(seed)
    found, attention = method.before_attention(Layer(layer, 4, predictor), tokens, block)
    left = max(int(case.patches * keep**times), 1)
    wanted = []
    for number in range(case.batch):
        x, size = image(tokens, number)
        scores = _scores(predictor, x[case.special :])
        # A predictor that is sure of two patches rounds both scores to the same number, or nearly.
        assume(len(scores) < 2 or float(np.diff(sorted(scores)).min()) > NEAR_TIE)
        wanted.append(reference.in_score_order(x, size, scores, case.special, left))
    assert_comes_to(found, wanted, tokens)
    torch.testing.assert_close(attention.q, block.attention(found).q, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "left"), [(3, 137), (6, 96), (9, 67)])
def test_its_shares_are_of_what_there_was_at_first(layer: int, left: int) -> None:
    case, method = Case(0, 1, 1, 196), DynamicViT()
    predictor = Predictor(WIDTH).double()
    tokens = case.tokens()
    found, _ = method.before_attention(Layer(layer, 12, predictor), tokens, projections(0))
    assert found.count == 1 + left


def test_it_acts_before_the_quarters_and_has_a_predictor_there() -> None:
    assert [n for n in range(12) if DynamicViT().acts_in(Layer(n, 12))] == [3, 6, 9]
    assert isinstance(DynamicViT().trained(Layer(3, 12), 8), Predictor)
