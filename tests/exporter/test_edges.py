"""An artifact is held to inputs that neither the trace nor the samples show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import tokexport
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.edge_inputs import between, edge_inputs
from tokexport.exporter.parity import ParityError
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass
from tokexport.runtimes.manifest import TensorSpec


class Masked(nn.Module):
    """Fills what a mask leaves out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x).masked_fill(mask == 0, 0.25)


class Divides(nn.Module):
    """Divides by a norm, which is 0 for an image of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)


class Bytes(nn.Module):
    """Takes pixels as they are stored."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float().mean(dim=(2, 3)) / 255


class ForgetsTheMask(TorchPass):
    """A wrong pass: nothing is filled."""

    name = "forgets the mask"

    def call(self, edit: Editor) -> int:
        """Takes out what fills."""
        found = [node for node in edit.graph.nodes if node.target is aten.masked_fill.Scalar]
        for node in found:
            assert isinstance(node.args[0], Node)
            edit.replace(node, node.args[0])
        return len(found)


def compiled(model: nn.Module, inputs: dict[str, Tensor], folder: Path) -> CompileResult:
    return tokexport.compile(model.eval(), inputs, output=folder / "bundle", timed=False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_mask_that_no_sample_uses_is_tried(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"x": torch.randn(2, 6), "mask": torch.ones(2, 5, dtype=dtype)}
    edges = compiled(Masked(), inputs, tmp_path).report.edges
    assert edges is not None
    assert {"every other of a mask", "masks turned over", "empty masks"} <= {*edges.held}
    (tmp_path / "wrong").mkdir()
    monkeypatch.setattr(pipelines, "REWRITE", (*pipelines.REWRITE, ForgetsTheMask()))
    with pytest.raises(ParityError, match=r"Parity failed at 'rewritten'.*mask"):
        compiled(Masked(), inputs, tmp_path / "wrong")


def test_where_eager_itself_is_not_finite_is_said(tmp_path: Path) -> None:
    edges = compiled(Divides(), {"x": torch.randn(2, 6)}, tmp_path).report.edges
    assert edges is not None
    assert "NaN" in edges.not_finite["zeros"]
    assert "large values" in edges.held
    assert any(line.startswith("not to zeros: ") for line in edges.lines())


def test_pixels_in_bytes_are_drawn_anew(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    edges = compiled(Bytes(), {"image": image}, tmp_path).report.edges
    assert edges is not None
    assert edges.held == ("darkest and brightest bytes", "another seed")


def test_both_ends_of_a_range_are_among_its_values() -> None:
    for shape in ((), (1,), (2,), (3, 4)):
        values = between(np.zeros(shape, np.int64), -5, 2**40)
        assert values.shape == shape
        assert values.max() == 2**40
        assert values.size < 2 or values.min() == -5


def test_a_kind_that_changes_nothing_is_not_said_to_be_tried() -> None:
    specs = (TensorSpec("x", (2, 5), "float32"),)
    found = edge_inputs(specs, {"x": np.ones((2, 5), np.float32)}, {}, 1)
    assert "duplicates" not in found
    assert "zeros" in found
