"""A match in which every row merges into its best partner, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

MODES = ("sum", "mean", "prod", "amax", "amin")
Partners = Callable[[Tensor], Tensor]

#: Each takes scores (B, Na, Nb) and gives the partners (B, Na).
PARTNERS: dict[str, Partners] = {
    "max": lambda s: s.max(dim=-1)[1],
    "argmax": lambda s: s.argmax(2),
    "argmax, keepdim": lambda s: s.argmax(-1, keepdim=True).squeeze(-1),
    "top-1": lambda s: s.topk(1, dim=2).indices[..., 0],
    "of distances": lambda s: (-s).min(dim=-1).indices,
    "best of each column": lambda s: s.mT.argmax(dim=1),
}


def put(y: Tensor, rows: Tensor, x: Tensor, mode: str = "sum", own: bool = True) -> Tensor:
    index = rows[..., None].expand(-1, -1, x.shape[2])
    return y.scatter_reduce(1, index, x, mode, include_self=own)


def halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Even rows, odd rows and their scores."""
    a, b = x[:, ::2], x[:, 1::2]
    return a, b, a @ b.mT


@pytest.mark.parametrize("name", PARTNERS)
def test_every_spelling_is_one_match_and_one_merge(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        a, b, scores = halves(x)
        return put(b, PARTNERS[name](scores), a, "mean")

    rewritten = checked(function, torch.randn(2, 11, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}
    assert not {"aten.argmax", "aten.max", "aten.min", "aten.topk"} & set(calls(rewritten))


def test_every_mode_shares_one_match() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b, scores = halves(x)
        partner = scores.argmax(-1)
        return tuple(put(b, partner, a, mode) for mode in MODES)

    rewritten = checked(function, torch.randn(2, 11, 4), targets=(*TARGETS, "trt"))
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 5}


@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 6),
    others=st.integers(1, 5),
    mode=st.sampled_from(MODES),
    own=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=6)
def test_any_number_of_rows(
    batch: int, rows: int, others: int, mode: str, own: bool, seed: int
) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return put(y, (x @ y.mT).argmax(-1), x, mode, own)

    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(batch, n, 4, generator=generator) for n in (rows, others))
    rewritten = checked(function, x, y, targets=("ort", "openvino"), tolerance=2e-6)
    assert rewritten.recognised["bipartite_match"] == 1
    assert ("merge_tokens" in rewritten.recognised) == own


def test_without_the_row_that_was_there_it_is_a_scatter() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b, scores = halves(x)
        partner = scores.argmax(-1)
        return tuple(put(b, partner, a, mode, own=False) for mode in MODES)

    rewritten = checked(function, torch.randn(2, 11, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "gather_tokens": 1, "scatter_tokens": 5}
    assert calls(rewritten)["aten.argmax"] == 0


def test_rows_beside_the_match_stay_the_kept_rows_of_the_merge() -> None:
    def function(x: Tensor) -> Tensor:
        batch = torch.arange(len(x))[:, None]
        order = x.norm(dim=-1).argsort(dim=1, descending=True)
        calm, giving, taking = order[:, 6:], order[:, :6:2], order[:, 1:6:2]
        a, b = x[batch, giving], x[batch, taking]
        return torch.cat([x[:, :1], x[batch, calm], put(b, (a @ b.mT).argmax(-1), a)], 1)

    rewritten = checked(function, torch.randn(2, 11, 4), targets=(*TARGETS, "trt"))
    assert rewritten.recognised == {"bipartite_match": 1, "gather_tokens": 2, "merge_tokens": 1}


def test_clusters_by_their_centres_and_counts() -> None:
    def function(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.cdist(x, centres).argmin(-1)
        total = torch.zeros_like(centres).scatter_add(1, nearest[..., None].expand_as(x), x)
        ones = torch.ones_like(nearest)
        count = torch.zeros(2, 3, dtype=torch.int64).scatter_add(1, nearest, ones)
        return total / count.clamp(min=1)[..., None], count

    rewritten = checked(function, torch.randn(2, 9, 4), torch.randn(2, 3, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 2}


OTHERS: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "overwritten": lambda x: x.scatter(1, (x @ x.mT).argmin(-1)[..., None].expand_as(x), x),
    "gathered": lambda x: x.gather(1, (x @ x.mT).argmin(-1)[..., None].expand_as(x)),
    "read as well": lambda x: (
        put(x[:, 1::2], (n := halves(x)[2].argmax(-1)), x[:, ::2]),
        n * 2,
    ),
    "an output as well": lambda x: (put(x[:, 1::2], (n := halves(x)[2].argmax(-1)), x[:, ::2]), n),
    "some of the rows": lambda x: put(x[:, 1::2], halves(x)[2].argmax(-1)[:, :2], x[:, :2]),
    "the positions are what is scattered": lambda x: put(
        torch.zeros(2, 6, 1), x.argsort(1)[..., 0], (x @ x.mT).argmax(-1)[..., None].float()
    ),
    "the axis of the columns kept": lambda x: put(
        x, (x @ x.mT).argmin(1, keepdim=True).expand(-1, 6, -1)[:, 0], x
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_match_stays(name: str) -> None:
    # Two images of which every row is overwritten by one row at most.
    x = (
        torch.cat([torch.eye(6), torch.eye(6).flip(0)]).view(2, 6, 6)
        if name == "overwritten"
        else (torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)))
    )
    rewritten = checked(OTHERS[name], x)
    assert "bipartite_match" not in rewritten.recognised
    assert "merge_tokens" not in rewritten.recognised


def test_whole_numbers_are_no_scores() -> None:
    def function(x: Tensor) -> Tensor:
        a, b, _ = halves(x)
        return put(b, (a[:, :, None] > b[:, None]).long().sum(-1).argmax(-1), a)

    rewritten = checked(function, torch.randn(2, 8, 4), targets=("ort",))
    assert rewritten.recognised == {"scatter_tokens": 1}


def test_more_rows_than_tensorrt_ranks_stay() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return put(y, (x @ y.mT).argmax(-1), x, "amax")

    for rows, matches in ((3840, 1), (3841, 0)):
        rewritten = checked(function, torch.randn(1, rows, 4), torch.randn(1, 2, 4))
        assert rewritten.recognised.get("bipartite_match", 0) == matches
        lowered(emitted(rewritten), "trt")
