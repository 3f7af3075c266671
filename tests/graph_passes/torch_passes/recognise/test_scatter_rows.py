"""Scatters in every spelling become ``scatter_tokens``, and stay exact through every runtime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, makers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokexport.graph_passes.torch_passes.graph.pass_runner import PassResult

REDUCTIONS = ("sum", "mean", "prod", "amax", "amin")
Scatter = Callable[[Tensor, Tensor, Tensor], Tensor]


def spread(rows: Tensor, channels: int) -> Tensor:
    """Rows (B, K) over the channels, (B, K, C)."""
    return rows[:, :, None].expand(-1, -1, channels)


def every_reduction(y: Tensor, axis: int, index: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """All ten scatter reductions of the same arguments."""
    return tuple(
        y.scatter_reduce(axis, index, x, mode, include_self=own)
        for mode in REDUCTIONS
        for own in (True, False)
    )


def in_place(y: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y.scatter_(1, spread(rows, y.shape[2]), x)
    return y


def assigned(y: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y[torch.arange(len(y))[:, None], rows] = x
    return y


OVERWRITES: dict[str, Scatter] = {
    "scatter": lambda y, rows, x: y.scatter(1, spread(rows, y.shape[2]), x),
    "scatter_": in_place,
    "y[arange, rows] = x": assigned,
    "index_put": lambda y, rows, x: y.index_put((torch.arange(len(y))[:, None], rows), x),
    "scatter a number": lambda y, rows, x: y.scatter(1, spread(rows, y.shape[2]), 0.5),
    "put a number": lambda y, rows, x: y.index_put(
        (torch.arange(len(y))[:, None], rows), torch.tensor(0.5)
    ),
    "index_copy": lambda y, rows, x: y.index_copy(1, rows[0], x),
}
SUMS: dict[str, Scatter] = {
    "scatter_add": lambda y, rows, x: y.scatter_add(1, spread(rows, y.shape[2]), x),
    "scatter_add_": lambda y, rows, x: y.clone().scatter_add_(-2, spread(rows, y.shape[2]), x),
    "scatter_reduce": lambda y, rows, x: y.scatter_reduce(1, spread(rows, y.shape[2]), x, "sum"),
    "accumulate": lambda y, rows, x: y.index_put(
        (torch.arange(len(y))[:, None], rows), x, accumulate=True
    ),
    "index_add": lambda y, rows, x: y.index_add(1, rows[0], x),
    "index_add, alpha": lambda y, rows, x: y.index_add(1, rows[0], x, alpha=-2),
}


@pytest.mark.parametrize("spellings", [OVERWRITES, SUMS], ids=["overwrites", "sums"])
def test_every_spelling_is_scatter_tokens(spellings: dict[str, Scatter]) -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(scatter(y, rows, x) for scatter in spellings.values())

    # Who is written last among equals is not defined: there are none where rows are overwritten.
    rows = torch.tensor(
        [[1, 5, 0], [4, 2, 3]] if spellings is OVERWRITES else [[1, 5, 1], [2, 2, 2]]
    )
    rewritten = checked(function, torch.randn(2, 6, 4), rows, torch.randn(2, 3, 4), targets=TARGETS)
    assert dict(zip(spellings, makers(rewritten), strict=True)) == dict.fromkeys(
        spellings, "tokexport.scatter_tokens"
    )


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
def test_the_deprecated_reductions() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        index = spread(rows, 4)
        return (
            y.scatter(1, index, x, reduce="add"),
            y.scatter(1, index, x, reduce="multiply"),
            y.scatter(1, index, 3.0, reduce="add"),
            (y > 0).long().scatter(1, index, 3, reduce="multiply"),
        )

    y, x = torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    rows = torch.tensor([[1, 5, 1], [2, 2, 2]])
    rewritten = checked(function, y, rows, x, targets=("ort",))
    assert calls(rewritten)["tokexport.scatter_tokens"] == 3


@pytest.mark.filterwarnings("ignore:index_reduce")
def test_index_reduce() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            y.index_reduce(1, rows, x, mode, include_self=own)
            for mode in ("prod", "mean", "amax", "amin")
            for own in (True, False)
        )

    y, x, rows = torch.randn(2, 6, 4), torch.randn(2, 3, 4), torch.tensor([3, 3, 0])
    rewritten = checked(function, y, rows, x, targets=("ort",))
    assert calls(rewritten)["tokexport.scatter_tokens"] == 8


@st.composite
def scatters(draw: st.DrawFn) -> tuple[int, Tensor, Tensor, Tensor]:
    """Draws (axis, data, index, source) of one rank; the index as small as torch lets it be."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = draw(st.integers(-len(sizes), len(sizes) - 1))
    along = axis % len(sizes)
    counts = [draw(st.integers(1, 5 if a == along else s)) for a, s in enumerate(sizes)]
    source = [count + draw(st.integers(0, 1)) for count in counts]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    varies = [a for a in range(len(sizes)) if a == along or draw(st.booleans())]
    column = [count if a in varies else 1 for a, count in enumerate(counts)]
    index = torch.randint(0, sizes[along], column, generator=generator)
    data = torch.randn(sizes, generator=generator)
    return axis, data, index.expand(counts), torch.randn(source, generator=generator)


