"""DPC-KNN against its reference."""

from __future__ import annotations

import torch
from helpers.reduction import groupings as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.dpcknn import DPCKNN


@given(
    case=cases(sized=False, most=32),
    keep=st.sampled_from([1.0, 0.7, 0.5, 0.2, 0.01]),
    neighbours=st.sampled_from([5, 1, 3, 40]),
)
@settings(max_examples=60)
def test_it_clusters_around_density_peaks(case: Case, keep: float, neighbours: int) -> None:
    tokens = case.tokens()
    if case.tied:  # points of a line, whose distances are exact numbers
        line = tokens.x.sum(dim=-1, keepdim=True)
        tokens = tokens.with_x(torch.cat([line, torch.zeros_like(tokens.x[..., 1:])], dim=-1))
    method = DPCKNN(keep=keep, neighbours=neighbours)
    found = method.after_mlp(Layer(3, 12), tokens, case.attention())
    wanted = [
        reference.dpcknn(image(tokens, number)[0], case.special, keep, neighbours)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)
