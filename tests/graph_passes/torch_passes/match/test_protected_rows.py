"""A token that a match keeps for certain is read without the match."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import TARGETS, calls, checked
from models.tome_patched import patched
from torch import Tensor, nn

from tokexport.graph_passes.ops import ops

ops.register()
NEVER = -torch.inf
Bar = Callable[[Tensor], None]


class Merging(nn.Module):
    """Merges r of 6 tokens into 5 others, and reads so many of the first."""

    def __init__(self, bar: Bar, r: int = 2, order: str = "index", read: int = 1) -> None:
        super().__init__()
        self.bar, self.r, self.order, self.read = bar, r, order, read

    def forward(self, x: Tensor) -> Tensor:
        unit = x / x.norm(dim=-1, keepdim=True)
        scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        self.bar(scores)
        match = torch.ops.tokexport.bipartite_match(scores, self.r, self.order)
        y = F.gelu(x)
        merged = torch.ops.tokexport.merge_tokens(y[:, ::2], y[:, 1::2], *match, "sum")
        return merged[:, : self.read].tanh()


def first(scores: Tensor) -> None:
    scores[..., 0, :] = NEVER


def first_two(scores: Tensor) -> None:
    scores[:, :2] = NEVER


def first_and_a_column(scores: Tensor) -> None:
    scores[..., 0, :] = NEVER
    scores[..., :, 0] = NEVER


def first_and_another(scores: Tensor) -> None:
    scores[..., 0, :] = NEVER
    scores[..., 3, :] = NEVER


def nearly_never(scores: Tensor) -> None:
    scores[..., 0, :] = -1e4


def every_column(scores: Tensor) -> None:
    scores[..., 0, :] = NEVER
    scores[..., :, :] = NEVER


def a_part_of_the_row(scores: Tensor) -> None:
    scores[:, 0, 1:] = NEVER


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 11, 8, generator=torch.Generator().manual_seed(3))


CERTAIN = {
    "the class token": Merging(first),
    "of as many as can merge": Merging(first, r=5),
    "two tokens": Merging(first_two, r=4, read=2),
    "one of two": Merging(first_two, r=3),
    "with a column that nobody merges into": Merging(first_and_a_column),
}
OPEN = {
    "more merge than are open": Merging(first_two, r=5),
    "the kept are ordered by score": Merging(first, order="score"),
    "it scores low": Merging(nearly_never),
    "nothing is held back": Merging(lambda scores: None),
    "one of two that are read": Merging(first, read=2),
    "others are held back as well": Merging(first_and_another),
    "no column is open": Merging(every_column),
    "a part of its row is open": Merging(a_part_of_the_row),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_held_back_needs_no_match(name: str) -> None:
    assert calls(checked(CERTAIN[name], tokens()))["tokexport.bipartite_match"] == 0


@pytest.mark.parametrize("name", OPEN)
def test_what_may_merge_stays_with_its_match(name: str) -> None:
    assert calls(checked(OPEN[name], tokens()))["tokexport.bipartite_match"] == 1


def test_its_row_alone_is_computed() -> None:
    found = checked(Merging(first), tokens(), targets=TARGETS)
    nodes = [node for node in found.program.graph.nodes if node.op == "call_function"]
    shapes = {node.target: tuple(node.meta["val"].shape) for node in nodes}
    assert shapes[torch.ops.aten.gelu.default] == (2, 1, 8)


def test_the_last_block_of_the_class_patched_tome_matches_nothing() -> None:
    model = patched("vit_tiny_patch16_224", 4, img_size=48, patch_size=8, depth=3, num_heads=3)
    found = calls(checked(model, torch.randn(1, 3, 48, 48), tolerance=1e-5))
    assert found["tokexport.bipartite_match"] == 2
