"""The GEMM floor: which products it holds, on how many rows, and that it computes them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.onnx_graphs import answers, operators, parsed
from models.cli_models import PLAIN_WIDTH, PlainVit
from torch import Tensor, nn

import tokexport
from tokexport.exporter.bench.config import BenchConfig
from tokexport.exporter.bench.floor import floor_model, weight_products
from tokexport.exporter.bench.subject import GraphFacts, Subject
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.graph_passes.ops import ops

C = PLAIN_WIDTH


class OnlyLogits(nn.Module):
    """A model without its second output, so that its last block has rows that nothing reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes)."""
        found: dict[str, Tensor] = self.model(x)
        return found["logits"]


def facts(model: nn.Module, x: Tensor) -> GraphFacts:
    ops.register()
    return Subject(source_in_memory(model, x), BenchConfig(batch=len(x))).read_graph()


def plain_vit() -> nn.Module:
    torch.manual_seed(0)
    return PlainVit().eval()


def rows(found: GraphFacts) -> Counter[tuple[int, int, int]]:
    """Counts the products by (rows, inputs, outputs)."""
    counted: Counter[tuple[int, int, int]] = Counter()
    for product in found.products:
        outputs = product.result[-1]
        given = product.shapes[1 - product.weight_at]
        counted[(int(np.prod(given[:-1])), given[-1], outputs)] += 1
    return counted


def linears(before: int, after: int) -> Counter[tuple[int, int, int]]:
    """The linears of a block: of the attention before the merge, of the MLP behind it."""
    return Counter([(before, C, 3 * C), (before, C, C), (after, C, 2 * C), (after, 2 * C, C)])


def test_an_unreduced_model_has_its_linears_on_all_rows() -> None:
    found = facts(plain_vit(), torch.zeros(2, 3, 24, 24))
    wanted = linears(2 * 37, 2 * 37)
    assert rows(found) == wanted + wanted + wanted + Counter([(2, C, 5)])
    linear = sum(product.macs for product in found.products)
    assert linear == 2 * (3 * 37 * 8 * C * C + C * 5)
    patches, attention = 2 * 36 * 3 * 16 * C, 2 * 3 * 2 * 37 * 37 * C
    assert found.macs == linear + patches + attention
    assert (found.heads, found.hidden) == (2, C)


def test_a_reduced_model_has_them_on_the_rows_that_are_left_and_read() -> None:
    x = torch.zeros(1, 3, 24, 24)
    found = facts(OnlyLogits(tokexport.reduce(plain_vit(), "tome:r=6", x)), x)
    last = Counter([(25, C, 2 * C), (1, C, C), (1, C, C), (1, C, 2 * C), (1, 2 * C, C)])
    assert rows(found) == linears(37, 31) + linears(31, 25) + last + Counter([(1, C, 5)])


def test_a_model_without_products_has_no_floor() -> None:
    found = facts(nn.Sequential(nn.ReLU()), torch.zeros(1, 4))
    assert found.products == ()
    assert found.why_not == "The graph has no product with a weight."


def constants(model: ir.Model) -> ir.Model:
    """Makes the constants of a model in text its initializers."""
    for node in [node for node in model.graph if node.op_type == "Constant"]:
        value = node.outputs[0]
        weight = ir.val(f"{value.name}_weight", const_value=node.attributes["value"].as_tensor())
        model.graph.register_initializer(weight)
        ir.convenience.replace_all_uses_with(value, weight)
        model.graph.remove(node)
    return model


def test_it_computes_each_product_apart() -> None:
    """One element of each is what numpy says; the bias, the chain and the dead product are gone."""
    model = constants(
        parsed(
            "float[1,3,2] x",
            "float[1,3] y, float[1,3,3] z",
            "w = Constant <value = float[2,3] {1,2,3,4,5,6}> ()"
            "v = Constant <value = float[2] {2,-1}> ()"
            "b = Constant <value = float[3] {9,9,9}> ()"
            "m = MatMul (x, w) s = Transpose <perm = [0,2,1]> (m) z = MatMul (m, s)"
            "h = MatMul (x, v) e = Constant <value = float[3,3] {1,0,0,0,1,0,0,0,1}> ()"
            "g = Gemm <transB = 1, alpha = 2.0> (h, e, b) y = Relu (g) dead = MatMul (x, w)",
        )
    )
    products = weight_products(model)
    assert [product.operator for product in products] == ["MatMul", "MatMul", "Gemm"]
    assert [product.macs for product in products] == [18, 6, 9]
    floor, inputs = floor_model(products, seed=3)
    assert operators(floor) == Counter(MatMul=2, Gemm=1, GatherND=3, Concat=1)
    assert {array.shape for array in inputs.values()} == {(1, 3, 2), (1, 3)}
    x, h = inputs.values()
    w, v = np.array([[1, 2, 3], [4, 5, 6]]), np.array([2, -1])
    wanted = [(x @ w)[0, 0, 0], (x @ v)[0, 0], 2 * h[0, 0]]
    np.testing.assert_allclose(answers(floor, inputs)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("text", ["y = MatMul (x, x)", "y = Relu (x)"])
def test_what_multiplies_no_weight_is_left_out(text: str) -> None:
    assert weight_products(parsed("float[2,2] x", "float[2,2] y", text)) == ()
