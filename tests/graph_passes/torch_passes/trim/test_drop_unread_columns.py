"""Linear layers are narrowed to the columns that something reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite
from helpers.onnx_graphs import assert_tensorrt_builds
from torch import Tensor, nn
from torch.nn.functional import linear

from tokexport.graph_passes.torch_passes.trim.drop_unread_columns import DropUnreadColumns

HEADS, DIM = 3, 4
WIDTH = HEADS * DIM
PASSES = (DropUnreadColumns(),)
Outputs = Tensor | tuple[Tensor, ...]


class Projected(nn.Module):
    """A projection to three times the width, and what reads it."""

    def __init__(self, read: Callable[[Tensor], Outputs], bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.read = read

    def forward(self, x: Tensor) -> Outputs:
        return self.read(self.qkv(x))


def heads(y: Tensor) -> Tensor:
    """(B, N, 3·C) → (3, B, H, N, D)."""
    return y.reshape(*y.shape[:2], 3, HEADS, DIM).permute(2, 0, 3, 1, 4)


def in_rows(y: Tensor) -> Tensor:
    """(B, N, 3·C) → (B, N, 3, C)."""
    return y.view(*y.shape[:2], 3, WIDTH)


def drawn() -> Tensor:
    """Draws tokens (2, 5, C)."""
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


#: What is read, and how many columns that takes.
READS: dict[str, tuple[Callable[[Tensor], Outputs], int]] = {
    "queries and keys": (lambda y: heads(y).unbind(0)[:2], 2 * WIDTH),
    "values": (lambda y: heads(y).unbind(0)[2] * 2, WIDTH),
    "queries and values": (lambda y: heads(y).unbind(0)[::2], 2 * WIDTH),
    "keys and values, sliced": (lambda y: heads(y)[1:], 2 * WIDTH),
    "the last, from behind": (lambda y: heads(y)[-1], WIDTH),
    "without a permutation": (lambda y: in_rows(y)[:, :, 0], WIDTH),
    "a chunk": (lambda y: y.chunk(3, dim=-1)[1] * 2, WIDTH),
    "parts of several sizes": (
        lambda y: y.split([WIDTH, 2, 2 * WIDTH - 2], -1)[::2],
        3 * WIDTH - 2,
    ),
    "columns": (lambda y: y[..., :WIDTH].relu() + y[..., WIDTH : 2 * WIDTH], 2 * WIDTH),
    "columns twice": (lambda y: (y[..., 2:6].relu(), y[..., 4:9] + 1), 7),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", READS)
def test_a_layer_is_as_wide_as_what_is_read(name: str, bias: bool) -> None:
    read, width = READS[name]
    targets = TARGETS if bias else ()
    rewritten = checked(Projected(read, bias), drawn(), passes=PASSES, targets=targets)
    assert rewritten.changes == {"drop unread columns": 1}
    (layer,) = (
        node
        for node in rewritten.program.graph.nodes
        if node.target is torch.ops.aten.linear.default
    )
    assert layer.meta["val"].shape == (2, 5, width)
    # A second run finds nothing left.
    assert rewrite(Projected(read, bias), drawn(), passes=PASSES * 2).changes == {
        "drop unread columns": 1
    }


OTHERS: dict[str, Callable[[Tensor], Outputs]] = {
    "all are read": lambda y: heads(y).unbind(0),
    "all are read, by two": lambda y: (y[..., : 2 * WIDTH].relu(), y[..., WIDTH:] + 1),
    "something reads the whole": lambda y: (heads(y)[0], y.sum(-1)),
    "another axis": lambda y: y[:, 1:],
    "every second": lambda y: y[..., ::2] + 1,
    "no part of columns": lambda y: y.reshape(2, 5 * 3, WIDTH)[:, :4],
    "an axis within the parts": lambda y: in_rows(y)[..., :2],
    "a part by index": lambda y: heads(y)[torch.tensor([0, 1])],
}


def test_a_weight_without_columns_stays() -> None:
    w = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    rewritten = checked(lambda x, w: linear(x, w)[:, :2], drawn(), w, passes=PASSES)
    assert rewritten.changes == {"drop unread columns": 0}


@pytest.mark.parametrize("name", OTHERS)
def test_another_stays(name: str) -> None:
    rewritten = checked(Projected(OTHERS[name]), drawn(), passes=PASSES)
    assert rewritten.changes == {"drop unread columns": 0}


def test_a_weight_that_is_computed_is_cut_too() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return linear(x, w * 2).chunk(2, -1)[0] + 1

    w = torch.randn(2 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    rewritten = checked(function, drawn(), w, passes=PASSES, targets=TARGETS)
    assert rewritten.changes == {"drop unread columns": 1}
    assert calls(rewritten)["aten.linear"] == 1


def test_probabilities_of_a_shared_projection_build_for_tensorrt(tmp_path: Path) -> None:
    def read(y: Tensor) -> tuple[Tensor, Tensor]:
        q, k, _ = heads(y).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return weights.mean(1), weights.sum((1, 2))

    rewritten = checked(Projected(read), drawn(), targets=(*TARGETS, "trt"))
    assert_tensorrt_builds(lowered(emitted(rewritten), "trt"), tmp_path)
