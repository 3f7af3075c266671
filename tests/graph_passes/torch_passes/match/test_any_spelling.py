"""Merges and attention of any size, in spellings drawn at random, are found and exact."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.graphs import checked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot, scaled_dot_product_attention

Score = Callable[[Tensor, Tensor], Tensor]
SCORES: dict[str, Score] = {
    "matmul": lambda a, b: a @ b.transpose(-2, -1),
    "einsum": lambda a, b: torch.einsum("bic,bjc->bij", a, b),
    "bmm": lambda a, b: torch.bmm(a, b.mT),
    "distance": lambda a, b: -torch.cdist(a, b),
}
RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "argsort": lambda best: best.argsort(dim=-1, descending=True),
    "stable argsort": lambda best: torch.argsort(best, dim=1, descending=True, stable=True),
    "sort": lambda best: best.sort(1, descending=True)[1],
    "topk": lambda best: best.topk(best.shape[1], dim=1).indices,
    "of negatives": lambda best: (-best).argsort(dim=1),
}
TAKES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gather": lambda x, i: x.gather(1, i[..., None].expand(-1, -1, x.shape[2])),
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i.unsqueeze(-1), 1),
    "advanced": lambda x, i: x[torch.arange(len(x))[:, None], i],
    "flat": lambda x, i: x.flatten(0, 1)[
        (i + torch.arange(len(x))[:, None] * x.shape[1]).flatten()
    ].view(*i.shape, -1),
    "one_hot": lambda x, i: one_hot(i, x.shape[1]).to(x.dtype) @ x,
}
ADDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "scatter_add": lambda y, i, x: y.scatter_add(1, i[..., None].expand_as(x), x),
    "scatter_reduce": lambda y, i, x: y.scatter_reduce(
        1, i[..., None].repeat(1, 1, x.shape[2]), x, "sum"
    ),
    "index_put": lambda y, i, x: y.index_put(
        (torch.arange(len(y))[:, None], i), x, accumulate=True
    ),
    "one_hot": lambda y, i, x: y + one_hot(i, y.shape[1]).to(x.dtype).mT @ x,
}


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(4, 11),
    channels=st.integers(2, 5),
    share=st.floats(0.0, 1.0),
    score=st.sampled_from(sorted(SCORES)),
    rank=st.sampled_from(sorted(RANKS)),
    take=st.sampled_from(sorted(TAKES)),
    add=st.sampled_from(sorted(ADDS)),
    by_index=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=5)
def test_any_merge(
    batch: int,
    tokens: int,
    channels: int,
    share: float,
    score: str,
    rank: str,
    take: str,
    add: str,
    by_index: bool,
    seed: int,
) -> None:
    r = 1 + int(share * ((tokens + 1) // 2 - 2))  # one of a stays

    def function(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        best, partner = SCORES[score](a, b).max(dim=-1)
        order = RANKS[rank](best)
        src, kept = order[:, :r], order[:, r:]
        if by_index:
            kept = kept.sort(dim=1).values
        dst = partner.gather(1, src)
        merged = ADDS[add](b, dst, TAKES[take](a, src))
        return torch.cat([TAKES[take](a, kept), merged], dim=1)

    x = torch.randn(batch, tokens, channels, generator=torch.Generator().manual_seed(seed))
    rewritten = checked(function, x, targets=("ort",), tolerance=2e-6)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 5),
    keys=st.integers(2, 6),
    width=st.integers(1, 4),
    values=st.integers(1, 5),
    form=st.sampled_from(["matmul", "einsum", "flattened", "fused"]),
    bias=st.sampled_from(["none", "sizes", "mask", "both"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=5)
def test_any_attention(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    width: int,
    values: int,
    form: str,
    bias: str,
    seed: int,
) -> None:
    def added(logits: Tensor, size: Tensor) -> Tensor:
        if bias in ("sizes", "both"):
            logits = logits + size.log()[:, None, None]
        if bias in ("mask", "both"):
            hidden = (size > size.amin(1, keepdim=True) + 0.5)[:, None, None]  # never all
            logits = logits.masked_fill(hidden, -torch.inf)
        return logits

    def function(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
        if form == "fused":
            zeros = torch.zeros(batch, 1, 1, keys)
            return scaled_dot_product_attention(q, k, v, added(zeros, size), scale=0.5)
        if form == "einsum":
            weights = added(torch.einsum("bhid,bhjd->bhij", q, k) * 0.5, size).softmax(-1)
            return torch.einsum("bhij,bhjd->bhid", weights, v)
        if form == "flattened":
            logits = torch.bmm(q.flatten(0, 1) * 0.5, k.flatten(0, 1).mT)
            weights = added(logits.unflatten(0, (batch, heads)), size).softmax(dim=-1)
            mixed = torch.bmm(weights.flatten(0, 1), v.flatten(0, 1))
            return mixed.unflatten(0, (batch, heads))
        return added(q @ k.mT / 2, size).softmax(-1) @ v

    generator = torch.Generator().manual_seed(seed)
    shapes = ((queries, width), (keys, width), (keys, values))
    q, k, v = (torch.randn(batch, heads, *shape, generator=generator) for shape in shapes)
    size = torch.rand(batch, keys, generator=generator) + 1
    rewritten = checked(function, q, k, v, size, targets=("ort",), tolerance=1e-5)
    assert rewritten.recognised == {"sized_attention": 1}
