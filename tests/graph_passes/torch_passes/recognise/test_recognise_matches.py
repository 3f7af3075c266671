"""Bipartite matching is found in whatever way it is written, and only where it is one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

Merging = Callable[[Tensor, int], tuple[Tensor, ...]]


def scores_of(x: Tensor, class_token: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The even rows a, the odd rows b, and their cosine similarity (B, Na, Nb)."""
    metric = x / x.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
    if class_token:
        scores[:, 0, :] = -torch.inf
    return x[:, ::2], x[:, 1::2], scores


def index(rows: Tensor, x: Tensor) -> Tensor:
    """Rows (B, K) or (B, K, 1) over the channels of x."""
    column = rows if rows.dim() == 3 else rows[..., None]
    return column.expand(-1, -1, x.shape[2])


def joined(a: Tensor, b: Tensor, kept: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    moved = a.gather(1, index(src, a))
    merged = b.scatter_reduce(1, index(dst, b), moved, "sum")
    return torch.cat([a.gather(1, index(kept, a)), merged], dim=1)


def by_argsort(x: Tensor, r: int) -> tuple[Tensor, ...]:
    """Argsort with a last axis of 1, cut in two; the kept rows sorted."""
    a, b, scores = scores_of(x)
    best, partner = scores.max(dim=-1)
    ranked = best.argsort(dim=-1, descending=True)[..., None]
    kept, src = ranked[..., r:, :], ranked[..., :r, :]
    dst = partner[..., None].gather(dim=-2, index=src)
    return (joined(a, b, kept.sort(dim=1)[0], src, dst),)


def by_top_k(x: Tensor, r: int) -> tuple[Tensor, ...]:
    """The class token in its row stays; topk over all rows, then split."""
    a, b, scores = scores_of(x)
    best, partner = torch.max(scores, 2)
    ranked = best.topk(best.shape[1], dim=1).indices
    src, kept = ranked.split([r, best.shape[1] - r], dim=1)
    dst = torch.gather(partner, 1, src)
    return (joined(a, b, kept.sort(1).values, src, dst),)


def by_sort(x: Tensor, r: int) -> tuple[Tensor, ...]:
    """sort()[1]; the partner read by x[arange, rows]; no class token: kept in score order."""
    a, b, scores = scores_of(x, class_token=False)
    best, partner = scores.max(-1)
    ranked = best.sort(dim=1, descending=True)[1]
    src, kept = ranked[:, :r], ranked[:, r:]
    dst = partner[torch.arange(len(x)).unsqueeze(1), src]
    return (joined(a, b, kept, src, dst),)


def by_keepdim(x: Tensor, r: int) -> tuple[Tensor, ...]:
    """Max with keepdim, so that everything is (B, Na, 1); sorted along axis -2."""
    a, b, scores = scores_of(x)
    best, partner = scores.max(dim=-1, keepdim=True)
    ranked = torch.sort(best, stable=True, dim=-2, descending=True).indices
    src, kept = ranked.narrow(1, 0, r), ranked.narrow(1, r, ranked.shape[1] - r)
    dst = torch.take_along_dim(partner, src, dim=1)
    return (joined(a, b, torch.sort(kept.squeeze(-1), dim=-1)[0], src, dst),)


def by_amax(x: Tensor, r: int) -> tuple[Tensor, ...]:
    """Amax and argmax apart; the index spread over the channels before it is cut."""
    a, b, scores = scores_of(x, class_token=False)
    best, partner = scores.amax(dim=-1), scores.argmax(dim=-1)
    ranked = torch.argsort(best, stable=True, descending=True, dim=-1)
    wide = ranked.unsqueeze(-1).repeat(1, 1, x.shape[2])
    src, kept = wide[:, :r], wide[:, r:]
    dst = partner.gather(1, ranked[:, :r]).unsqueeze(-1).expand(-1, -1, x.shape[2])
    merged = b.scatter_add(1, dst, a.gather(1, src))
    return (torch.cat([a.gather(1, kept), merged], 1),)


SPELLINGS: dict[str, Merging] = {
    spelling.__name__: spelling for spelling in (by_argsort, by_top_k, by_sort, by_keepdim, by_amax)
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_match_and_one_merge(name: str) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return SPELLINGS[name](x, 3)

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x)
    counts = calls(rewritten)
    assert counts["tokexport.bipartite_match"] == 1
    assert counts["tokexport.merge_tokens"] == 1
    left = {"aten.topk", "aten.sort", "aten.argsort", "aten.gather", "aten.max", "aten.argmax"}
    assert not left & set(counts)


@given(
    name=st.sampled_from(sorted(SPELLINGS)),
    batch=st.integers(1, 3),
    tokens=st.integers(2, 11),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=8)
def test_any_number_of_tokens_and_of_pairs(
    name: str, batch: int, tokens: int, seed: int, data: st.DataObject
) -> None:
    r = data.draw(st.integers(1, (tokens + 1) // 2), label="r")
    x = torch.randn(batch, tokens, 4, generator=torch.Generator().manual_seed(seed))

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return SPELLINGS[name](x, r)

    rewritten = checked(function, x)
    assert calls(rewritten)["tokexport.bipartite_match"] == 1


def test_spellings_through_onnx() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(chain(*(spelling(x, 3) for spelling in SPELLINGS.values())))

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x, targets=("ort", "openvino", "trt"))
    # One for each -inf that a class token writes, and one for both spellings without it.
    assert rewritten.recognised["bipartite_match"] == 4


def test_values_and_sizes_share_one_match() -> None:
    def function(x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        a, b, scores = scores_of(x)
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)[..., None]
        kept, src = ranked[..., 3:, :].sort(dim=1)[0], ranked[..., :3, :]
        dst = partner[..., None].gather(dim=-2, index=src)
        x = joined((x * size)[:, ::2], (x * size)[:, 1::2], kept, src, dst)
        size = joined(size[:, ::2], size[:, 1::2], kept, src, dst)
        return x / size, size

    inputs = torch.randn(2, 11, 4), torch.rand(2, 11, 1) + 1
    rewritten = checked(function, *inputs)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 2}


def test_a_distillation_token_is_put_back_second() -> None:
    def function(x: Tensor) -> Tensor:
        a, b, scores = scores_of(x)
        scores[:, :, 0] = -torch.inf
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)[..., None]
        kept, src = ranked[..., 3:, :].sort(dim=1)[0], ranked[..., :3, :]
        dst = partner[..., None].gather(dim=-2, index=src)
        rest = a.gather(1, index(kept, a))
        merged = b.scatter_reduce(1, index(dst, b), a.gather(1, index(src, a)), "mean")
        return torch.cat([rest[:, :1], merged[:, :1], rest[:, 1:], merged[:, 1:]], dim=1)

    x = torch.randn(2, 12, 4)
    rewritten = checked(function, x, targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


def test_pruning_the_sources() -> None:
    def function(x: Tensor) -> Tensor:
        a, b, scores = scores_of(x)
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)
        kept = ranked[:, 3:].sort(dim=1)[0]
        return torch.cat([a.gather(1, index(kept, a)), b], dim=1)

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x, targets=("trt",))
    # Nobody reads the partners: this is a ranking, and the sources are simply left out.
    assert rewritten.recognised == {"gather_tokens": 1}


