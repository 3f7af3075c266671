"""Bags of embeddings of one length or of several, with padding, factors and none at all."""

from __future__ import annotations

from typing import Any

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor
from torch.nn.functional import embedding_bag

DRAW = torch.Generator().manual_seed(0)
TABLE = torch.randn(10, 6, generator=DRAW)
MODES = ("sum", "mean", "max")
IDS = torch.randint(0, 10, (3, 4), generator=DRAW)
FACTORS = torch.randn(3, 4, generator=DRAW)


def test_bags_of_one_length_have_an_axis() -> None:
    def function(ids: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        padded: dict[str, Any] = {"padding_idx": int(IDS[0, 1])}
        return (
            *(embedding_bag(ids, TABLE, mode=mode) for mode in MODES),
            *(embedding_bag(ids.int(), TABLE, mode=mode, **padded) for mode in MODES),
            embedding_bag(ids, TABLE, mode="mean", padding_idx=-1),
            embedding_bag(ids, TABLE, mode="sum", per_sample_weights=factors),
        )

    rewritten = checked(function, IDS, FACTORS, targets=TARGETS)
    assert "aten.embedding_bag" not in calls(rewritten)


def test_bags_of_several_lengths_and_of_none() -> None:
    def function(ids: Tensor, offsets: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        fixed = torch.tensor([0, 4, 4, 9])
        return (
            *(embedding_bag(ids, TABLE, offsets, mode=mode) for mode in MODES),
            *(embedding_bag(ids, TABLE, offsets, mode=mode, padding_idx=2) for mode in MODES),
            embedding_bag(ids, TABLE, fixed, mode="mean", include_last_offset=True),
            embedding_bag(ids, TABLE, fixed[:2], mode="max"),
            embedding_bag(ids, TABLE, offsets, mode="sum", per_sample_weights=factors),
        )

    ids, offsets = IDS.flatten()[:9], torch.tensor([0, 3, 3, 7])
    checked(function, ids, offsets, FACTORS.flatten()[:9], targets=TARGETS)


def test_a_padding_that_fills_a_bag() -> None:
    ids = torch.tensor([[2, 2], [2, 5]])

    def function(ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(embedding_bag(ids, TABLE, mode=mode, padding_idx=2) for mode in MODES)

    checked(function, ids, targets=("ort",))
