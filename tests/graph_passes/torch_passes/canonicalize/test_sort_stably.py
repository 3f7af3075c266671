"""Every sort becomes a stable one of floats, in the order and the dtype it had."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers.graphs import (
    TARGETS,
    calls,
    checked,
)
from torch import Tensor

from tokexport.graph_passes import pipelines

SORTS: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "argsort": lambda x: x.argsort(),
    "argsort, descending": lambda x: x.argsort(dim=1, descending=True),
    "argsort, stable": lambda x: torch.argsort(x, dim=-2, stable=True),
    "argsort of an axis": lambda x: x.argsort(0, True),
    "sort": lambda x: tuple(x.sort()),
    "sort, descending": lambda x: tuple(torch.sort(x, dim=-2, descending=True)),
    "sort, stable": lambda x: tuple(x.sort(stable=True, dim=1)),
    "values alone": lambda x: x.sort(dim=2).values,
    "indices alone": lambda x: x.sort(dim=2)[1],
    "of a vector": lambda x: x[0, :, 0].sort(descending=True)[0],
}


def test_every_sort_is_a_stable_one() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        results = (sort(x) for sort in SORTS.values())
        return tuple(part for r in results for part in (r if isinstance(r, tuple) else (r,)))

    x = torch.randn(2, 6, 4)
    rewritten = checked(function, x, targets=TARGETS, passes=pipelines.REWRITE)
    assert set(calls(rewritten)) == {"aten.sort", "aten.select"}
    for node in rewritten.program.graph.nodes:
        assert node.target is not torch.ops.aten.sort.default


def test_equals_keep_their_order_in_every_form() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return (
            *x.sort(stable=True, dim=1, descending=True),
            *x.sort(stable=True, dim=1),
        )

    x = torch.randint(0, 4, (2, 50), generator=torch.Generator().manual_seed(0)).float()
    checked(function, x, targets=TARGETS)


INDEX_SORTS: dict[str, Callable[[Tensor], Tensor]] = {
    "of an argsort": lambda x: x.argsort(1)[:, :3].sort(1)[0],
    "of a top-k": lambda x: x.topk(3, 1)[1].sort(1, descending=True)[0],
    "of an arg-max": lambda x: x.argmax(2).sort(1)[0],
    "of a split": lambda x: x.argsort(1).split([2, 4], 1)[1].sort(1).values,
    "of moved positions": lambda x: (
        torch.arange(6)
        .expand(2, -1)[..., None]
        .repeat(1, 1, 4)
        .gather(1, x.argsort(1))
        .mT.sort(2)[0]
    ),
    "of a join": lambda x: torch.cat([x.argsort(1), x.argmin(1, keepdim=True)], 1).sort(1)[0],
    "of a selection": lambda x: x.argsort(1)[:, 2].sort()[0],
    "of a sort": lambda x: x.argsort(1).sort(1)[0].sort(1, descending=True)[1],
    "turned about": lambda x: x.argsort(1).flip(1).sort(1)[0],
    "of positions one on": lambda x: (x.argsort(1)[:, :3] + 1).sort(1)[0],
    "of what is left": lambda x: (
        torch.arange(6).expand(2, -1).scatter(1, x.argmax(1)[:, :2], 0).sort(1, descending=True)[0]
    ),
    "of written positions": lambda x: (
        torch.zeros(2, 3, dtype=torch.int64).select_scatter(x.argmax(1)[:, 0], 1, 2).sort(1)[0]
    ),
    "of positions written one by one": lambda x: (
        lambda kept: kept.index_fill(1, torch.tensor([0]), 3).sort(1)[0]
    )(x.argmax(1)),
    "of a constant": lambda x: (
        torch.zeros(2, 6, dtype=torch.int64).scatter(1, x.argmax(1)[:, :1], -1)
    ).argsort(dim=1),
    "of truth values": lambda x: (x > 0).int().argsort(dim=1, stable=True),
    "of flat positions": lambda x: (
        (x.argsort(1)[..., 0] + torch.arange(2)[:, None] * 6).flatten().sort()[0]
    ),
}


def test_indices_are_sorted_as_floats() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(sort(x) for sort in INDEX_SORTS.values())

    rewritten = checked(function, torch.randn(2, 6, 4), targets=TARGETS)
    assert not {"aten.argsort"} & set(calls(rewritten))
    for node in rewritten.program.graph.nodes:
        if node.target is torch.ops.aten.sort.stable:
            assert node.args[0].meta["val"].is_floating_point()


INTEGER_SORTS: dict[str, Callable[[Tensor], Tensor]] = {
    "an input": lambda n: n.sort(1)[0],
    "a sum": lambda n: (n.argsort(1) + n).sort(1)[0],
    "a join with an input": lambda n: torch.cat([n.float().argsort(1), n], 1).sort(1)[0],
    "a long arange": lambda n: torch.arange(2**24 - 2, 2**24 + 2).gather(0, n[0, :4] % 4).sort()[0],
    "values of a maximum": lambda n: n.max(1)[0].sort()[0],
}


def test_other_integers_are_left_alone() -> None:
    def function(n: Tensor) -> tuple[Tensor, ...]:
        return tuple(sort(n) for sort in INTEGER_SORTS.values())

    n = torch.tensor([[2**24 + 1, 2**24, 5, -7], [2**40, 2**40 + 1, 0, 1]])
    rewritten = checked(function, n, targets=("ort",))
    sources = [
        node.args[0].meta["val"]
        for node in rewritten.program.graph.nodes
        if node.target in (torch.ops.aten.sort.default, torch.ops.aten.sort.stable)
    ]
    assert sum(not source.is_floating_point() for source in sources) == len(INTEGER_SORTS)


def test_a_single_number_is_left_alone() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = x.sum().sort()
        return values, indices

    x = torch.randn(3)
    rewritten = checked(function, x)
    assert calls(rewritten)["aten.sort"] == 1
