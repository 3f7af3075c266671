"""What a map says about tokens is what it does to a value that holds their positions."""

from __future__ import annotations

import pytest
import torch
from helpers.reduction.maps import maps, matchings, members
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.token_maps import (
    Chain,
    Matching,
    Selection,
    TokenMap,
    even_and_odd,
    ranking,
)

SIZES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9))


def _positions(batch: int, tokens: int) -> torch.Tensor:
    return torch.arange(tokens, dtype=torch.float64)[None, :, None].expand(batch, -1, 1)


@given(data=st.data(), sizes=SIZES)
@settings(max_examples=150)
def test_sources_and_places_agree_with_the_map(data: st.DataObject, sizes: tuple[int, int]) -> None:
    batch, tokens = sizes
    by: TokenMap = data.draw(maps(batch, tokens))
    found = members(by, batch, tokens)
    sources, places = by.sources(), by.places()
    assert sources.dtype == places.dtype == torch.int64
    for groups, origins, seats in zip(found, sources.tolist(), places.tolist(), strict=True):
        assert len(groups) == len(origins)
        assert all(one in group for one, group in zip(origins, groups, strict=True))
        inside = {n: seat for seat, group in enumerate(groups) for n in group}
        assert sum(map(len, groups)) == len(inside)  # nobody is in two
        assert seats == [inside.get(n, -1) for n in range(tokens)]


@given(data=st.data(), sizes=SIZES)
@settings(max_examples=80)
def test_without_a_sum_a_token_keeps_the_value_of_its_source(
    data: st.DataObject, sizes: tuple[int, int]
) -> None:
    by: TokenMap = data.draw(maps(*sizes))
    kept = by(_positions(*sizes), "none")[..., 0]
    torch.testing.assert_close(kept.long(), by.sources(), rtol=0, atol=0)


@given(
    data=st.data(),
    sizes=SIZES,
    mode=st.sampled_from(["sum", "mean", "amax", "amin", "prod"]),
)
@settings(max_examples=100)
def test_rows_that_meet_are_reduced(data: st.DataObject, sizes: tuple[int, int], mode: str) -> None:
    batch, tokens = sizes
    by: Matching = data.draw(matchings(batch, tokens))
    generator = torch.Generator().manual_seed(tokens)
    value = torch.randn(batch, tokens, 3, generator=generator, dtype=torch.float64)
    reduce = {
        "sum": lambda rows: rows.sum(0),
        "mean": lambda rows: rows.mean(0),
        "amax": lambda rows: rows.amax(0),
        "amin": lambda rows: rows.amin(0),
        "prod": lambda rows: rows.prod(0),
    }[mode]
    wanted = [
        torch.stack([reduce(value[number, sorted(group)]) for group in groups])
        for number, groups in enumerate(members(by, batch, tokens))
    ]
    torch.testing.assert_close(by(value, mode), torch.stack(wanted), rtol=0, atol=1e-12)


@given(data=st.data(), sizes=SIZES)
@settings(max_examples=60)
def test_a_matching_has_its_order(data: st.DataObject, sizes: tuple[int, int]) -> None:
    batch, tokens = sizes
    by: Matching = data.draw(matchings(batch, tokens))
    everyone = torch.arange(tokens).expand(batch, -1)

    def rows(of: slice | torch.Tensor) -> torch.Tensor:
        return everyone[:, of] if isinstance(of, slice) else of

    kept, b = rows(by.a).gather(1, by.kept), rows(by.b)
    parts = [b, kept] if by.b_first else [kept, b]
    wanted = torch.cat([rows(by.others), *parts], dim=1)
    assert by.sources().tolist() == wanted.tolist()
    assert by.dst_rows == b.shape[1]


def test_a_chain_tells_what_both_do() -> None:
    first = Selection(torch.tensor([[3, 0, 2, 1]]), 5)
    second = Matching(
        4, 1, slice(0, 1), slice(1, 4, 2), slice(2, 4, 2), *map(torch.tensor, ([[1]], [[0]], [[0]]))
    )
    both = Chain(first, second)
    assert both.sources().tolist() == [[3, 1, 2]]
    assert both.places().tolist() == [[2, 1, 2, 0, -1]]
    value = torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]])[..., None]
    assert both(value).flatten().tolist() == [1000.0, 10.0, 101.0]


@pytest.mark.parametrize("special", range(6))
@pytest.mark.parametrize("tokens", [6, 9, 10])
def test_even_and_odd_are_counted_from_the_first_token(special: int, tokens: int) -> None:
    others, even, odd = (list(range(tokens)[rows]) for rows in even_and_odd(tokens, special))
    assert others == list(range(special))
    assert even == [n for n in range(special, tokens) if n % 2 == 0]
    assert odd == [n for n in range(special, tokens) if n % 2 == 1]


@given(
    rows=st.integers(1, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3
        )
    ),
    descending=st.booleans(),
)
@settings(max_examples=60)
def test_of_equal_values_the_lower_index_is_ranked_first(
    rows: list[list[int]], descending: bool
) -> None:
    found = ranking(torch.tensor(rows, dtype=torch.float32), descending)
    sign = -1 if descending else 1
    wanted = [
        [place for _, place in sorted((sign * one, place) for place, one in enumerate(row))]
        for row in rows
    ]
    assert found.tolist() == wanted
