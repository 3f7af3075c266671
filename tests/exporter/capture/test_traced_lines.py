"""Every node of a traced graph names the innermost line of the user's, and no line of others."""

from __future__ import annotations

import linecache

import einops
import pytest
import torch
from models.plain_vits import build, image
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.proxy import TracerBase

import tokexport
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.capture.traced_lines import user_lines_kept
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.graph_passes.stack_traces import origin, raised_at, source_line

aten = torch.ops.aten


def halved(x: Tensor) -> Tensor:
    """A function of the user's, two calls below forward."""
    return x.softmax(-1) / 2


@torch.no_grad()
def decorated(x: Tensor) -> Tensor:
    """Torch's decorator stands between this and forward."""
    return x.tanh()


class Split(nn.Module):
    """Does its work in methods, functions, closures, decorated functions and regions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Names no operator itself."""
        x = self.method(self.linear(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.product(x)
        return decorated(self.closure(x.float()))

    def method(self, x: Tensor) -> Tensor:
        """Calls a function."""
        return halved(x)

    def product(self, x: Tensor) -> Tensor:
        """Runs in a region, which torch traces to a graph of its own."""
        return x @ x.mT

    def closure(self, x: Tensor) -> Tensor:
        """Calls what it defines."""

        def inner() -> Tensor:
            return x.exp()

        return inner()


def traced(model: nn.Module, *inputs: Tensor) -> dict[object, Node]:
    """The last node of each operator of a captured model."""
    nodes = capture(model, inputs).graph.nodes
    return {node.target: node for node in nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    ("operator", "line"),
    [
        (aten.linear.default, "in forward: x = self.method(self.linear(x))"),
        (aten.softmax.int, "in halved: return x.softmax(-1) / 2"),
        (aten.matmul.default, "in product: return x @ x.mT"),
        (aten.exp.default, "in inner: return x.exp()"),
        (aten.tanh.default, "in decorated: return x.tanh()"),
    ],
)
def test_the_innermost_line_is_named(operator: object, line: str) -> None:
    node = traced(Split(), torch.randn(2, 4))[operator]
    assert source_line(node).startswith(f"{__file__}:")
    assert source_line(node).endswith(line)


def test_a_message_names_the_forward_that_called_the_line() -> None:
    nodes = traced(Split(), torch.randn(2, 4))
    said = origin(nodes[aten.softmax.int])
    assert said.startswith(f"At {__file__}:")
    place, _, caller = said.partition(" (called by ")
    assert place.endswith("in halved: return x.softmax(-1) / 2")
    file, line = caller.removesuffix(", in forward)").split(":")
    assert "self.method(" in linecache.getline(file, int(line))
    assert "called by" not in origin(nodes[aten.linear.default])


def test_a_model_of_a_library_is_named_by_its_lines_also_where_blocks_are_reduced() -> None:
    model = tokexport.reduce(build("timm DeiT"), "tome:r=2", image())
    nodes = [node for node in capture(model, (image(),)).graph.nodes if node.op == "call_function"]
    lines = {source_line(node) for node in nodes}
    assert all("/timm/" in line for line in lines), lines
    assert any("in forward: q, k, v = qkv.unbind(0)" in line for line in lines)  # of a block
    assert any("in _pos_embed: " in line for line in lines)  # around them


def test_a_model_of_torchs_modules_alone_has_the_lines_that_there_are() -> None:
    nodes = traced(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(2, 4))
    assert "torch/nn/modules/activation.py" in source_line(nodes[aten.gelu.default])


def test_a_loaded_program_keeps_the_lines_it_was_traced_with() -> None:
    program = torch.export.export(Split().eval(), (torch.randn(2, 4),))
    nodes = traced(program.module(), torch.randn(2, 4))
    assert "in forward: x = self.product(x)" in source_line(nodes[aten.matmul.default])


class Branches(nn.Module):
    """Refused: a function below forward reads a number of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Calls the function."""
        return self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        """Branches on the data."""
        return x if x.sum() > 0 else -x


def test_a_refusal_names_the_function_and_the_forward_around_it() -> None:
    with pytest.raises(ModelNotSupportedError) as caught:
        capture(Branches(), (torch.randn(2),))
    assert "in branch: return x if x.sum() > 0 else -x (called by " in caught.value.where
    assert caught.value.where.endswith(", in forward)")


def test_an_error_in_einops_is_named_by_the_line_that_called_it() -> None:
    def parted(x: Tensor) -> Tensor:
        return einops.rearrange(x, "b (h d) -> b h d", h=3)

    with pytest.raises(Exception, match="Shape mismatch") as caught:
        parted(torch.randn(2, 4))
    assert "in parted: return einops.rearrange" in raised_at(caught.value)


def test_torchs_own_choice_of_frames_comes_back() -> None:
    before = TracerBase.__dict__["_filter_traceback_frames"]
    with user_lines_kept():
        assert TracerBase.__dict__["_filter_traceback_frames"] is not before
    assert TracerBase.__dict__["_filter_traceback_frames"] is before
