"""Reads and writes by strides, running extremes and writes into views give what PyTorch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor, nn

from tokexport.graph_passes.torch_passes.canonicalize.strided_assign_to_where import (
    StridedAssignToWhere,
)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def filled(x: Tensor, wrap: bool) -> Tensor:
    """Fills the diagonal of a matrix (9, 4)."""
    y = x.reshape(9, 4).clone()
    y.fill_diagonal_(-1.0, wrap=wrap)
    return y


def written(x: Tensor, offset: int, axes: tuple[int, int]) -> Tensor:
    """Writes numbers into a diagonal, which is a view."""
    y = x.clone()
    y.diagonal(offset, *axes).copy_(x.diagonal(offset, *axes).flip(-1) * 2)
    return y


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "a filled diagonal": lambda x: filled(x, wrap=False),
    "a filled diagonal that begins again": lambda x: filled(x, wrap=True),
    "a cube": lambda x: x.flatten()[:27].reshape(3, 3, 3).clone().fill_diagonal_(5.0),
    "a diagonal": lambda x: written(x, 0, (1, 2)),
    "one above": lambda x: written(x, 1, (1, 2)),
    "one below, turned": lambda x: written(x, -2, (2, 0)),
    "windows": lambda x: x.as_strided((3, 4), (2, 1), 1),
    "a range": lambda x: x * torch.range(1, 6),
}


@pytest.mark.filterwarnings("ignore:torch.range is deprecated")
def test_writes_by_strides() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(write(x) for write in WRITES.values())

    rewritten = checked(function, drawn(2, 3, 6), targets=TARGETS)
    left = calls(rewritten)
    assert not [
        call for call in left if "strided" in call or "diagonal_" in call or "range" in call
    ]


def test_strides_of_a_turned_tensor_stay() -> None:
    rewritten = checked(
        lambda x: (x * 2).mT.as_strided((3, 4), (2, 1), 1),
        drawn(2, 3, 6),
        passes=(StridedAssignToWhere(),),
    )
    assert calls(rewritten)["aten.as_strided"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_running_extremes_and_where_they_stand(dtype: torch.dtype) -> None:
    x = (drawn(2, 7, 5) * 2).round().to(dtype)  # of equal ones the last counts

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return (*x.cummax(1), *x.cummin(1), *x.cummax(-1), x[:, :1].cummin(1).values)

    rewritten = checked(function, x, targets=TARGETS)
    assert not [call for call in calls(rewritten) if "cum" in call]


def in_a_view(x: Tensor, y: Tensor) -> None:
    view = x.view(2, 3, 2, 6).transpose(1, 2)
    view.masked_fill_(view > 1, 0.0)


def in_a_diagonal(x: Tensor, y: Tensor) -> None:
    x.diagonal(dim1=1, dim2=2).masked_fill_(y[:, 0] > 0, 7.0)


def in_a_part(x: Tensor, y: Tensor) -> None:
    _, part, _ = x.chunk(3, -1)
    part.transpose(1, 2).masked_fill_(y[:, :2] > 0, -8192.0)


def in_rows(x: Tensor, y: Tensor) -> None:
    x.permute(2, 0, 1)[1:, :, ::2].index_fill_(0, torch.tensor([0, 3]), 4.0)


class Writes(nn.Module):
    """Writes into a view of a product, inside a region of autocast or outside of one."""

    def __init__(self, write: Callable[[Tensor, Tensor], None], region: bool) -> None:
        super().__init__()
        self.write, self.region = write, region

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes (2, 6, 6) twice; the numbers are whole, so that half types are exact."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.region):
            found = x @ y
            self.write(found, y)
        return found.float()


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("write", [in_a_view, in_a_diagonal, in_a_part, in_rows])
def test_writes_into_views(write: Callable[[Tensor, Tensor], None], region: bool) -> None:
    x, y = drawn(2, 6, 6).round(), drawn(2, 6, 6).flip(1).round()
    checked(Writes(write, region), x, y, targets=("ort",))


def test_running_products() -> None:
    x, ids = drawn(2, 7, 5), torch.arange(1, 15).reshape(2, 7) % 5

    def function(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return x.cumprod(1), x.cumprod(-1), ids.cumprod(1), ids.cumprod(0, dtype=torch.float32)

    rewritten = checked(function, x, ids, targets=TARGETS)
    assert "aten.cumprod" not in calls(rewritten)
