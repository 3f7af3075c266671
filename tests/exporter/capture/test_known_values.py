"""Numbers that no input reaches are read while a model is traced, as often as it reads them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.capture.trace import capture
from tokexport.exporter.errors import DataDependentError, ModelNotSupportedError


class Holds(nn.Module):
    """Holds constants of every kind, which a function of its reads."""

    grid: Tensor
    keep: Tensor
    table: Tensor

    def __init__(self, function: Callable[[Holds, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("grid", torch.tensor([[1, 2, 4], [1, 1, 4]]))
        self.register_buffer("keep", torch.arange(12) % 3 != 1)
        self.register_buffer("table", torch.linspace(0, 1, 12))
        self.plain = torch.tensor([5, 7])
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.function(self, x),)


def parts(m: Holds, x: Tensor) -> Tensor:
    lengths = m.grid.prod(-1)
    return torch.cat([part.mean(1) for part in torch.split(x, lengths.tolist(), dim=1)], 1)


def plain_list(m: Holds, x: Tensor) -> Tensor:
    return torch.cat([part.sum(1) for part in x.split(m.plain.tolist(), 1)], 1)


def counted(m: Holds, x: Tensor) -> Tensor:
    return x[:, : int(m.keep.sum())].mean(1)


def branch(m: Holds, x: Tensor) -> Tensor:
    return x * 2 if m.keep.sum() == 8 else x * 3


def truth(m: Holds, x: Tensor) -> Tensor:
    return x * 2 if (m.scale > 1).item() and not m.keep.all() else x * 3


def chosen(m: Holds, x: Tensor) -> Tensor:
    return x[:, m.keep].view(len(x), 8, -1) + x[:, ~m.keep].mean()


def by_numpy(m: Holds, x: Tensor) -> Tensor:
    (rows,) = np.where(m.table.numpy() > 0.5)
    return x[:, torch.from_numpy(rows)]


def by_array(m: Holds, x: Tensor) -> Tensor:
    return x[:, np.flatnonzero(np.asarray(m.keep))]


def of_loops(m: Holds, x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for t, h, w in m.grid:
        for _ in range(t * h):
            total = total + x[:, w]
    return total


def ranges(m: Holds, x: Tensor) -> Tensor:
    t, h, w = m.grid[0]
    return x[:, : h * w] + torch.arange(h * w)[None, :, None] + torch.linspace(0, 1, int(t * 5))


def repeated(m: Holds, x: Tensor) -> Tensor:
    seqlens = torch.repeat_interleave(m.grid[:, 1] * m.grid[:, 2], m.grid[:, 0]).cumsum(0)
    ends = [0, *seqlens.tolist()]
    return torch.cat(
        [x[:, a:b].mean(1, keepdim=True) for a, b in zip(ends, ends[1:], strict=False)], 1
    )


def spread(m: Holds, x: Tensor) -> Tensor:
    return torch.repeat_interleave(x[:, :2], m.plain, dim=1)


def written(m: Holds, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, m.keep] = x[:, m.keep] * 2
    return out


def selected(m: Holds, x: Tensor) -> Tensor:
    return torch.masked_select(x, m.keep[None, :, None]).view(len(x), 8, -1)


def changed_first(m: Holds, x: Tensor) -> Tensor:
    mask = torch.zeros(12, dtype=torch.bool)
    mask[2:6] = True
    mask[m.plain] = True
    mask.logical_not_()
    return x[:, mask].view(len(x), int(mask.sum()), -1)


def unique(m: Holds, x: Tensor) -> Tensor:
    values, counts = torch.unique(m.grid, return_counts=True)
    return x[:, values] * counts[:, None]


def changed_in_place(m: Holds, x: Tensor) -> Tensor:
    mask = m.keep[2:]
    mask = mask.logical_not()
    part = m.plain.view(2)[:1].clone()
    part += 1
    return x[:, 2:][:, mask].mean() * x[:, : int(part)]


def asserted(m: Holds, x: Tensor) -> Tensor:
    torch._assert(m.keep.any(), "nothing is kept")
    torch._assert(x.shape[1] == 12, "twelve tokens")
    torch._check(bool((m.grid > 0).all()))
    return x[:, torch.combinations(m.grid[0])[:, 0]]


def sizes(m: Holds, x: Tensor) -> Tensor:
    t, h, w = m.grid[0]
    parts = x.view(x.shape[0], h, -1, 5).expand(-1, -1, 6, -1).reshape(len(x), w, 3, -1)
    padded = nn.functional.pad(x, (0, 0, t, w)).roll(t, 1).narrow(1, h, 12)
    small = nn.functional.adaptive_avg_pool2d(parts, (h, w)).flatten(1)
    return (
        padded[:, :, t] + small.repeat(1, t)[:, :12] + x.topk(h, dim=1).values.sum((1, 2))[:, None]
    )


def places(m: Holds, x: Tensor) -> Tensor:
    t, h, w = m.grid[0]
    out = x.clone()
    out[:, :h] = 0
    out[:, h:, t] += 1
    out[..., w] = 3
    out[:, [0, t]] *= 2
    return out[:, h:w:t] + torch.tensor([t, h]).view(1, 2, 1)


def one_truth(m: Holds, x: Tensor) -> Tensor:
    out = x.clone()
    out[m.keep.all()] = 9
    out[m.scale > 1] *= 2
    return x[m.keep.any()].sum(0) + out[:, m.keep[0] & True].sum(1)


def sliced(m: Holds, x: Tensor) -> Tensor:
    ends = torch.nn.functional.pad(m.plain.cumsum(0), (1, 0), value=0)
    mask = torch.full((12, 12), -1.0)
    for i in range(1, len(ends)):
        mask[ends[i - 1] : ends[i], ends[i - 1] : ends[i]] = 0
    return mask @ x + x[:, m.plain[0] : m.plain[0] + 1]


def compared(m: Holds, x: Tensor) -> Tensor:
    same = torch.equal(m.plain, torch.tensor([5, 7])) and m.table.allclose(m.table + 1e-9)
    x = x * 2 if same and torch.is_nonzero(m.scale) else x
    x = x + 1 if 4 in m.grid and 9 not in m.grid else x
    return x * len(f"{m.plain[0]:04d}")


FOLDED = [
    *(sizes, places, one_truth, compared, sliced),
    *(parts, plain_list, counted, branch, truth, chosen, by_numpy, by_array, of_loops, ranges),
    *(repeated, spread, written, selected, changed_first, unique),
    *(changed_in_place, asserted),
]


@pytest.mark.parametrize("function", FOLDED)
def test_it_is_static_and_the_same(function: Callable[[Holds, Tensor], Tensor]) -> None:
    model = Holds(function).eval()
    held = {name: one.clone() for name, one in model.state_dict().items()}
    traced = capture(model, (torch.randn(2, 12, 5),)).module()
    for seed in range(2):
        x = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(traced(x)[0], model(x)[0])
    assert all(torch.equal(one, held[name]) for name, one in model.state_dict().items())


def of_the_input(m: Holds, x: Tensor) -> Tensor:
    return x[:, : int((x[0, :, 0] > 0).sum())]


def mixed(m: Holds, x: Tensor) -> Tensor:
    mask = m.keep.clone()
    mask[3:5] = x[0, 3:5, 0] > 0
    return x[:, mask].sum()[None]


def by_chance(m: Holds, x: Tensor) -> Tensor:
    return x[:, : int(torch.randint(1, 5, ()))]


def changed_by_a_view(m: Holds, x: Tensor) -> Tensor:
    mask = m.keep.clone()
    mask[3:].logical_and_(x[0, 3:, 0] > 0)
    return x[:, mask].sum()[None]


class Rewrites(Holds):
    """Changes its buffer and its plain tensor through views."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.keep[2:].logical_not_()
        self.plain.view(2)[:1].add_(1)
        return (x[:, self.keep],)


