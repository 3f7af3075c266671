"""Calls that the tracer does not follow, spelled out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.errors import DataDependentError
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module

FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.cov,
    torch.corrcoef,
    lambda x: x.T.corrcoef() if x.dim() == 2 else x.corrcoef(),
    lambda x: x.cov(correction=0),
    lambda x: torch.cov(x, correction=7),
)


class Calls(nn.Module):
    """Calls functions."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns what each of them gives."""
        return [function(x) for function in self.functions]


@pytest.mark.filterwarnings("ignore:cov\\(\\):UserWarning")
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 1)], ids=str)
def test_covariances(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    model, example = Calls(*FUNCTIONS), torch.randn(shape, generator=draw)
    graph = as_graph_module(capture(FlatModel(model, call_spec(model, (example,), {})), (example,)))
    x = torch.randn(shape, generator=draw)
    torch.testing.assert_close([*graph(x)], model(x), equal_nan=True)


def test_weighted_observations_are_refused() -> None:
    model, x = Calls(lambda x: torch.cov(x, aweights=x[0].abs())), torch.randn(2, 4)
    with pytest.raises(DataDependentError):
        capture(FlatModel(model, call_spec(model, (x,), {})), (x,))
