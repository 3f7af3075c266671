"""Attention among as many tokens as there are heads is right in OpenVINO too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.graphs import TARGETS, checked
from helpers.onnx_graphs import answers, operators, parsed
from torch import Tensor

from tokexport.graph_passes.onnx_passes.targets.guard_square_transposes import GuardSquareTransposes

BODY = """t = Transpose <perm = [0, 1, 3, 2]> (k) l = MatMul (q, t) p = Softmax (l)
    r = MatMul (p, v) y = Transpose <perm = [{order}]> (r)"""


def attention(heads: int, tokens: int, order: str = "0, 2, 1, 3") -> ir.Model:
    """Returns attention of q, k and v, each (2, H, N, 8), and a transpose behind it."""
    return parsed(
        ", ".join(f"float[2,{heads},{tokens},8] {name}" for name in "qkv"),
        "float[a,b,c,d] y",
        BODY.format(order=order),
    )


def drawn(heads: int, tokens: int) -> dict[str, np.ndarray]:
    """Draws q, k and v."""
    generator = np.random.default_rng(0)
    size = (2, heads, tokens, 8)
    return {name: generator.standard_normal(size).astype(np.float32) for name in "qkv"}


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_a_square_transpose_is_parted_and_answers_the_same(size: int) -> None:
    model, arrays = attention(size, size), drawn(size, size)
    wanted = answers(model, arrays)
    assert GuardSquareTransposes()(model).modified
    assert operators(model) == {
        "Transpose": 2,
        "MatMul": 2,
        "Softmax": 1,
        "Unsqueeze": 1,
        "Squeeze": 1,
    }
    np.testing.assert_allclose(answers(model, arrays)[0], wanted[0], rtol=0, atol=1e-6)
    assert not GuardSquareTransposes()(model).modified


@pytest.mark.parametrize(
    "model",
    [attention(3, 4), attention(3, 3, "0, 1, 3, 2"), attention(3, 3, "0, 2, 3, 1")],
    ids=["oblong", "turned keys", "another order"],
)
def test_another_transpose_stays(model: ir.Model) -> None:
    before = operators(model)
    assert not GuardSquareTransposes()(model).modified
    assert operators(model) == before


def test_a_transpose_of_something_else_stays() -> None:
    model = parsed(
        "float[2,3,3,8] x", "float[2,3,3,8] y", "y = Transpose <perm = [0, 2, 1, 3]> (x)"
    )
    assert not GuardSquareTransposes()(model).modified


@pytest.mark.parametrize(("heads", "tokens"), [(2, 2), (3, 3), (4, 4), (6, 6), (4, 5)])
def test_openvino_agrees(heads: int, tokens: int) -> None:
    def function(qkv: Tensor) -> Tensor:
        B, N, _ = qkv.shape
        q, k, v = qkv.reshape(B, N, 3, heads, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = (q * 0.3 @ k.transpose(-2, -1)).softmax(-1) @ v
        return attended.transpose(1, 2).reshape(B, N, heads * 8)

    x = torch.randn(2, tokens, 3 * heads * 8, generator=torch.Generator().manual_seed(0))
    recognised = checked(function, x, targets=TARGETS).recognised
    assert recognised == {"sized_attention": 1}
