"""The join of kept and merged rows becomes ``merge_tokens``; other joins stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

MODES = ("sum", "mean", "prod", "amax", "amin")


def inputs() -> tuple[Tensor, ...]:
    """Returns a (2, 5, 4), b (2, 6, 4), kept (2, 3), src (2, 2) and dst (2, 2)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, n, 4, generator=generator) for n in (5, 6))
    return (
        a,
        b,
        torch.tensor([[0, 2, 3]] * 2),
        torch.tensor([[4, 1]] * 2),
        torch.tensor([[3, 3], [0, 5]]),
    )


def take(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))


def put(x: Tensor, rows: Tensor, source: Tensor, mode: str = "sum", own: bool = True) -> Tensor:
    index = rows[..., None].expand(-1, -1, x.shape[2])
    return x.scatter_reduce(1, index, source, mode, include_self=own)


def test_every_mode_is_one_merge() -> None:
    def function(
        a: Tensor, b: Tensor, kept: Tensor, src: Tensor, dst: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(
            torch.cat([take(a, kept), put(b, dst, take(a, src), mode)], dim=-2) for mode in MODES
        )

    given = inputs()
    rewritten = checked(function, *given, targets=TARGETS)
    assert calls(rewritten) == {"tokexport.merge_tokens": 5}


def test_among_other_parts_it_is_a_merge_too() -> None:
    def function(
        a: Tensor, b: Tensor, kept: Tensor, src: Tensor, dst: Tensor
    ) -> tuple[Tensor, ...]:
        one, other = (put(b * i, dst, take(a, src)) for i in (1, 2))
        rest = take(a, kept)
        return torch.cat([a[:, :1], rest, one], 1), torch.cat([rest, other, b, rest], 1)

    rewritten = checked(function, *inputs(), targets=TARGETS)
    assert calls(rewritten)["tokexport.merge_tokens"] == 2
    assert calls(rewritten)["aten.cat"] == 2


def test_rows_of_one_match_are_a_merge_in_any_order() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b = x[:, ::2], x[:, 1::2]
        best, partner = (a @ b.mT).max(-1)
        order = best.argsort(-1, descending=True)
        kept, src = order[:, 2:], order[:, :2]
        dst = partner.gather(1, src)
        rest = take(a, kept)
        head = rest[:, :1]
        merged = put(b, dst, take(a, src), "mean")
        return (
            torch.cat([merged, rest], 1),
            torch.cat([merged[:, 1:], head, merged[:, :1], rest[:, 1:], x], 1),
        )

    rewritten = checked(function, torch.randn(2, 11, 4), targets=TARGETS)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


Join = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor | tuple[Tensor, ...]]
OTHERS: dict[str, Join] = {
    "merged rows first": lambda a, b, k, s, d: torch.cat([put(b, d, take(a, s)), take(a, k)], 1),
    "without the row itself": lambda a, b, k, s, d: torch.cat(
        [take(a, k), put(b, d, take(a, s), "mean", False)], 1
    ),
    "overwritten": lambda a, b, k, s, d: torch.cat(
        [take(a, k), b.scatter(1, d[:, :1, None].expand(-1, -1, 4), take(a, s))], 1
    ),
    "kept from elsewhere": lambda a, b, k, s, d: torch.cat([take(b, k), put(b, d, take(a, s))], 1),
    "sources that are no rows": lambda a, b, k, s, d: torch.cat(
        [take(a, k), put(b, d, a[:, :2])], 1
    ),
    "kept as they are": lambda a, b, k, s, d: torch.cat([a, put(b, d, take(a, s))], 1),
    "joined along channels": lambda a, b, k, s, d: torch.cat(
        [take(b, k.repeat(1, 2)), put(b, d, take(b, s))], 2
    ),
    "read twice": lambda a, b, k, s, d: (
        torch.cat([take(a, k), put(b, d, take(a, s))], 1),
        put(b, d, take(a, s)) * 2,
    ),
}


def test_another_join_stays() -> None:
    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for position, join in enumerate(OTHERS.values(), start=1):
            a, b, *rows = tensors
            joined = join(a * position, b, *rows)  # tensors of their own: nothing is shared
            found += joined if isinstance(joined, tuple) else (joined,)
        return tuple(found)

    rewritten = checked(function, *inputs())
    assert "tokexport.merge_tokens" not in calls(rewritten)
    assert calls(rewritten)["aten.cat"] == len(OTHERS)


def test_rows_of_one_match_that_something_else_reads_stay() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b = x[:, ::2], x[:, 1::2]
        best, partner = (a @ b.mT).max(-1)
        order = best.argsort(-1, descending=True)
        kept, src = order[:, 2:], order[:, :2]
        merged = put(b, partner.gather(1, src), take(a, src), "mean")
        return torch.cat([merged, take(a, kept)], 1), merged * 2

    rewritten = checked(function, torch.randn(2, 11, 4))
    assert "merge_tokens" not in rewritten.recognised


def both_ways(x: Tensor, factor: int, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Merges a into b, then what b became into what of a was kept; (a, the best of b, b)."""
    a, b = x[:, ::2], x[:, 1::2]
    scores = a @ b.mT
    best, partner = scores.max(-1)
    order = best.argsort(-1, descending=True)
    kept, src = order[:, 3:].sort(1)[0], order[:, :3]
    second, back = take(scores, kept).max(1)
    turned = second.argsort(-1, descending=True)
    a, b = a * factor, b * factor
    b = put(b, partner.gather(1, src), take(a, src), mode)
    into = put(take(a, kept), back.gather(1, turned[:, :2]), take(b, turned[:, :2]), mode)
    return into, take(b, turned[:, 2:]), b


def test_two_directions_are_two_merges() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat(both_ways(x, *mode)[:2], 1) for mode in enumerate(MODES, 1))

    rewritten = checked(function, torch.randn(2, 11, 4), targets=(*TARGETS, "trt"))
    assert rewritten.recognised == {"bipartite_match": 2, "gather_tokens": 1, "merge_tokens": 10}


def test_a_first_direction_that_something_else_reads_stays_apart() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        into, rest, b = both_ways(x, 1, "mean")
        return torch.cat([into, rest], 1), b * 2

    rewritten = checked(function, torch.randn(2, 11, 4), targets=("ort",))
    assert rewritten.recognised["merge_tokens"] == 1
    assert rewritten.recognised["scatter_tokens"] == 1


def test_a_match_that_keeps_no_row_is_a_merge_wherever_it_goes() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b = x[:, ::2], x[:, 1::2]
        best, partner = (a @ b.mT).max(-1)
        src = best.argsort(-1, descending=True)
        dst = partner.gather(1, src)
        return (
            *(put(b, dst, take(a, src), mode) * 2 for mode in MODES),
            put(b, dst, take(a, src), "mean", False),
            put(b, dst, take(a[:, :-1], src.clamp(max=4)), "sum"),
        )

    rewritten = checked(function, torch.randn(2, 11, 4), targets=(*TARGETS, "trt"))
    assert rewritten.recognised == {
        "bipartite_match": 1,
        "gather_tokens": 2,
        "merge_tokens": 5,
        "scatter_tokens": 2,
    }
