"""The baseline: positions that are the same for all images."""

from __future__ import annotations

import math

import pytest
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from helpers.reduction.outcome import selected, untouched
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.random_keep import RandomKeep

SHARES = st.sampled_from([1.0, 0.9, 0.7, 0.5, 0.25, 0.01])


def _positions(method: RandomKeep, case: Case, layer: int = 3) -> list[list[int]]:
    tokens = case.tokens()
    found = method.after_attention(Layer(layer, 12), tokens, case.attention())
    assert found.trace is not None
    assert found.trace.origins is not None
    return found.trace.origins.tolist()


@given(case=cases(), keep=SHARES)
@settings(max_examples=40)
def test_strided_positions_are_evenly_spaced(case: Case, keep: float) -> None:
    tokens = case.tokens()
    method = RandomKeep(keep=keep, strided=True)
    found = method.after_attention(Layer(3, 12), tokens, case.attention())
    left = math.ceil(keep * case.patches)
    patches = [case.special + math.floor(n * case.patches / left) for n in range(left)]
    stay = [*range(case.special), *patches]
    wanted = [
        untouched(*image(tokens, number))
        if left == case.patches
        else selected(*image(tokens, number), stay)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@given(case=cases(), keep=SHARES, seed=st.integers(0, 9))
@settings(max_examples=40)
def test_random_positions_are_drawn_once(case: Case, keep: float, seed: int) -> None:
    tokens, method = case.tokens(), RandomKeep(keep=keep, seed=seed)
    stay = _positions(method, case)[0]
    assert stay[: case.special] == list(range(case.special))
    assert stay == sorted(set(stay))
    assert len(stay) == case.special + math.ceil(keep * case.patches)
    found = method.after_attention(Layer(3, 12), tokens, case.attention())
    wanted = [selected(*image(tokens, number), stay) for number in range(case.batch)]
    assert_comes_to(found, wanted, tokens)


def test_seeds_and_blocks_have_positions_of_their_own() -> None:
    case = Case(0, 1, 1, 196)
    drawn = [
        _positions(RandomKeep(seed=seed), case, layer)[0] for seed in (0, 1) for layer in (3, 6)
    ]
    assert len({tuple(one) for one in drawn}) == 4
    assert drawn[0] == _positions(RandomKeep(seed=0), case, 3)[0]


@pytest.mark.parametrize("seed", range(3))
def test_random_positions_are_no_pattern(seed: int) -> None:
    patches = _positions(RandomKeep(keep=0.5, seed=seed), Case(0, 1, 0, 1000))[0]
    halves = sum(n < 500 for n in patches)
    assert 200 < halves < 300
    assert len({after - before for before, after in zip(patches, patches[1:], strict=False)}) > 4