def test_two_numbers_of_pairs_of_the_same_scores() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return *by_argsort(x, 2), *by_argsort(x, 4)

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x)
    assert rewritten.recognised == {"bipartite_match": 2, "merge_tokens": 2}


def test_kept_rows_read_in_both_orders() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b, scores = scores_of(x)
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)
        src, kept = ranked[:, :3], ranked[:, 3:]
        dst = partner.gather(1, src)
        return joined(a, b, kept.sort(1)[0], src, dst), joined(a, b, kept, src, dst)

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x)
    # The scatter is one for both, and so stays apart from either join.
    assert rewritten.recognised == {"bipartite_match": 2, "gather_tokens": 1, "merge_tokens": 1}


def test_all_rows_merge() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b, scores = scores_of(x, class_token=False)
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)
        src, kept = ranked[:, :6], ranked[:, 6:]
        return (joined(a, b, kept, src, partner.gather(1, src)),)

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x, targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


def test_indices_that_leave_the_graph() -> None:
    def function(scores: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)
        src, kept = ranked[:, :2], ranked[:, 2:]
        return ranked, src, kept, kept.sort(1)[0], partner.gather(1, src), partner, x + 1

    # The scores are an input, and not the last one: what is inserted stands behind all inputs.
    inputs = torch.randn(2, 5, 4), torch.randn(2, 3)
    rewritten = checked(function, *inputs, targets=("ort",))
    assert rewritten.recognised == {"bipartite_match": 2}
    kinds = [node.op for node in rewritten.program.graph.nodes]
    assert kinds[:2] == ["placeholder"] * 2
    assert "placeholder" not in kinds[2:]


