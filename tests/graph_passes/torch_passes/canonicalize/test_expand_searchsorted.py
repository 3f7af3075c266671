"""Searches are counts, exact at the edges and beyond them."""

from __future__ import annotations

import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.expand_searchsorted import ExpandSearchsorted

PASSES = (ExpandSearchsorted(),)
EDGES = torch.tensor([[0.0, 0.5, 0.5, 2.0], [-1.0, 0.0, 1.0, 1.5]])
VALUES = torch.tensor([[-3.0, 0.0, 0.5, 0.6, 2.0, 9.0], [1.0, 1.0, 1.2, 7.0, -1.0, -2.0]])


def test_every_search_is_a_count() -> None:
    def function(edges: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.searchsorted(edges, values),
            torch.searchsorted(edges, values, right=True),
            torch.searchsorted(edges, values, side="right"),
            torch.searchsorted(edges[0], values),
            torch.searchsorted(edges, values, out_int32=True),
            torch.bucketize(values, edges[1]),
            torch.bucketize(values, edges[1], right=True),
        )

    rewritten = checked(function, EDGES, VALUES, passes=PASSES, targets=TARGETS)
    assert not {"aten.searchsorted", "aten.bucketize"} & set(calls(rewritten))
    assert calls(rewritten)["aten.sum"] == 7
