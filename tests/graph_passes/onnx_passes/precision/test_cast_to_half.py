"""Graphs typed in half: which steps are, what stays in float32, and what the numbers become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from digits_vit import DigitsViT
from helpers.function_models import Call, all_inputs, model_of
from helpers.graphs import emitted, lowered, rewrite
from helpers.onnx_graphs import answers, assert_tensorrt_builds, operators, parsed

from tokexport.graph_passes.onnx_passes.precision.cast_to_half import CastToHalf
from tokexport.graph_passes.onnx_passes.precision.emulate_half_in_fp32 import EmulateHalfInFp32
from tokexport.graph_passes.pipelines import Arithmetic

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def typed(model: ir.Model, precision: str) -> ir.Model:
    result = lowered(model, "trt", Arithmetic(precision))
    # the operator set of the graph has no convolution of bfloat16, which TensorRT takes
    onnx.checker.check_model(ir.to_proto(result), full_check=precision == "fp16")
    return result


def kinds(model: ir.Model, operator: str) -> list[str]:
    """Returns the type of the first result of every such operator, in order."""
    return [
        node.outputs[0].dtype.name
        for node in model.graph
        if node.op_type == operator and node.outputs[0].dtype is not None
    ]


@pytest.fixture(scope="module")
def merging() -> tuple[ir.Model, np.ndarray]:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8)
    return emitted(rewrite(DigitsViT(merge=(3, 3, 0)).eval(), image)), image.numpy()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_half_and_what_selects_and_counts_is_not(
    precision: str, merging: tuple[ir.Model, np.ndarray]
) -> None:
    model, _ = merging
    half = HALVES[precision].name
    result = typed(model, precision)
    assert {value.dtype for value in (*result.graph.inputs, *result.graph.outputs)} == {
        ir.DataType.FLOAT
    }
    for operator in ("Softmax", "LayerNormalization", "TopK", "Log", "ReduceMax", "ReduceL2"):
        assert {*kinds(result, operator)} <= {"FLOAT"}, operator
    found = kinds(result, "MatMul")
    assert found.count("FLOAT") == 2 * 3  # scores, and one-hot products of rows and of sizes
    assert found.count(half) > found.count("FLOAT")
    # no weight of a product is left in float32
    wide = [v for v in result.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert max(value.const_value.size for value in wide if value.const_value is not None) == 64


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_numbers_are_those_of_float32_rounded(
    precision: str, merging: tuple[ir.Model, np.ndarray]
) -> None:
    model, image = merging
    (name,) = (str(value.name) for value in model.graph.inputs)
    wanted = answers(model, {name: image})[0]
    result = EmulateHalfInFp32()(typed(model, precision)).model
    found = answers(result, {name: image})[0]
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert UNIT[precision] / 50 < error < 20 * UNIT[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sizes_and_ranks_beyond_what_half_can_count(precision: str) -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((1, 3000, 40)).astype(np.float32)
    call = Call("bipartite_match", [scores], [(1, 2990), (1, 10), (1, 10)], {"r": [10]})
    model = model_of([call])
    arrays = {f"in{i}": array for i, array in enumerate(all_inputs([call]))}
    wanted = answers(model, arrays)
    found = answers(EmulateHalfInFp32()(typed(model, precision)).model, arrays)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mask_stays_infinite_and_large_weights_stay_finite() -> None:
    body = """low = Constant <value = float[3] {-3.4e38, 0.0, 1e30}> ()
        y = Add (x, low)"""
    result = CastToHalf(ir.DataType.FLOAT16)(parsed("float[2,3] x", "float[2,3] y", body)).model
    found = answers(EmulateHalfInFp32()(result).model, {"x": np.zeros((2, 3), np.float32)})[0]
    np.testing.assert_array_equal(found, [[-65504, 0, 65504]] * 2)


def test_every_value_is_cast_once_and_an_output_keeps_its_name() -> None:
    body = "a = Neg (x) b = Abs (x) y = Add (a, b) z = Softmax (y)"
    result = CastToHalf(ir.DataType.FLOAT16)(
        parsed("float[2,3] x", "float[2,3] y, float[2,3] z", body)
    ).model
    assert operators(result) == {"Cast": 2, "Neg": 1, "Abs": 1, "Add": 1, "Softmax": 1}
    assert [value.name for value in result.graph.outputs] == ["y", "z"]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    y, _ = answers(result, {"x": x})
    np.testing.assert_allclose(y, x.astype(np.float16) * 0 + np.abs(x) - x, atol=4e-3)


@pytest.mark.parametrize(
    "body",
    [
        "y = Softmax (x)",
        "s = Exp (x) y = Log (s)",
        "e = ReduceMean <keepdims = 1> (x) y = Sub (x, e)",
    ],
    ids=["softmax", "exponential", "mean"],
)
def test_sensitive_steps_read_float32(body: str) -> None:
    model = parsed("float[2,3] x", "float[2,3] y", body)
    result = CastToHalf(ir.DataType.FLOAT16)(model).model
    for node in result.graph:
        if node.op_type not in ("Cast", "Sub"):
            read = {value.dtype for value in node.inputs if value is not None}
            assert read == {ir.DataType.FLOAT}, node


def test_integers_and_doubles_stay() -> None:
    model = parsed("double[2] x, int64[2] i", "double[2] y, int64[2] j", "y = Neg (x) j = Neg (i)")
    assert not CastToHalf(ir.DataType.FLOAT16)(model).modified
    assert operators(model) == {"Neg": 2}


def test_each_result_is_rounded_in_onnx_runtime_too() -> None:
    body = "a = Add (x, x1) y = Sub (a, x1)"
    model = parsed("float[1] x, float[1] x1", "float[1] y", body)
    arrays = {"x": np.array([2**-9], np.float32), "x1": np.array([1.0], np.float32)}
    for precision, half in HALVES.items():
        wide = EmulateHalfInFp32()(CastToHalf(half)(model.clone()).model).model
        # 1 + 2⁻⁹ is 1 in bfloat16
        assert answers(wide, arrays)[0] == (2**-9 if precision == "fp16" else 0)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_builds_it(
    precision: str, merging: tuple[ir.Model, np.ndarray], tmp_path: Path
) -> None:
    assert_tensorrt_builds(typed(merging[0], precision), tmp_path)
