"""Published ways to keep as many tokens as the image says: each is padded, and eager's answer."""

from __future__ import annotations

import pytest
import torch
from models import token_dropping
from torch import Tensor

from tokexport.exporter.capture.trace import capture_padded
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module

#: Per model, on how many of six inputs the traced example's branches are taken.
MODELS = {
    "inverse_sampling": 6,
    "padded_sampling": 6,
    "branching_sampling": 6,
    "halting": 6,
    "delete_gate": 6,
    "early_exit": 6,
    "sparse_clusters": 6,
    "learned_thresholds": 6,
    "threshold_pruning": 6,
}


def inputs(shape: torch.Size) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]


@pytest.mark.filterwarnings("ignore:torch.range is deprecated")
@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", MODELS)
def test_published_code_is_padded_exactly(name: str) -> None:
    model, x = getattr(token_dropping, name)()
    flat = FlatModel(model, call_spec(model, (x,), {}))
    program, padding = capture_padded(flat, (x,), (64,))
    assert padding.checks
    graph = as_graph_module(program)
    answered = 0
    for each in inputs(x.shape):
        found, holds = graph(each)
        broken = {one.kind for one, true in zip(padding.checks, holds, strict=True) if not true}
        if not broken <= {"none"}:
            assert broken == {"branch"}
            continue
        answered += 1
        with torch.no_grad():
            wanted = getattr(token_dropping, name)()[0](each)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert answered == MODELS[name]