NOT_MATCHES: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "the worst pairs": lambda s: _match(s, s.max(-1)[0].argsort(-1)),
    "ranked along the batch": lambda s: _match(s, s.max(-1)[0].argsort(0, descending=True)),
    "best column of each b": lambda s: _match(s, s.max(-2)[0].argsort(-1, descending=True)),
    "ranked by the mean": lambda s: _match(s, s.mean(-1).argsort(-1, descending=True)),
    "smallest of topk": lambda s: _match(s, s.max(-1)[0].topk(4, 1, largest=False)[1]),
    "partners of other scores": lambda s: _match(s * 2, s.max(-1)[0].argsort(1, descending=True)),
    "every other pair": lambda s: _match(s, s.max(-1)[0].argsort(1, descending=True)[:, ::2]),
    "the second best pairs": lambda s: _match(s, s.max(-1)[0].argsort(1, descending=True)[:, 1:]),
    "shifted": lambda s: _match(s, s.max(-1)[0].argsort(1, descending=True).roll(1, 1)),
}


def _match(scores: Tensor, ranked: Tensor) -> tuple[Tensor, ...]:
    src = ranked[:, :2]
    return src, ranked[:, 2:], scores.max(-1)[1].gather(1, src)


def test_what_is_not_a_match_stays() -> None:
    def function(scores: Tensor) -> tuple[Tensor, ...]:
        # Scores of their own, so that no two of them make up a match together.
        return tuple(chain(*(f(scores * i) for i, f in enumerate(NOT_MATCHES.values(), start=1))))

    rewritten = checked(function, torch.randn(4, 4, 4))
    assert "bipartite_match" not in rewritten.recognised


def test_no_pairs_at_all() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return by_argsort(x, 0)

    x = torch.randn(2, 11, 4)
    rewritten = checked(function, x)
    assert "bipartite_match" not in rewritten.recognised


def test_a_new_axis_before_the_tokens_is_not_the_batch() -> None:
    def function(x: Tensor) -> Tensor:
        scores = x @ x.mT  # as many images as tokens, and as many heads
        best, partner = scores.max(dim=-1)
        order = best.argsort(dim=-1, descending=True).expand(3, 3, 3)
        kept, merged = order[:, 1:], order[:, :1]
        target = partner.expand(3, 3, 3).gather(1, merged)
        return torch.cat([kept, merged, target], dim=1)

    checked(function, torch.randn(3, 3, 4), targets=("ort",))


