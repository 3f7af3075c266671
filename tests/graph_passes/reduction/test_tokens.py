"""Tokens are followed through reductions one after the other, and put back where they were."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers.reduction.cases import Case
from helpers.reduction.maps import maps, matchings, members, selections
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.token_maps import Selection
from tokexport.graph_passes.reduction.tokens import Tokens, Trace


def _first(batch: int, count: int, seed: int, traced: bool = True) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, count, 2, generator=generator, dtype=torch.float64)
    everyone = torch.arange(count).expand(batch, -1)
    return Tokens(x, 0, count, trace=Trace(everyone, everyone) if traced else None)


@dataclass
class Diary:
    """What each of the first tokens is now or last was, written down as it happens.

    Attributes:
        seats: Where each of an image's first tokens is, -1 where it was dropped.
        shown: What it shows.
    """

    seats: list[list[int]]
    shown: list[list[Tensor]]

    def see(self, x: Tensor) -> None:
        """Those that are there show what stands at their place."""
        for number, seats in enumerate(self.seats):
            for n, seat in enumerate(seats):
                if seat >= 0:
                    self.shown[number][n] = x[number, seat]

    def move(self, groups: list[list[set[int]]]) -> None:
        """Each goes where its group is, or nowhere."""
        for number, seats in enumerate(self.seats):
            inside = {n: seat for seat, group in enumerate(groups[number]) for n in group}
            self.seats[number] = [inside.get(seat, -1) for seat in seats]

    def restored(self) -> Tensor:
        """What is shown, (B, N0, C)."""
        return torch.stack([torch.stack(rows) for rows in self.shown])


@given(
    data=st.data(),
    batch=st.sampled_from([1, 3]),
    count=st.integers(1, 9),
    steps=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=150)
def test_tokens_are_put_back(
    data: st.DataObject, batch: int, count: int, steps: int, seed: int
) -> None:
    tokens = _first(batch, count, seed)
    diary = Diary([list(range(count)) for _ in range(batch)], [list(one) for one in tokens.x])
    origins = [list(range(count)) for _ in range(batch)]
    for _ in range(steps):
        # A block changes all tokens; then some are reduced.
        tokens = tokens.with_x(tokens.x * 1.5 + 1)
        diary.see(tokens.x)
        drops = data.draw(st.booleans())
        kind = selections if drops else matchings
        by = data.draw(kind(batch, tokens.count))
        diary.move(members(by, batch, tokens.count))
        sources = by.sources().tolist()
        origins = [[old[n] for n in new] for old, new in zip(origins, sources, strict=True)]
        tokens = tokens.kept(by) if drops else tokens.merged(by, by(tokens.x, "mean"), None)
        diary.see(tokens.x)
        assert tokens.trace is not None
        assert tokens.trace.places.tolist() == diary.seats
        assert tokens.trace.origins is not None
        assert tokens.trace.origins.tolist() == origins
        shown = tokens.trace.restored(tokens.x)
        torch.testing.assert_close(shown, diary.restored(), rtol=0, atol=0)


@given(data=st.data(), batch=st.sampled_from([1, 3]), count=st.integers(1, 9))
@settings(max_examples=60)
def test_sizes_count_what_was_merged(data: st.DataObject, batch: int, count: int) -> None:
    tokens = _first(batch, count, 0)
    groups = [[{n} for n in range(count)] for _ in range(batch)]
    for _ in range(2):
        by = data.draw(matchings(batch, tokens.count))
        inside = members(by, batch, tokens.count)
        groups = [
            [set().union(*(old[n] for n in group)) for group in new]
            for old, new in zip(groups, inside, strict=True)
        ]
        tokens = tokens.merged_by_size(by)
    first = _first(batch, count, 0).x
    means = torch.stack(
        [torch.stack([first[b, sorted(g)].mean(0) for g in groups[b]]) for b in range(batch)]
    )
    torch.testing.assert_close(tokens.x, means, rtol=0, atol=1e-12)
    assert tokens.sizes[..., 0].tolist() == [[float(len(g)) for g in one] for one in groups]


@given(data=st.data(), batch=st.sampled_from([1, 3]), count=st.integers(1, 9))
@settings(max_examples=40)
def test_sizes_go_with_the_tokens_that_stay(data: st.DataObject, batch: int, count: int) -> None:
    tokens = _first(batch, count, 0)
    sizes = torch.arange(1.0, batch * count + 1, dtype=torch.float64).view(batch, count, 1)
    by = data.draw(maps(batch, count))
    found = tokens.with_size(sizes).kept(by)
    assert found.size is not None
    wanted = sizes[..., 0].gather(1, by.sources())
    torch.testing.assert_close(found.size[..., 0], wanted, rtol=0, atol=0)
    assert tokens.kept(by).size is None


def test_values_of_its_own_may_stand_where_tokens_stay() -> None:
    tokens = _first(1, 3, 0)
    found = tokens.kept(Selection(torch.tensor([[2, 0]]), 3), torch.zeros(1, 2, 2))
    assert found.x.abs().sum() == 0
    assert found.trace is not None
    assert found.trace.places.tolist() == [[1, -1, 0]]


def test_nobody_follows_tokens_that_need_not_be_followed() -> None:
    tokens = _first(2, 4, 0, traced=False)
    by = Selection(torch.tensor([[1, 2], [3, 0]]), 4)
    assert tokens.kept(by).trace is None
    assert tokens.merged(by, by(tokens.x), None).trace is None


def test_mixed_tokens_have_no_sizes_and_no_places() -> None:
    tokens = _first(1, 4, 0, traced=False).with_size(torch.ones(1, 4, 1))
    assert tokens.mixed(torch.zeros(1, 2, 2), "dct").size is None
    with pytest.raises(SurgeryError, match="dct mixes all tokens"):
        _first(1, 4, 0).mixed(torch.zeros(1, 2, 2), "dct")


def test_sizes_are_ones_before_anything_merged() -> None:
    tokens = Case(0, 2, 1, 3).tokens()
    assert tokens.size is None
    torch.testing.assert_close(tokens.sizes, torch.ones(2, 4, 1, dtype=tokens.x.dtype))
    assert tokens.remember(tokens.sizes).memory is not None