def test_the_model_is_not_changed() -> None:
    model = Rewrites(parts).eval()
    held = model.keep.clone(), model.plain.clone()
    with pytest.raises(ModelNotSupportedError):
        capture(model, (torch.randn(2, 12, 5),))
    assert torch.equal(model.keep, held[0])
    assert torch.equal(model.plain, held[1])


def by_a_view_of_a_shape(m: Holds, x: Tensor) -> Tensor:
    held = torch.zeros(x.numel())
    held.view_as(x).copy_(x)
    return x * 2 if held.abs().max() > 1 else x


def by_out(m: Holds, x: Tensor) -> Tensor:
    peak, at = torch.zeros(len(x)), torch.zeros(len(x), dtype=torch.long)
    torch.max(x.flatten(1), 1, out=(peak, at))
    return x * 2 if peak[0] > 1 else x


def by_a_list(m: Holds, x: Tensor) -> Tensor:
    held = torch.zeros(x.shape)
    torch._foreach_add_([held], [x])
    return x * 2 if held.sum() > 1 else x


def by_an_option(m: Holds, x: Tensor) -> Tensor:
    held = torch.zeros(x.shape)
    held.reshape_as(x)[:, :] = x
    nn.functional.relu(held, inplace=True)
    return x * 2 if held.sum() > 1 else x


def by_data(m: Holds, x: Tensor) -> Tensor:
    held = torch.zeros(x.shape)
    held.data.add_(x)
    return x * 2 if held.sum() > 1 else x


def by_other_data(m: Holds, x: Tensor) -> Tensor:
    held = torch.zeros(x.shape)
    held.data = x.clone()
    return x * 2 if held.sum() > 1 else x


def by_an_operator(m: Holds, x: Tensor) -> Tensor:
    peak, at = torch.zeros(len(x)), torch.zeros(len(x), dtype=torch.long)
    torch.ops.aten.max.dim_max(x.flatten(1), 1, max=peak, max_values=at)
    return x * 2 if peak[0] > 1 else x


def by_numpy_written(m: Holds, x: Tensor) -> Tensor:
    mask = m.keep.clone()
    mask.numpy()[3] = True
    return x[:, mask]


@pytest.mark.parametrize(
    "function",
    [
        *(by_a_view_of_a_shape, by_out, by_a_list, by_an_option, by_data, by_other_data),
        by_an_operator,
    ],
)
def test_what_is_changed_by_any_name_is_not_known(
    function: Callable[[Holds, Tensor], Tensor],
) -> None:
    with pytest.raises(ModelNotSupportedError):
        capture(Holds(function).eval(), (torch.randn(2, 12, 5),))


def test_what_is_written_through_numpy_is_refused() -> None:
    with pytest.raises(ModelNotSupportedError, match="read-only"):
        capture(Holds(by_numpy_written).eval(), (torch.randn(2, 12, 5),))


@pytest.mark.parametrize("function", [of_the_input, mixed, by_chance, changed_by_a_view])
def test_what_an_input_reaches_is_not_known(function: Callable[[Holds, Tensor], Tensor]) -> None:
    with pytest.raises(DataDependentError):
        capture(Holds(function).eval(), (torch.randn(2, 12, 5),))
