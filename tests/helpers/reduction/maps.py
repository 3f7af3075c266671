"""Draws what a method may decide: selections, matchings of all forms, and chains of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from tokexport.graph_passes.reduction.token_maps import Chain, Matching, Rows, Selection, TokenMap

SEEDS = st.integers(0, 2**30)


def _positions(seed: int, batch: int, count: int, of: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(of, generator=generator)[:count] for _ in range(batch)])


@st.composite
def selections(draw: st.DrawFn, batch: int, tokens: int) -> Selection:
    """Draws which tokens stay, in any order."""
    left = draw(st.integers(1, tokens))
    return Selection(_positions(draw(SEEDS), batch, left, tokens), tokens)


@st.composite
def matchings(draw: st.DrawFn, batch: int, tokens: int) -> Matching:
    """Draws a matching whose three sets are slices or positions, of any sizes."""
    special = draw(st.integers(0, max(tokens - 2, 0)))
    sets: tuple[Rows, Rows, Rows]
    if draw(st.booleans()):
        step = slice(special, tokens, 2), slice(special + 1, tokens, 2)
        a, b = step if draw(st.booleans()) else step[::-1]
        sets = slice(0, special), a, b
        sizes = len(range(tokens)[a]), len(range(tokens)[b])
    else:
        in_b = draw(st.integers(min(1, tokens - special), tokens - special))
        sizes = tokens - special - in_b, in_b
        order = _positions(draw(SEEDS), batch, tokens, tokens)
        a, b = order[:, special : special + sizes[0]], order[:, special + sizes[0] :]
        sets = order[:, :special], a, b
    r = draw(st.integers(0, sizes[0])) if sizes[1] else 0
    order = _positions(draw(SEEDS), batch, sizes[0], sizes[0])
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dst = torch.randint(max(sizes[1], 1), (batch, r), generator=generator)
    return Matching(tokens, batch, *sets, order[:, r:], order[:, :r], dst, draw(st.booleans()))


@st.composite
def maps(draw: st.DrawFn, batch: int, tokens: int, chained: bool = True) -> TokenMap:
    """Draws any of them."""
    kind = draw(st.sampled_from(["selection", "matching", *(["chain"] if chained else [])]))
    if kind == "selection":
        return draw(selections(batch, tokens))
    if kind == "matching":
        return draw(matchings(batch, tokens))
    first = draw(maps(batch, tokens))
    left = first.sources().shape[1]
    return Chain(first, draw(maps(batch, left)))


def members(by: TokenMap, batch: int, tokens: int) -> list[list[set[int]]]:
    """For each image and new token the old ones in it, read off sums of powers of two."""
    marks = 2.0 ** torch.arange(tokens, dtype=torch.float64)
    sums = by(marks[None, :, None].expand(batch, -1, 1), "sum")[..., 0]
    return [
        [{n for n in range(tokens) if int(one) >> n & 1} for one in row] for row in sums.tolist()
    ]