@given(case=scatters())
@settings(max_examples=8)
def test_every_reduction_of_every_shape(case: tuple[int, Tensor, Tensor, Tensor]) -> None:
    axis, data, index, source = case
    # The index enters without the axes it is spread over, and is spread in the graph.
    column = index[tuple(slice(None) if s else slice(0, 1) for s in index.stride())]

    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return every_reduction(y, axis, rows.expand(index.shape), x)

    inputs = data, column.clone(), source
    rewritten = checked(function, *inputs)
    assert calls(rewritten)["tokexport.scatter_tokens"] == 10
    assert calls(rewritten)["aten.scatter_reduce"] == 0


#: Axis, and the shapes of the data, of the index as it comes in, and of the index once spread.
LAYOUTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "rows": (1, (2, 6, 4), (2, 5, 1), (2, 5, 4)),
    "by channel": (1, (2, 6, 4), (2, 5, 4), (2, 5, 4)),
    "smaller index": (-2, (2, 6, 4), (1, 5, 1), (1, 5, 3)),
    "first axis": (0, (6, 2, 4), (5, 2, 1), (5, 2, 4)),
    "last axis": (-1, (2, 4, 6), (2, 1, 5), (2, 4, 5)),
    "one image": (0, (6, 4), (5, 1), (5, 4)),
    "heads": (2, (2, 3, 6, 4), (2, 3, 5, 1), (2, 3, 5, 4)),
}


def test_every_reduction_through_onnx() -> None:
    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for position, (axis, _, _, counts) in enumerate(LAYOUTS.values()):
            y, rows, x = tensors[3 * position : 3 * position + 3]
            found += every_reduction(y, axis, rows.expand(counts), x)
        return tuple(found)

    generator = torch.Generator().manual_seed(0)
    inputs = []
    for _, sizes, column, counts in LAYOUTS.values():
        inputs.append(torch.randn(sizes, generator=generator))
        inputs.append(torch.randint(0, 6, column, generator=generator))
        inputs.append(torch.randn(counts, generator=generator))
    rewritten = checked(function, *inputs, targets=TARGETS)
    assert calls(rewritten)["tokexport.scatter_tokens"] == 10 * len(LAYOUTS)


def test_nothing_for_tensorrt_to_refuse_is_left() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return (
            *every_reduction(y, 1, spread(rows, 4), x),
            *(scatter(y, rows, x) for scatter in SUMS.values()),
        )

    inputs = torch.randn(2, 6, 4), torch.tensor([[1, 5, 1], [2, 2, 2]]), torch.randn(2, 3, 4)
    rewritten = checked(function, *inputs, targets=("trt",))
    model = lowered(emitted(rewritten), "trt")
    assert not [node for node in model.graph if node.op_type.startswith("Scatter")]