def test_the_nearest_by_distance() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        nearest, partner = torch.cdist(a, b).min(dim=-1)
        ranked = nearest.argsort(dim=-1)
        kept, src = ranked[:, 3:].sort(dim=1)[0], ranked[:, :3]
        dst = partner.gather(1, src)
        merged = b.scatter_reduce(1, index(dst, b), a.gather(1, index(src, a)), "mean")
        return torch.cat([a.gather(1, index(kept, a)), merged], dim=1)

    rewritten = checked(function, torch.randn(2, 12, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


def test_the_largest_by_the_order_of_negatives() -> None:
    def function(x: Tensor) -> Tensor:
        a, b, scores = scores_of(x)
        best, partner = scores.max(dim=-1)
        ranked = (-best).argsort(dim=-1)
        kept, src = ranked[:, 3:].sort(dim=1)[0], ranked[:, :3]
        dst = partner.gather(1, src)
        merged = b.scatter_reduce(1, index(dst, b), a.gather(1, index(src, a)), "mean")
        return torch.cat([a.gather(1, index(kept, a)), merged], dim=1)

    rewritten = checked(function, torch.randn(2, 11, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


def test_the_smallest_of_the_best_is_no_match() -> None:
    def function(x: Tensor) -> Tensor:
        _, b, scores = scores_of(x)
        best, partner = scores.max(dim=-1)
        worst = best.argsort(dim=-1)[:, :3]
        return b.gather(1, index(partner.gather(1, worst), b))

    rewritten = checked(function, torch.randn(2, 11, 4), targets=("ort",))
    assert "bipartite_match" not in rewritten.recognised


def test_the_best_by_a_top_1() -> None:
    def function(x: Tensor) -> Tensor:
        a, b, scores = scores_of(x)
        best, partner = scores.topk(1, dim=2)
        ranked = best.squeeze(2).argsort(dim=-1, descending=True)
        kept, src = ranked[:, 3:].sort(dim=1)[0], ranked[:, :3]
        dst = partner.squeeze(2).gather(1, src)
        merged = b.scatter_reduce(1, index(dst, b), a.gather(1, index(src, a)), "mean")
        return torch.cat([a.gather(1, index(kept, a)), merged], dim=1)

    rewritten = checked(function, torch.randn(2, 11, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


Best = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Each takes scores (B, Nb, Na) and gives the best of each column and where it is, (B, Na).
COLUMNS: dict[str, Best] = {
    "max": lambda s: (s.max(dim=1)[0], s.max(dim=1)[1]),
    "amax and argmax": lambda s: (s.amax([1]), s.argmax(-2)),
    "of negatives": lambda s: (-(-s).amin(1), (-s).argmin(1)),
}


def by_columns(x: Tensor, best: Best) -> Tensor:
    a, b, scores = scores_of(x)
    values, partner = best(scores.mT)
    ranked = values.argsort(dim=-1, descending=True)
    kept, src = ranked[:, 3:].sort(dim=1)[0], ranked[:, :3]
    return joined(a, b, kept, src, partner.gather(1, src))


@pytest.mark.parametrize("name", COLUMNS)
def test_the_best_of_each_column(name: str) -> None:
    rewritten = checked(
        lambda x: by_columns(x, COLUMNS[name]), torch.randn(2, 11, 4), targets=(*TARGETS, "trt")
    )
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


def test_the_best_of_each_column_with_its_axis_kept_is_exact() -> None:
    def kept_axis(scores: Tensor) -> tuple[Tensor, Tensor]:
        values, partner = scores.max(dim=1, keepdim=True)
        return values.squeeze(1), partner.squeeze(1)

    # As many rows as columns, and one of either.
    checked(lambda x: by_columns(x, kept_axis), torch.randn(2, 12, 4), targets=("ort",))
    checked(lambda x: kept_axis(x)[1].gather(1, x[:, 0].argsort(1)), torch.randn(2, 1, 1))


def test_rows_ranked_by_the_best_of_columns_are_no_match() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x @ x.mT * torch.arange(1.0, 6)
        src = scores.amax(1).argsort(1, descending=True)[:, :2]
        return src, scores.argmax(2).gather(1, src)

    rewritten = checked(function, torch.randn(2, 5, 4), targets=("ort",))
    assert "bipartite_match" not in rewritten.recognised
