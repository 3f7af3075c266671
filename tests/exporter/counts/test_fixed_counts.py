"""Choices by masks of a certain count are static; the others stay what the data decides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.thorough import thorough_but
from torch import Tensor, nn

from tokexport.exporter.capture.trace import capture
from tokexport.exporter.counts.fixed_counts import FixedCounts
from tokexport.exporter.counts.index_sets import Constant, Mask, Positions
from tokexport.exporter.errors import DataDependentError

K = 4
Chooses = Callable[[Tensor, Tensor], Tensor]


def scattered(scores: Tensor, k: int = K) -> Tensor:
    top = scores.topk(k, dim=1).indices
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, top, True)


def plain(x: Tensor, scores: Tensor) -> Tensor:
    return x[scattered(scores)].view(len(x), K, -1)


def numbers(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.zeros_like(scores)
    mask.scatter_(dim=1, index=scores.argsort(dim=1, descending=True)[:, :K], value=1.0)
    return x[mask == 1].reshape(len(x), -1, x.shape[-1])


def ones_out(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.ones(scores.shape).scatter(1, scores.topk(3, largest=False).indices, 0)
    return x[(1 - mask).bool()].view(len(x), 3, -1)


def by_rows(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask[torch.arange(len(x))[:, None], scores.topk(K).indices] = True
    return x[~mask].view(len(x), -1, x.shape[-1])


def selected(x: Tensor, scores: Tensor) -> Tensor:
    return torch.masked_select(x, scattered(scores).unsqueeze(-1)).reshape(len(x), K, -1)


def selected_as(x: Tensor, scores: Tensor) -> Tensor:
    return x.masked_select(scattered(scores)[..., None].expand_as(x)).view(len(x), K, -1)


def spread(x: Tensor, scores: Tensor) -> Tensor:
    return x[scattered(scores)[:, :, None].expand(-1, -1, x.shape[2])].view(len(x), K, -1)


def found(x: Tensor, scores: Tensor) -> Tensor:
    return x[scattered(scores).nonzero(as_tuple=True)].reshape(len(x), -1, x.shape[-1])


def places(x: Tensor, scores: Tensor) -> Tensor:
    at = torch.nonzero(~scattered(scores))
    return at[:, 1].view(len(x), -1).float() * x.mean()


def where(x: Tensor, scores: Tensor) -> Tensor:
    rows, columns = torch.where(scattered(scores))
    return x[rows, columns].view(len(x), K, -1)


def with_class(x: Tensor, scores: Tensor) -> Tensor:
    first = torch.ones(len(x), 1, dtype=torch.bool)
    mask = torch.cat([first, scattered(scores[:, 1:])], dim=1)
    return x[mask].reshape(len(x), K + 1, -1)


def class_set(x: Tensor, scores: Tensor) -> Tensor:
    top = scores[:, 1:].topk(K).indices + 1
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask[:, 0] = True
    mask.scatter_(1, top, True)
    return x[mask].reshape(len(x), K + 1, -1)


def class_positions(x: Tensor, scores: Tensor) -> Tensor:
    top = torch.cat([torch.zeros(len(x), 1, dtype=torch.long), scores[:, 1:].topk(K)[1] + 1], 1)
    mask = torch.zeros_like(scores).scatter(1, top, 1).bool()
    return x[mask].reshape(len(x), K + 1, -1)


def class_dropped(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.cat([torch.ones(len(x), 1), scattered(scores[:, 1:]).float()], 1) > 0.5
    return x[:, 1:][mask[:, 1:]].reshape(len(x), K, -1)


def two_parts(x: Tensor, scores: Tensor) -> Tensor:
    order = scores.argsort(1, descending=True)
    keep, fuse = order[:, :K], order[:, K : K + 3]
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, keep, True)
    fused = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, fuse, True)
    rest = x[~(kept | fused)].view(len(x), -1, x.shape[-1])
    return torch.cat([x[kept | fused].view(len(x), K + 3, -1), rest.mean(1, keepdim=True)], 1)


def in_turn(x: Tensor, scores: Tensor) -> Tensor:
    first = scattered(scores, 6)
    x = x[first].view(len(x), 6, -1)
    second = scattered(x.sum(-1), 3)
    return x[second].view(len(x), 3, -1)


def a_choice_of_a_choice(x: Tensor, scores: Tensor) -> Tensor:
    top = scores.topk(6).indices
    of_those = x.sum(-1).gather(1, top).topk(3).indices
    inner = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top.gather(1, of_those), True)
    outer = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top, True)
    return x[outer & ~inner].view(len(x), 3, -1)


def ranked(x: Tensor, scores: Tensor) -> Tensor:
    ranks = scores.argsort(1).argsort(1)
    return torch.cat([x[ranks < K].view(len(x), K, -1), x[ranks >= 8].view(len(x), -1, 5)], 1)


def restored(x: Tensor, scores: Tensor) -> Tensor:
    restore = scores.argsort(dim=1).argsort(dim=1)
    mask = torch.ones(scores.shape)
    mask[:, :K] = 0
    mask = torch.gather(mask, dim=1, index=restore)
    return x[~mask.to(torch.bool)].reshape(len(x), -1, x.shape[-1])


def one_hot(x: Tensor, scores: Tensor) -> Tensor:
    mask = F.one_hot(scores.topk(K).indices, scores.shape[1]).sum(1).bool()
    return x[mask].view(len(x), K, -1)


def sample_by_sample(x: Tensor, scores: Tensor) -> Tensor:
    return torch.stack([one[mask] for one, mask in zip(x, scattered(scores), strict=True)])


def counted(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    per_row = int(mask.sum()) // len(x)
    if (mask.sum(1) == per_row).all():
        return x[mask].view(len(x), per_row, -1)
    return x


def written(x: Tensor, scores: Tensor) -> Tensor:
    out, mask = torch.zeros_like(x), scattered(scores)
    out[mask] = x[mask] * 2
    return out


def sorted_positions(x: Tensor, scores: Tensor) -> Tensor:
    top = scores.topk(K).indices.sort(dim=1).values
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask = mask.scatter(1, top, torch.ones_like(top, dtype=torch.bool))
    return x[mask].view(len(x), K, -1)


def of_one_sample(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.zeros(scores.shape[1], dtype=torch.bool)
    mask[scores[0].topk(K).indices] = True
    return x[:, mask] + x[:, ~mask].mean()


def flat_rows(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores).flatten()
    return x.flatten(0, 1)[mask].view(len(x), K, -1)


def units(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores[:, :6])
    wide = mask[:, None, :, None].expand(-1, 2, -1, x.shape[2]).flatten(1, 2)
    return x[wide].view(len(x), 2 * K, -1)


def groups(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores[:, :6]).flatten().repeat_interleave(2)
    return x.reshape(-1, 5)[mask].view(len(x), 2 * K, -1)


def groups_of_all(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores[:, :6])[..., None].repeat(1, 1, 2).view(len(x), -1)
    return torch.cat([x[mask].view(len(x), 2 * K, -1), x[~mask].view(len(x), -1, 5)], 1)


def of_places(x: Tensor, scores: Tensor) -> Tensor:
    places = torch.arange(12).unsqueeze(0).repeat(len(x), 1)
    stays = scattered(scores, 8)
    places, x_left = places[stays].view(len(x), -1), x[stays].view(len(x), 8, -1)
    more = scattered(x_left.sum(-1), 5)
    gone = torch.zeros(scores.shape, dtype=torch.bool)
    gone.scatter_(1, places[~more].view(len(x), -1), True)
    first = torch.zeros_like(gone).scatter(1, places, True)
    return x[first & ~gone].view(len(x), 5, -1) + places.masked_select(more).view(len(x), 5, 1)


def smallest_first(x: Tensor, scores: Tensor) -> Tensor:
    top = scores.argsort(1).flip(1)[:, :K]
    mask = torch.zeros_like(scores).scatter_add(1, top, torch.ones(top.shape))
    return x[torch.where(mask > 0, True, False)].view(len(x), K, -1)


def among(x: Tensor, scores: Tensor) -> Tensor:
    every = torch.arange(scores.shape[1])
    pairs = zip(x, scores, strict=True)
    return torch.stack([one[torch.isin(every, row.topk(K).indices)] for one, row in pairs])


def compared(x: Tensor, scores: Tensor) -> Tensor:
    every, top = torch.arange(scores.shape[1]), scores.topk(K).indices
    mask = (every[None, :, None] == top[:, None, :]).any(-1)
    other = (top.unsqueeze(-1) == every).sum(1) == 0
    return torch.cat([x[mask].view(len(x), K, -1), x[other].view(len(x), -1, x.shape[-1])], 1)


def of_the_next_image(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    mask = mask.roll(1, 0) if len(x) > 1 else mask.roll(3, 1)
    return x[mask].view(len(x), K, -1)


def row_by_row(x: Tensor, scores: Tensor) -> Tensor:
    rows = []
    for row in scores:
        rows.append(torch.zeros(len(row), dtype=torch.bool))
        rows[-1][row.topk(K).indices] = True
    return x[torch.stack(rows)].view(len(x), K, -1)


def the_best(x: Tensor, scores: Tensor) -> Tensor:
    best = scores.argmax(1)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best[:, None], True)
    return x[F.one_hot(best, scores.shape[1]).bool()][:, None] * x[~mask].view(len(x), -1, 5)


def in_two(x: Tensor, scores: Tensor) -> Tensor:
    one, other = scores.argsort(1).chunk(2, dim=1)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, one, True)
    mask = torch.take_along_dim(mask, scores.argsort(1), dim=1)
    return x[mask].view(len(x), other.shape[1], -1)


SPELLINGS: list[Chooses] = [
    *(plain, numbers, ones_out, by_rows, selected, selected_as, spread, found, places, where),
    *(with_class, class_set, class_positions, class_dropped, two_parts, in_turn),
    *(a_choice_of_a_choice, ranked, restored, one_hot, sample_by_sample, counted, written),
    *(sorted_positions, of_one_sample, flat_rows, units, groups, groups_of_all, of_places),
    *(smallest_first, among, compared, of_the_next_image, row_by_row, the_best, in_two),
]


class Calls(nn.Module):
    def __init__(self, function: Chooses) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return (self.function(x, scores),)


def drawn(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 12, 5, generator=draw), torch.randn(batch, 12, generator=draw)


@pytest.mark.parametrize(
    ("function", "batch"),
    thorough_but(
        [(function, 3 - 2 * (place % 2)) for place, function in enumerate(SPELLINGS)],
        itertools.product(SPELLINGS, (1, 3)),
    ),
)
def test_it_is_static_and_the_same(function: Chooses, batch: int) -> None:
    traced = capture(Calls(function), drawn(batch, 0)).module()
    for seed in range(1, 4):
        given = drawn(batch, seed)
        assert torch.equal(traced(*given)[0], function(*given))
    x, ties = drawn(batch, 4)[0], torch.zeros(batch, 12)
    assert torch.equal(traced(x, ties)[0], function(x, ties))


def repeats(x: Tensor, scores: Tensor) -> Tensor:
    nearest = (x @ x.transpose(1, 2)).argmax(-1)
    mask = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, nearest, True)
    return x[mask].sum()[None]


def overlap(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores) | scattered(x.sum(-1))
    return x[mask].sum()[None]


def threshold(x: Tensor, scores: Tensor) -> Tensor:
    least = scores.topk(K).values[:, -1:]
    return x[scores >= least].sum()[None]


def changed(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    mask.view(-1)[0] = True
    return x[mask].sum()[None]


def changed_by_a_view(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    mask[:, 3:].logical_or_(scores[:, 3:] > 0)
    return x[mask].sum()[None]


def changed_out(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    torch.gt(scores, 0, out=mask)
    return x[mask].sum()[None]


def heads_of_one(x: Tensor, scores: Tensor) -> Tensor:
    top = torch.stack([scores, x.sum(-1)], 1).topk(K, dim=2).indices
    mask = torch.zeros(len(x), 2, scores.shape[1], dtype=torch.bool).scatter_(2, top, True)
    return x[mask[:, 0] & mask[:, 1]].sum()[None]


def images_of_one_batch(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    return x[:2][mask[:2] & mask[1:]].sum()[None]


def one_row_for_all(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    return x[mask & mask[:1].expand(3, -1)].sum()[None]


def rows_against_columns(x: Tensor, scores: Tensor) -> Tensor:
    top = scores.topk(K).indices
    zeros = torch.zeros(3, 3, scores.shape[1], dtype=torch.bool)
    one = zeros.scatter(2, top[:, None].expand(-1, 3, -1), True)
    other = zeros.scatter(2, top[None].expand(3, -1, -1), True)
    return (x[None].expand(3, -1, -1, -1)[one & other]).sum()[None]


def descending_of_positions(x: Tensor, scores: Tensor) -> Tensor:
    ranks = scores.argsort(1).argsort(1, descending=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask = mask.scatter(1, scores.argsort(1)[:, :K], True)
    return x[(ranks < K) & mask].sum()[None]


def some_rows(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask.scatter_(1, scores.topk(K).indices[: max(len(x) // 2, 1)], True)
    mask |= scores > 1
    return x[mask].sum()[None]


def merged_unlike(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    one = mask[:, None].expand(-1, 3, -1).reshape(9, -1).flatten()
    other = mask[None].expand(3, -1, -1).reshape(9, -1).flatten()
    return x.repeat(3, 1, 1).flatten(0, 1)[one & other].sum()[None]


def places_that_repeat(x: Tensor, scores: Tensor) -> Tensor:
    places = torch.arange(12).repeat(len(x), 1) % 6
    mask = torch.zeros_like(scores, dtype=torch.bool)
    chosen = places[scattered(scores)].view(len(x), K)
    return x[mask.scatter(1, chosen, True)].sum()[None]


def wraps(x: Tensor, scores: Tensor) -> Tensor:
    top = (scores.topk(K).indices * 7) % 6
    mask = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, top, True)
    return x[mask].sum()[None]


def against_the_next_image(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    return x[mask & mask.roll(1, 0)].sum()[None]


def against_the_turned(x: Tensor, scores: Tensor) -> Tensor:
    mask = scattered(scores)
    return x[mask | mask.flip(1)].sum()[None]


def in_any_row(x: Tensor, scores: Tensor) -> Tensor:
    mask = torch.isin(torch.arange(scores.shape[1]), scores.topk(K).indices)
    return x[:, mask].sum()[None]


@pytest.mark.parametrize(
    "function",
    [
        *(repeats, overlap, threshold, changed, changed_by_a_view, changed_out, some_rows),
        *(wraps, heads_of_one, images_of_one_batch, one_row_for_all, rows_against_columns),
        *(descending_of_positions, merged_unlike, places_that_repeat),
        *(against_the_next_image, against_the_turned, in_any_row),
    ],
)
def test_what_may_vary_is_refused(function: Chooses) -> None:
    with pytest.raises(DataDependentError):
        capture(Calls(function), drawn(3, 0))


def holds(tensor: Tensor, fact: object) -> bool:
    """Tells whether what is said of a tensor is so."""
    if isinstance(fact, Constant):
        return bool((tensor == fact.value).all())
    if isinstance(fact, Positions):
        ordered = tensor.sort(fact.dim).values
        apart = ordered.diff(dim=fact.dim) > 0
        inside = (tensor >= fact.offset) & (tensor < fact.offset + fact.order.size)
        return bool(apart.all() and inside.all()) and tensor.shape[fact.dim] == len(fact.ranks)
    assert isinstance(fact, Mask)
    binary = (tensor == 0) | (tensor == 1)
    fixed = all(
        bool((tensor.select(fact.dim, place) == (rank in fact.ranks)).all())
        for place, rank in fact.order.fixed.items()
    )
    return bool(binary.all() and (tensor.sum(fact.dim) == fact.count).all()) and fixed


#: Calls of two tensors and two small numbers.
CALLS: list[Callable[[Tensor, Tensor, int, int], Tensor]] = [
    lambda one, other, n, start: torch.randn(3, 10).topk(n + 2, largest=False).indices,
    lambda one, other, n, start: torch.randn(3, 10).argsort(1, descending=True)[:, start:],
    lambda one, other, n, start: one.argsort(1),
    lambda one, other, n, start: one.sort(dim=1)[0],
    lambda one, other, n, start: one.scatter(1, other, n % 2),
    lambda one, other, n, start: one.masked_fill(other.bool(), n % 2),
    lambda one, other, n, start: one[:, start:],
    lambda one, other, n, start: one[:, : start + 1],
    lambda one, other, n, start: torch.cat([one, other], 1),
    lambda one, other, n, start: torch.cat([torch.ones(3, n), one], 1),
    lambda one, other, n, start: torch.cat([torch.zeros(3, 1).type_as(one), one + 1], dim=1),
    lambda one, other, n, start: one.gather(1, other),
    lambda one, other, n, start: one + n,
    lambda one, other, n, start: 1 - one,
    lambda one, other, n, start: one < start,
    lambda one, other, n, start: one == n,
    lambda one, other, n, start: one & other,
    lambda one, other, n, start: one & n,
    lambda one, other, n, start: one.logical_or(other),
    lambda one, other, n, start: one ^ other,
    lambda one, other, n, start: one * other,
    lambda one, other, n, start: one - other,
    lambda one, other, n, start: ~one,
    lambda one, other, n, start: one.bool(),
    lambda one, other, n, start: one.long(),
    lambda one, other, n, start: one[:, None].expand(-1, 4, -1),
    lambda one, other, n, start: one[..., None].squeeze(2),
    lambda one, other, n, start: one[None, :, None],
    lambda one, other, n, start: one.flatten(),
    lambda one, other, n, start: one.repeat(1, 1, 1),
    lambda one, other, n, start: one.repeat_interleave(n + 1, one.dim() - 1),
    lambda one, other, n, start: one[:, None].expand(-1, n + 1, -1).flatten(1, 2),
    lambda one, other, n, start: one[..., None].expand(-1, -1, n + 1).flatten(1),
    lambda one, other, n, start: one[None].expand(n + 1, -1, -1).reshape(-1, one.shape[1]),
    lambda one, other, n, start: one[other.bool()].view(3, -1),
    lambda one, other, n, start: one[n : n + 1].expand(3, -1),
    lambda one, other, n, start: one[n][None].expand(3, -1),
    lambda one, other, n, start: one.unbind(0)[n][None].expand(3, -1),
    lambda one, other, n, start: torch.stack([one, other], 1).unbind(1)[n % 2],
    lambda one, other, n, start: one[:, None].expand(-1, 3, -1)[:, n],
    lambda one, other, n, start: one[None].expand(3, -1, -1)[:, n],
    lambda one, other, n, start: one.argsort(1, descending=True),
    lambda one, other, n, start: torch.arange(0, 10, step=2)[None].expand(3, -1),
    lambda one, other, n, start: one.narrow(1, -start - 1, n),
    lambda one, other, n, start: one.to(torch.uint8) - n,
    lambda one, other, n, start: one.sum(1, keepdim=True).to(torch.int8) * 100,
    lambda one, other, n, start: torch.full((3, 10), 1.7).long(),
    lambda one, other, n, start: torch.full((3, 10), float("-inf")),
    lambda one, other, n, start: one.sum(1),
    lambda one, other, n, start: F.one_hot(one, 12).sum(1),
    lambda one, other, n, start: F.one_hot(one, 10)[:, n],
    lambda one, other, n, start: (torch.arange(10)[:, None] == one[:, None]).any(2),
    lambda one, other, n, start: (one[..., None] == torch.arange(12)).sum(1),
    lambda one, other, n, start: torch.isin(torch.arange(10), one[n])[None].expand(3, -1),
    lambda one, other, n, start: torch.where(other.bool(), n % 2, start % 2),
    lambda one, other, n, start: one.flip(1),
    lambda one, other, n, start: one.flip(0, 1),
    lambda one, other, n, start: one.roll(start, 1),
    lambda one, other, n, start: one.roll((n, start), (0, 1)),
    lambda one, other, n, start: torch.stack([one[0], other[n], one[2]]),
    lambda one, other, n, start: torch.cat([one[:1], other[1:]]),
    lambda one, other, n, start: one.chunk(2, 1)[n % 2],
    lambda one, other, n, start: one.flatten()[None].expand(3, -1),
    lambda one, other, n, start: torch.zeros(3, 10).scatter_add(1, one, torch.ones(one.shape)),
    lambda one, other, n, start: torch.zeros(3, 10).scatter(1, one[:, n : n + 1], 1),
    lambda one, other, n, start: torch.take_along_dim(one, other, dim=1),
    lambda one, other, n, start: one.amax(1),
]


def program(draw: random.Random) -> list[Tensor]:
    """Runs calls by chance on what came before; returns all tensors."""
    scores = torch.randint(0, 6, (3, 10)).float()
    made: list[Tensor] = [torch.zeros(3, 10), torch.ones(3, 10, dtype=torch.bool)]
    made += [torch.arange(10)[None].expand(3, -1), scores.topk(draw.randint(1, 10)).indices]
    for _ in range(14):
        n, start = draw.randint(0, 2), draw.randint(0, 5)
        try:
            found = draw.choice(CALLS)(draw.choice(made), draw.choice(made), n, start)
        except (RuntimeError, IndexError, TypeError):
            continue
        made.append(found)
        if draw.random() < 0.3 and found.dim() == 2:
            found = found.clone()
            found[:, n : n + 1] = n % 2
            made.append(found)
    return made


def test_what_is_known_of_any_program_is_so() -> None:
    said = 0
    for seed in range(400):
        torch.manual_seed(seed)
        following = FixedCounts()
        with following:
            made = program(random.Random(seed))
        for tensor in made:
            fact = following.known(tensor)
            if isinstance(fact, Positions | Mask | Constant) and tensor.numel():
                said += 1
                assert holds(tensor, fact), (seed, fact)
    assert said > 2000


def test_choices_of_any_program_are_right() -> None:
    chosen = 0
    for seed in range(400):
        torch.manual_seed(seed)
        following = FixedCounts()
        with following:
            made = program(random.Random(seed))
            masks = [
                each
                for each in made
                if each.dtype is torch.bool and isinstance(following.known(each), Mask)
            ]
            pairs = [(torch.randn(*each.shape, 2), each) for each in masks]
            own = [x[mask] for x, mask in pairs]
        chosen += len(masks)
        for (x, mask), rows in zip(pairs, own, strict=True):
            assert torch.equal(rows, x[mask]), seed
    assert chosen > 200
