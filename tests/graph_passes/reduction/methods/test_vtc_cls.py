"""VTC-CLS against its reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.reduction import selections as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.vtc_cls import VtcCls


@given(case=cases(special=(1, 2, 5)), left=st.integers(1, 16), start=st.integers(0, 4))
@settings(max_examples=60)
def test_it_sums_attention_over_blocks(case: Case, left: int, start: int) -> None:
    depth, method = 6, VtcCls(tokens=left, start=start)
    tokens = case.tokens()
    found = tokens
    scores = [[0.0] * case.patches for _ in range(case.batch)]
    for index in range(depth):
        layer = Layer(index, depth)
        assert method.acts_in(layer) is (start <= index <= 4)
        if not method.acts_in(layer):
            continue
        attention = replace(case, seed=case.seed + 10 * index).attention()
        attended = attention.probabilities[:, :, 0].mean(dim=1)[:, case.special :].tolist()
        scores = [
            [one + more for one, more in zip(old, new, strict=True)]
            for old, new in zip(scores, attended, strict=True)
        ]
        assert found.count == case.count
        found = method.after_mlp(layer, found, attention)
    wanted = [
        reference.in_own_order(*image(tokens, number), scores[number], case.special, left)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


def test_by_default_it_counts_from_block_16_of_clips_24() -> None:
    assert VtcCls().tokens == 36
    assert [n for n in range(24) if VtcCls().acts_in(Layer(n, 24))] == list(range(16, 23))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 12])
def test_it_acts_in_a_model_of_any_depth(depth: int) -> None:
    acting = [n for n in range(depth) if VtcCls().acts_in(Layer(n, depth))]
    assert acting[-1] == max(depth - 2, 0)


def test_it_refuses_to_start_behind_its_end() -> None:
    with pytest.raises(SurgeryError, match=r"start is 11, .* behind block 10"):
        VtcCls(start=11).acts_in(Layer(0, 12))
