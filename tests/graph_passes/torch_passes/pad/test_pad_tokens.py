"""Padded rows never reach an answer: every rule against eager, and what has none is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import Function
from torch import Tensor
from torch.nn import functional as f

from tokexport.exporter.capture.dynamic_sizes import Padding
from tokexport.exporter.capture.trace import capture_padded
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.errors import DataDependentError
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module

Rows = Callable[[Tensor], Tensor]
N, C = 9, 4


def chosen(x: Tensor) -> Tensor:
    return x[:, (x.sum(-1) > 0)[0]]


def chosen_by_first(x: Tensor) -> Tensor:
    return x[0][x[0, :, 0] > 0]


def attend(y: Tensor) -> Tensor:
    q = y.reshape(1, y.shape[1], 2, 2).transpose(1, 2)
    return f.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(1, y.shape[1], C)


def written_rows(x: Tensor) -> Tensor:
    y = chosen(x)
    rows = torch.zeros(1, y.shape[1] + 1, C)
    rows[:, 0] = 1.0
    rows[:, 1:] = y
    y[..., 0] = 0.5
    y *= 2
    return rows.softmax(1).amax(1) + y.sum(1)


def masked_keys(x: Tensor) -> Tensor:
    y = chosen(x)
    keys = (y.sum(-1) > 0) | (y[..., 0] > 0)
    scores = (y @ y.mT).masked_fill(~keys[:, None], -9.0)
    return (scores.softmax(-1) @ y).sum(1)


def twice(x: Tensor) -> Tensor:
    y = attend(chosen(x))
    return attend(y[:, y[0, :, 0] > 0])


def written_back(x: Tensor) -> Tensor:
    mask = (x.sum(-1) > 0)[0]
    result = x.clone()
    result[:, mask] = attend(x[:, mask])
    return result


def written_at_positions(x: Tensor) -> Tensor:
    rows = torch.where(x[0, :, 0] > 0)[0]
    result = x.clone()
    result[:, rows] = x[:, rows] * 2
    return result


EXACT: dict[str, Rows] = {
    "mean": lambda x: chosen(x).mean(1),
    "mean over all": lambda x: chosen(x).mean(),
    "sum over the count": lambda x: chosen(x).sum(1) / chosen(x).shape[1],
    "max": lambda x: chosen(x).amax(1),
    "min and where": lambda x: torch.cat([*map(Tensor.float, chosen(x).min(dim=1))]),
    "norm": lambda x: chosen(x).norm(dim=1),
    "any": lambda x: (chosen(x) > 1).any(1),
    "softmax": lambda x: (chosen(x).softmax(1) * chosen(x)).sum(1),
    "cumsum": lambda x: chosen(x).cumsum(1).amax(1),
    "sort": lambda x: chosen(x).sort(dim=1, descending=True).values[:, 0],
    "sorted rows in products": lambda x: attend(chosen(x).sort(1)[0] @ torch.ones(C, C)).std(1),
    "sorted rows among each other": lambda x: (
        (chosen(x).sort(1).values @ chosen(x).sort(1).values.mT).softmax(-1) @ chosen(x)
    ).sum(1),
    "logarithms of shares in products": lambda x: (
        (chosen(x).log_softmax(1) @ chosen(x).mT).softmax(-1) @ chosen(x)
    ).sum(1),
    "top-k": lambda x: chosen(x).topk(2, dim=1).values,
    "place of the best": lambda x: chosen(x)[:, chosen(x)[0, :, 0].argmax()],
    "product of matrices": lambda x: chosen(x).transpose(1, 2) @ chosen(x),
    "einsum": lambda x: torch.einsum("bnc,bnd->bcd", chosen(x), chosen(x)),
    "einsum that keeps rows": lambda x: (
        torch.einsum("bnc, bmc -> bnm", chosen(x), chosen(x)).softmax(2).amax((1, 2))
    ),
    "written back": written_back,
    "written at positions": written_at_positions,
    "attention": lambda x: attend(chosen(x)).mean(1),
    "attention with a class token": lambda x: attend(torch.cat([x[:, :1], chosen(x)], 1))[:, 0],
    "behind the class token": lambda x: attend(torch.cat([x[:, :1], chosen(x)], 1))[:, 1:].sum(1),
    "a token at the end": lambda x: attend(torch.cat([chosen(x), x[:, :1]], 1)).mean(1),
    "chosen twice": lambda x: twice(x).sum(1),
    "logarithm of what is chosen": lambda x: (x[x > 0].log().softmax(0) * x[x > 0]).sum(),
    "masked_select": lambda x: x.masked_select(x > 0).mean(),
    "nonzero": lambda x: x.index_select(1, torch.nonzero(x[0, :, 0] > 0)[:, 0]).sum(1),
    "nonzero of two axes": lambda x: x[0][torch.nonzero(x[0] > 0).unbind(1)].sum(),
    "nonzero as a tuple": lambda x: x[:, x[0, :, 0].gt(0).nonzero(as_tuple=True)[0]].sum(1),
    "where": lambda x: x[:, torch.where(x[0, :, 0] > 0)[0]].sum(1),
    "unique": lambda x: x[:, (x[0, :, 0] * 2).long().clamp(0, 8).unique()].sum(1),
    "unique of chosen": lambda x: (chosen(x)[0, :, 0] * 2).long().unique().sum(),
    "ones of that size": lambda x: (chosen(x) * torch.ones(chosen(x).shape[1], 1)).sum(1),
    "a range up to a count": lambda x: (
        torch.range(0, (x[0, :, 0] > 0).sum().item() - 1)[:, None] * chosen_by_first(x)
    ).sum(0),
    "a line up to a count": lambda x: (
        torch.linspace(-1, 3, chosen(x).shape[1])[:, None] * chosen(x)
    ).sum(1),
    "the last row": lambda x: chosen(x)[:, -1],
    "expand cdist": lambda x: torch.cdist(chosen(x), chosen(x)).amax((1, 2)),
    "a triangle": lambda x: ((chosen(x) @ chosen(x).mT).tril() @ chosen(x)).sum(1),
    "repeated": lambda x: (chosen(x) + x[:, :1].repeat(1, chosen(x).shape[1], 1)).sum(1),
    "new_full": lambda x: (x.new_full((1, chosen(x).shape[1], 1), 2.0) * chosen(x)).sum(1),
    "one-hot": lambda x: (
        f.one_hot((chosen(x)[0, :, 1] > 0).long(), 2).float().t() @ chosen(x)[0]
    ).sum(0),
    "unique_consecutive": lambda x: x[
        :, (x[0, :, 0] * 2).long().clamp(0, 8).sort().values.unique_consecutive()
    ].sum(1),
    "padded by rows": lambda x: f.pad(chosen(x), (0, 0, 1, 2), value=3.0).sum(1),
    "top-k of a count": lambda x: x.gather(
        1,
        x[..., 0].topk((x[0, :, 0] > 0).sum().item(), dim=1).indices[..., None].expand(-1, -1, C),
    ).sum(1),
    "written rows": written_rows,
    "masked keys": masked_keys,
    "the first few, at most": lambda x: chosen(x).sort(1).values[:, :2].sum(1),
    "deviations": lambda x: torch.stack([chosen(x).std(1), chosen(x).var(1, unbiased=False)]),
    "deviation over all": lambda x: chosen(x).std((1, 2), correction=0) + chosen(x).var(),
    "deviation and mean": lambda x: torch.cat(torch.var_mean(chosen(x), dim=1)),
    "deviation of each row": lambda x: (chosen(x) / chosen(x).std(-1, keepdim=True)).sum(1),
    "flipped": lambda x: chosen(x).flip(1, 2).cumsum(1)[:, :2].sum(1),
    "rolled": lambda x: chosen(x).roll((1, -2), (1, 2)).cumsum(1).amax(1),
    "selected rows": lambda x: attend(
        x.masked_select((x[..., 0] > 0)[..., None]).view(1, -1, C)
    ).sum(1),
    "numbers as rows": lambda x: x[(x[..., :1] > 0).expand(-1, -1, C)].reshape(-1, 2).sum(0),
    "every second row": lambda x: chosen(x)[:, ::2].sum(1) - chosen(x)[:, 1::2].mean(1),
    "all but the last": lambda x: chosen(x)[:, :-1].sum(1),
    "the last two": lambda x: chosen(x)[:, -2:].amax(1),
    "rows from both ends": lambda x: chosen(x)[:, [0, -1]].flatten(1),
    "half of the rows": lambda x: chosen(x)[:, : chosen(x).shape[1] // 2].sum(1),
    "at a stride": lambda x: chosen(x)[:, (torch.arange(3) * (chosen(x).shape[1] / 3)).long()],
    "from the back by data": lambda x: x[:, -(x[0, :, 0] > 0).sum().item() :].sum(1),
    "bounds that are tensors": lambda x: x[:, : (x[0, :, 0] > 0).sum()].sum(1),
    "root of the count": lambda x: chosen(x).sum(1) / chosen(x).shape[1] ** 0.5,
    "quantiles": lambda x: torch.quantile(chosen(x), torch.tensor([0.1, 0.5]), dim=1),
    "one quantile": lambda x: chosen(x)[0, :, 1].quantile(0.25, keepdim=True),
    "bincount": lambda x: torch.bincount((chosen(x)[0, :, 1] > 0).long(), minlength=3)[:2],
    "bincount with weights": lambda x: torch.bincount(
        (x[0, :, 0] * 2).long().clamp(0, 5), weights=x[0, :, 1]
    ).cumsum(0)[-1],
    "split by counts": lambda x: torch.stack(
        [part.sum(1) for part in x.split([(x[0, :, 0] > 0).sum(), (x[0, :, 0] <= 0).sum()], 1)]
    ),
    "pooled": lambda x: torch.cat(
        [f.adaptive_avg_pool1d(chosen(x).mT, 1), f.adaptive_max_pool1d(chosen(x).mT, 1)], -1
    ),
    "whole numbers divided by counts": lambda x: (
        9 // torch.unique((x[0, :, 0] > 0).long() + 1, return_counts=True)[1]
    ).sum(),
    "stack": lambda x: torch.stack([chosen(x), chosen(x).exp()]).sum(2),
}
REFUSED: dict[str, tuple[Rows, str]] = {
    "an output": (chosen, "it is an output"),
    "medians": (lambda x: chosen(x).median(1).values, "there is no rule for it"),
    "the last row, which is fixed": (
        lambda x: torch.cat([chosen(x), x[:, :1]], 1)[:, -1],
        "may be padding",
    ),
    "flattened": (lambda x: chosen(x).reshape(-1).sort().values[0], "regroups"),
    "multiplied up": (lambda x: chosen(x).cumprod(1).sum(1), "there is no rule for it"),
    "pooled to two": (
        lambda x: f.adaptive_avg_pool1d(chosen(x).mT, 2),
        "it pools padded rows to more than one",
    ),
    "middle of two rows": (
        lambda x: chosen(x).quantile(0.5, dim=1, interpolation="midpoint"),
        "it takes one of the rows, or their middle",
    ),
    "two choices in one sum": (
        lambda x: (chosen(x) @ x[:, (x[0, :, 0] > 0)].transpose(1, 2)).cumprod(2).sum(),
        "there is no rule for it",
    ),
    "position inside": (
        lambda x: torch.cat([chosen(x), x[:, :1]], 1)[0, :, 0].argmax() + 0,
        "padded inside",
    ),
}


#: What eager does not answer where few rows are chosen.
OF_ENOUGH: dict[str, Rows] = {
    "a later row": lambda x: chosen_by_first(x)[3],
    "rows from both ends": lambda x: chosen_by_first(x)[[0, -1, 2]],
    "the third from the end": lambda x: chosen_by_first(x)[-3],
    "top-k": lambda x: chosen_by_first(x).topk(3, dim=0).values,
    "top-k of a count": lambda x: (
        chosen_by_first(x).topk((x[0, :, 1] > 0).sum().item(), 0)[0].sum(0)
    ),
    "the largest behind the first": lambda x: chosen_by_first(x)[1:].amax(0),
    "whole numbers": lambda x: (
        (chosen_by_first(x) * 9).long().sum(0) // chosen_by_first(x).shape[0]
    ),
    "a position too far": lambda x: chosen_by_first(x).argmax(0) * chosen_by_first(x)[1],
}


@pytest.mark.parametrize("name", OF_ENOUGH)
def test_where_eager_has_no_answer_a_check_fails(name: str) -> None:
    module = Function(OF_ENOUGH[name])
    full = inputs()[0]
    full[0, :, 0] = full[0, :, 0].abs() + 0.1
    program, padding = capture_padded(
        FlatModel(module, call_spec(module, (full,), {})), (full,), (N,)
    )
    graph = as_graph_module(program)
    raised = 0
    for count in range(N + 1):
        x = full.clone()
        x[0, count:, 0] *= -1
        found, holds = graph(x)
        answers = bool(holds.all())
        try:
            wanted = module(x)
        except (RuntimeError, IndexError, ZeroDivisionError):
            raised += 1
            assert not answers, (count, [check.said for check in padding.checks])
        else:
            assert answers or count == 0
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert raised


BATCH: dict[str, Rows] = {
    "groups of a mask": lambda x: attend_groups(x[equal_mask(x)].view(2, -1, C)).mean(1),
    "groups of what was computed": lambda x: (x[equal_mask(x)] * 2).reshape(2, -1, C).amax(1),
    "positions in groups": lambda x: x.gather(
        1, torch.argwhere(equal_mask(x))[..., 1].reshape(2, -1, 1).expand(-1, -1, C)
    ).sum(1),
    "mask and position": lambda x: torch.stack([x[i, equal_mask(x)[i]].sum(0) for i in range(2)]),
    "two masks written": lambda x: written_by_two(x),
    "rows as many as a number": lambda x: (
        x[:, : equal_mask(x)[0].sum().item()] * torch.arange(equal_mask(x)[1].sum().item())[:, None]
    ).sum(1),
}


def equal_mask(x: Tensor) -> Tensor:
    """Returns (2, 9), true at as many places in both rows."""
    first = x[0, :, 0] > 0
    return torch.stack([first, first.flip(0)])


def attend_groups(y: Tensor) -> Tensor:
    return f.scaled_dot_product_attention(y, y, y)


def written_by_two(x: Tensor) -> Tensor:
    result = x.clone()
    rows, columns = equal_mask(x)[0], equal_mask(x)[1]
    result[0, rows] = x[0, columns] * 3
    result[1][rows.nonzero()[:, 0], 2] += 1.0
    return result


def inputs() -> list[Tensor]:
    return [
        torch.randn(1, N, C, generator=torch.Generator().manual_seed(i)) for i in (0, 1, 3, 4, 6)
    ]


@pytest.mark.filterwarnings("ignore:torch.range is deprecated")
@pytest.mark.parametrize("name", EXACT)
def test_live_rows_are_exact(name: str) -> None:
    module = Function(EXACT[name])
    first, *others = inputs()
    flat = FlatModel(module, call_spec(module, (first,), {}))
    program, padding = capture_padded(flat, (first,), (N * C,))
    assert padding.selections
    graph = as_graph_module(program)
    for x in (first, *others):
        wanted, (found, holds) = module(x), graph(x)
        broken = {one.kind for one, true in zip(padding.checks, holds, strict=True) if not true}
        assert broken <= {"none"}  # that no row is chosen, eager answers here too
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BATCH)
def test_rows_of_a_batch_are_exact(name: str) -> None:
    module = Function(BATCH[name])
    batches = [torch.cat([x, x.flip(1) * 0.5]) for x in inputs()]
    flat = FlatModel(module, call_spec(module, (batches[0],), {}))
    program, padding = capture_padded(flat, (batches[0],), (N,))
    graph = as_graph_module(program)
    for x in batches:
        wanted, (found, holds) = module(x), graph(x)
        assert holds.all()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert padding.selections


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x[x[..., 0] > 0].view(2, -1, C).sum(1), "groups of as many"),
        (lambda x: x[:, x[0, :, 0] > 0] + x[:, x[1, :, 0] > 0], "not as many"),
    ],
)
def test_what_does_not_hold_of_an_input_is_said(function: Rows, why: str) -> None:
    x = torch.cat([inputs()[0], inputs()[0].flip(1)])
    module = Function(lambda x: function(x).sum())
    program, padding = capture_padded(FlatModel(module, call_spec(module, (x,), {})), (x,), (N,))
    graph = as_graph_module(program)
    assert graph(x)[-1].all()
    x[1, :, 0] = torch.where(torch.arange(N) == 0, 1.0, -1.0)
    x[0, :, 0] = torch.where(torch.arange(N) < 4, 1.0, -1.0)
    said = [c.said for c, true in zip(padding.checks, graph(x)[-1], strict=True) if not true]
    assert [one for one in said if why in one], said


def test_an_assertion_alone_adds_no_output_without_a_cap() -> None:
    def function(x: Tensor) -> Tensor:
        torch._check((x < 100).all().item())
        return x + 1

    module, x = Function(function), inputs()[0]
    flat = FlatModel(module, call_spec(module, (x,), {}))
    program, padding = capture_padded(flat, (x,), None)
    assert (padding, len(as_graph_module(program)(x))) == (Padding(), 1)
    program, padding = capture_padded(flat, (x,), (N,))
    assert "branch" in [check.kind for check in padding.checks]
    assert [bool(as_graph_module(program)(one)[1].all()) for one in (x, x + 200)] == [True, False]


def test_rows_fewer_than_none_are_a_check() -> None:
    module = Function(lambda x: torch.ones(1, chosen(x).shape[1] - 3, 1).sum(1) + x[:, 0])
    x = inputs()[0]
    x[0, :, 0] = torch.where(torch.arange(N) < 5, 9.0, -9.0)
    flat = FlatModel(module, call_spec(module, (x,), {}))
    program, _ = capture_padded(flat, (x,), (N,))
    graph = as_graph_module(program)
    torch.testing.assert_close(graph(x)[0], module(x))
    assert graph(x)[1].all()
    x[0, :, 0] = torch.where(torch.arange(N) < 2, 9.0, -9.0)
    assert not graph(x)[1].all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused(name: str) -> None:
    function, why = REFUSED[name]
    module = Function(function)
    x = inputs()[0]
    with pytest.raises(DataDependentError, match=why) as refused:
        capture_padded(FlatModel(module, call_spec(module, (x,), {})), (x,), (N,))
    assert refused.value.where.startswith("At /")


def test_rows_that_exceed_the_cap_are_the_last() -> None:
    module = Function(lambda x: chosen(x).sum(1))
    x = inputs()[0]
    program, padding = capture_padded(FlatModel(module, call_spec(module, (x,), {})), (x,), (2,))
    kept = x[:, (x.sum(-1) > 0)[0]]
    (selection,) = padding.selections
    assert (selection.cap, kept.shape[1] > 2) == (2, True)
    assert [check.kind for check in padding.checks] == ["room", "none"]
    assert as_graph_module(program)(x)[1].tolist() == [False, True]
    torch.testing.assert_close(as_graph_module(program)(x)[0], kept[:, :2].sum(1))


def at_counted_places(x: Tensor) -> Tensor:
    y = chosen_by_first(x)
    return torch.stack([y[-1], y[[0, -1]].sum(0), y.flip(0)[0], y[y.shape[0] // 2 :].sum(0)])


def test_what_exceeds_the_cap_reads_no_row_beyond_it() -> None:
    module, x = Function(at_counted_places), inputs()[0]
    program, padding = capture_padded(FlatModel(module, call_spec(module, (x,), {})), (x,), (3,))
    graph = as_graph_module(program)
    for count in range(1, N + 1):
        x[0, :, 0] = torch.where(torch.arange(N) < count, 1.0, -1.0)
        found, holds = graph(x)  # nor does it fail
        broken = {one.kind for one, true in zip(padding.checks, holds, strict=True) if not true}
        assert ("room" in broken) == (count > 3)
        if not broken:
            torch.testing.assert_close(found, module(x))


@pytest.mark.parametrize(
    "mask", [[1, 0, 1, 1, 0, 0, 1, 1, 0], [1] * 9, [0] * 8 + [1], [1, 0] * 4 + [1]]
)
def test_a_constant_mask_leaves_no_mask(mask: list[int]) -> None:
    flags = torch.tensor(mask).bool()
    module = Function(lambda x: attend(x[:, flags]))
    x = inputs()[0]
    program, padding = capture_padded(FlatModel(module, call_spec(module, (x,), {})), (x,), None)
    assert padding == Padding()
    torch.testing.assert_close(as_graph_module(program)(x)[0], module(x))
