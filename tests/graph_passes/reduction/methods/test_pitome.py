"""PiToMe against its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.reduction import groupings as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.pitome import PiToMe

SHARES = st.sampled_from([1.0, 0.95, 0.9, 0.7, 0.5, 0.3, 0.01])
PLACES = st.integers(1, 6).flatmap(
    lambda depth: st.tuples(st.integers(0, depth - 1), st.just(depth))
)


def _compare(case: Case, keep: float, layer: int, depth: int, **options: Any) -> None:
    tokens, attention = case.tokens(), case.attention()
    found = PiToMe(keep=keep, **options).after_attention(Layer(layer, depth), tokens, attention)
    wanted = [
        reference.pitome(
            *image(tokens, number),
            attention.k[number].numpy(),
            case.special,
            keep=keep,
            layer=layer,
            depth=depth,
            **options,
        )
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@given(
    case=cases(tied=False),
    keep=SHARES,
    place=PLACES,
    margin=st.sampled_from([0.75, 0.0, -0.5, 1.0]),
    alpha=st.sampled_from([1.0, 0.3]),
)
@settings(max_examples=80)
def test_it_merges_what_is_crowded(
    case: Case, keep: float, place: tuple[int, int], margin: float, alpha: float
) -> None:
    assume(case.patches != 2)  # both have the same energy, but for rounding
    _compare(case, keep, *place, margin=margin, alpha=alpha)


@given(case=cases(), keep=SHARES, layer=st.sampled_from([0, 2]))
@settings(max_examples=50)
def test_of_equal_energies_the_lower_index_comes_first(case: Case, keep: float, layer: int) -> None:
    # Without its exponential and with such a margin an energy is an exact number.
    _compare(replace(case, tied=True), keep, layer, 4, margin=0.5, alpha=0.0)


@pytest.mark.parametrize(("patches", "left"), [(196, 177), (10, 9), (9, 9), (1, 1)])
def test_how_many_stay(patches: int, left: int) -> None:
    case = Case(0, 1, 1, patches)
    found = PiToMe(keep=0.9).after_attention(Layer(0, 12), case.tokens(), case.attention())
    assert found.count == 1 + left


def test_the_second_half_of_an_odd_number_of_blocks_is_the_larger() -> None:
    case = Case(1, 1, 1, 10)
    orders = []
    for layer in (1, 2):
        method = PiToMe(keep=0.8)
        found = method.after_attention(Layer(layer, 5), case.tokens(), case.attention())
        assert found.trace is not None
        orders.append(found.trace.places[0].tolist())
    for layer, order in zip((1, 2), orders, strict=True):
        x, size = image(case.tokens(), 0)
        keys = case.attention().k[0].numpy()
        wanted = reference.pitome(x, size, keys, 1, keep=0.8, layer=layer, depth=5)
        assert order == [next(i for i, g in enumerate(wanted.groups) if n in g) for n in range(11)]
