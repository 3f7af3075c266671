"""Products of 8-bit integers with what follows them: one call each, and the same numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers.graphs import emitted, rewrite
from models.tome_patched import patched
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from tokexport.graph_passes.onnx_passes.fuse.pack_integer_linears import (
    PackIntegerLinears,
    packed_bytes,
)
from tokexport.graph_passes.onnx_passes.precision.quantise_dynamically import QuantiseDynamically
from tokexport.graph_passes.pipelines import Arithmetic, lower, lowering
from tokexport.runtimes.ort.runner import OrtRunner

INT8 = Arithmetic("int8")


class Block(nn.Module):
    """A residual MLP of tokens (2, 7, 30) with LayerScale, and a head that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(30)
        self.up, self.down, self.head = nn.Linear(30, 70), nn.Linear(70, 30), nn.Linear(30, 5)
        self.scale = nn.Parameter(torch.rand(30) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x + self.scale * self.down(self.norm(x).repeat(1, 1, 3)[..., :70]))


def lowered(model: nn.Module, x: Tensor) -> tuple[ir.Model, ir.Model]:
    """Returns a model in integers, lowered for ONNX Runtime and without the packing."""
    start = emitted(rewrite(model, x))
    apart = start.clone()
    for one in lowering("ort", INT8):
        if not isinstance(one, PackIntegerLinears):
            apart = one(apart).model
    return lower(start, lowering("ort", INT8)).model, apart


def calls(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if "integer" in node.op_type.lower())


def answer(model: ir.Model, x: Tensor, native: bool) -> np.ndarray:
    with OrtRunner.from_bytes(ir.to_proto(model).SerializeToString(), native=native) as runner:
        (result,) = runner.run({runner.inputs[0].name: x.numpy()}).values()
    return result


@pytest.mark.parametrize("native", [True, False])
def test_what_follows_a_product_is_computed_with_it(native: bool) -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 7, 30)
    packed, apart = lowered(model, x)
    assert calls(packed) == {"integer_linear_gelu": 1, "integer_linear_add": 2}
    assert calls(apart) == {"MatMulInteger": 3}
    wanted = answer(apart, x, native)
    # a scale that went into the factors rounds elsewhere
    np.testing.assert_allclose(answer(packed, x, native), wanted, rtol=0, atol=2e-6)


def test_a_vit_is_one_call_a_linear() -> None:
    small = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    packed, apart = lowered(patched("vit_tiny_patch16_224", 4, **small).eval(), x)
    found = calls(packed)
    assert found["integer_linear_gelu"] == 3
    assert found["integer_linear_add"] == 6
    assert found["integer_linear"] >= 3
    assert found["MatMulInteger"] == 0
    assert not [node for node in packed.graph if node.op_type == "DynamicQuantizeLinear"]
    np.testing.assert_allclose(answer(packed, x, True), answer(apart, x, True), atol=1e-3)


def test_without_kernels_onnx_runtime_joins_the_body(tmp_path: Path) -> None:
    torch.manual_seed(0)
    packed, _ = lowered(Block().eval(), torch.randn(2, 7, 30))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        ir.to_proto(packed).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == 3
    assert not {"MatMulInteger", "DynamicQuantizeLinear", "Transpose"} & {*kinds}


def test_a_product_that_is_read_as_integers_stays() -> None:
    torch.manual_seed(0)
    given = emitted(rewrite(Block().eval(), torch.randn(2, 7, 30)))
    QuantiseDynamically()(given)
    product = next(node for node in given.graph if node.op_type == "MatMulInteger")
    product.outputs[0].name = "integers"
    given.graph.outputs.append(product.outputs[0])
    PackIntegerLinears()(given)
    RemoveUnusedNodesPass()(given)
    assert calls(given) == {"MatMulInteger": 1, "integer_linear_add": 2}


def test_panels_hold_four_bytes_of_a_column_together() -> None:
    w = np.random.default_rng(0).integers(-127, 128, (10, 70)).astype(np.int8)
    panels = packed_bytes(w)
    assert panels.shape == (3, 3, 32, 4)
    unpacked = panels.transpose(1, 3, 0, 2).reshape(12, 96)
    np.testing.assert_array_equal(unpacked[:10, :70], w)
    assert not unpacked[10:].any()
    assert not unpacked[:, 70:].any()