def test_an_empty_index_writes_nothing() -> None:
    def function(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        index = torch.zeros(2, 0, 4, dtype=torch.int64)
        return y.scatter_reduce(1, index, x, "mean") * 2, y.scatter(1, index, x) + 1

    inputs = torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    rewritten = checked(function, *inputs)
    assert calls(rewritten) == {"aten.mul": 1, "aten.add": 1}


def test_integers_stay_element_scatters_and_their_mean_is_exact() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return every_reduction(y, 1, spread(rows, 4), x)

    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randint(-9, 9, (2, 6, 4), generator=generator),
        torch.tensor([[1, 5, 1, 1], [2, 2, 2, 0]]),
        torch.randint(-9, 9, (2, 4, 4), generator=generator),
    )
    rewritten = checked(function, *inputs, targets=("ort",))
    assert "tokexport.scatter_tokens" not in calls(rewritten)


def test_a_scalar_scatter_stays() -> None:
    def function(x: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64)
        return x[0, 0, 0].scatter(0, zero, x[0, 0, 1])

    rewritten = checked(function, torch.randn(2, 3, 4))
    assert calls(rewritten)["aten.scatter"] == 1


def test_half_precision_rows() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return every_reduction(y.half(), 1, spread(rows, 4), x.half())

    inputs = torch.randn(2, 6, 4), torch.tensor([[1, 5, 1], [2, 2, 2]]), torch.randn(2, 3, 4)
    rewritten = checked(function, *inputs, targets=("ort",), tolerance=2e-3)
    assert calls(rewritten)["tokexport.scatter_tokens"] == 10


def test_counts_are_scattered_as_floats() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        nearest = (x @ x[:, ::3].mT).argmax(-1)
        ones = torch.ones_like(nearest)
        count = torch.zeros(2, 2, dtype=torch.int64)
        return (
            count.scatter_add(1, nearest, ones),
            count.scatter_reduce(1, nearest, nearest, "amax"),
            count.index_add(1, nearest[0].int(), ones),
        )

    rewritten = checked(function, torch.randn(2, 6, 4), targets=(*TARGETS, "trt"))
    assert calls(rewritten)["tokexport.scatter_tokens"] == 3


def test_rows_of_every_image_are_written() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        written = x.clone()
        written[:, torch.tensor([4, -6])] = x[:, :1] * 2
        rows = torch.tensor([1, 1, 3])
        return written, torch.ops.aten.index_put(x, [None, rows], x[:, :3], True)

    rewritten = checked(function, torch.randn(2, 6, 4), targets=TARGETS)
    assert calls(rewritten)["tokexport.scatter_tokens"] == 2


def test_one_row_of_each_image_is_written() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        row, written, all_alike = x.sum(-1).argmax(1), x.clone(), x.clone()
        written[torch.arange(2), row] = x[:, 0]
        all_alike[torch.arange(2), row] = 7.0
        return written, all_alike

    rewritten = checked(function, torch.randn(2, 6, 4), targets=TARGETS)
    assert calls(rewritten)["tokexport.scatter_tokens"] == 2


def laid_end_to_end(rows: Tensor, tokens: int) -> Tensor:
    """Positions of rows (B, K) in the tokens of all images."""
    return (rows + tokens * torch.arange(len(rows))[:, None]).flatten()


#: Each takes y (B, N, C), rows (B, K) and x (B, K, C).
FLAT: dict[str, Scatter] = {
    "index_add": lambda y, rows, x: (
        y.flatten(0, 1).index_add(0, laid_end_to_end(rows, 6), x.flatten(0, 1)).unflatten(0, (2, 6))
    ),
    "index_add, alpha": lambda y, rows, x: (
        y.flatten(0, 1)
        .index_add(0, laid_end_to_end(rows, 6), x.flatten(0, 1), alpha=2)
        .view(2, 6, 4)
    ),
    "scatter_add": lambda y, rows, x: (
        y.reshape(12, 4)
        .scatter_add(0, laid_end_to_end(rows, 6)[:, None].expand(-1, 4), x.reshape(6, 4))
        .reshape(2, 6, 4)
    ),
    "fewer channels": lambda y, rows, x: (
        y.reshape(12, 4)
        .scatter_reduce(0, laid_end_to_end(rows, 6)[:, None].repeat(1, 3), x.reshape(6, 4), "amax")
        .reshape(2, 6, 4)
    ),
    "accumulate": lambda y, rows, x: (
        y.flatten(0, 1)
        .index_put((laid_end_to_end(rows, 6),), x.flatten(0, 1), accumulate=True)
        .view(2, 6, 4)
    ),
    "no channels": lambda y, rows, x: (
        y[..., 0].flatten().index_add(0, laid_end_to_end(rows, 6), x[..., 0].flatten()).view(2, 6)
    ),
    "more axes": lambda y, rows, x: (
        y.view(2, 6, 2, 2)
        .flatten(0, 1)
        .index_add(0, laid_end_to_end(rows, 6), x.view(6, 2, 2))
        .view(2, 6, 2, 2)
    ),
}


@pytest.mark.parametrize("name", FLAT)
def test_a_scatter_into_the_tokens_of_all_images(name: str) -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        return FLAT[name](y, rows.clamp(0, 5), x)

    inputs = torch.randn(2, 6, 4), torch.tensor([[1, 5, 1], [2, 2, 2]]), torch.randn(2, 3, 4)
    rewritten = checked(function, *inputs, targets=TARGETS)
    assert scattered_shapes(rewritten)[0][:2] == (2, 6)


def test_counts_of_all_images() -> None:
    def function(y: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        count = torch.zeros(12, dtype=torch.int64)
        at = laid_end_to_end(rows.clamp(0, 5), 6)
        return count.index_add(0, at, torch.ones_like(at)).view(2, 6)

    inputs = torch.randn(2, 6, 4), torch.tensor([[1, 5, 1], [2, 2, 2]]), torch.randn(2, 3, 4)
    rewritten = checked(function, *inputs, targets=TARGETS)
    assert scattered_shapes(rewritten) == [(2, 6, 1)]


NOT_BY_IMAGE: dict[str, Scatter] = {
    "rows of another image": lambda y, rows, x: y.flatten(0, 1).index_add(
        0, laid_end_to_end(rows.clamp(0, 6), 6).clamp(max=11), x.flatten(0, 1)
    ),
    "past its image": lambda y, rows, x: y.flatten(0, 1).index_add(
        0, laid_end_to_end(rows.clamp(0, 6), 5), x.flatten(0, 1)
    ),
    "rows that may be anything": lambda y, rows, x: y.flatten(0, 1).index_add(
        0, laid_end_to_end(rows, 6), x.flatten(0, 1)
    ),
    "images the other way": lambda y, rows, x: y.flatten(0, 1).index_add(
        0, (rows.clamp(0, 5) + 6 * (1 - torch.arange(2))[:, None]).flatten(), x.flatten(0, 1)
    ),
}


@pytest.mark.parametrize("name", NOT_BY_IMAGE)
def test_a_scatter_that_may_leave_its_image_stays_over_all(name: str) -> None:
    inputs = torch.randn(2, 6, 4), torch.tensor([[1, 5, 1], [2, 2, 2]]), torch.randn(2, 3, 4)
    rewritten = checked(NOT_BY_IMAGE[name], *inputs, targets=TARGETS)
    assert scattered_shapes(rewritten) == [(1, 12, 4)]


def scattered_shapes(rewritten: PassResult) -> list[tuple[int, ...]]:
    """The shapes of what rows are scattered into."""
    target = torch.ops.tokexport.scatter_tokens.default
    nodes = rewritten.program.graph.find_nodes(op="call_function", target=target)
    return [tuple(node.meta["val"].shape) for node in nodes]
