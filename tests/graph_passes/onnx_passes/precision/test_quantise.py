"""The blocks' linears in 8-bit integers: which ones, in which form, how exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from helpers.onnx_graphs import answers, operators, parsed
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel
from tokexport.graph_passes.onnx_passes.graph.linears import block_linears
from tokexport.graph_passes.onnx_passes.precision.quantise_dynamically import QuantiseDynamically
from tokexport.graph_passes.onnx_passes.precision.quantise_statically import QuantiseStatically
from tokexport.runtimes.processor import sums_saturate

K, N = 32, 48
#: Of a weight: with 8, sums of products saturate where this processor has no VNNI.
BITS = 7 if sums_saturate() else 8
#: Of the largest number: a bit less makes the steps of a weight twice as wide.
MOST = 0.03 * 2 ** (8 - BITS)


def model(body: str, output: str = "float[2,7,5] y", **weights: tuple[int, ...]) -> ir.Model:
    """Returns a model of x (2, 7, 32) with random weights of these shapes."""
    generator = np.random.default_rng(0)
    found = parsed(
        ", ".join(["float[2,7,32] x", *(f"float{list(s)} {n}" for n, s in weights.items())]),
        output,
        body,
    )
    for value in list(found.graph.inputs)[1:]:
        found.graph.inputs.remove(value)
        array = generator.standard_normal(weights[str(value.name)]).astype(np.float32) / K**0.5
        value.const_value = ir.tensor(array, name=value.name)
        found.graph.register_initializer(value)
    return found


def drawn() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 7, K)).astype(np.float32)


MLP = model(
    """a = MatMul (x, w1) b = Add (a, b1) c = Gelu (b) d = MatMul (c, w2) e = Add (d, b2)
       y = MatMul (e, head)""",
    w1=(K, N),
    b1=(N,),
    w2=(N, K),
    b2=(K,),
    head=(K, 5),
)
SHARED = model(
    """q = MatMul (x, wq) k = MatMul (x, wk) t = Transpose <perm = [0, 2, 1]> (k)
       s = MatMul (q, t) p = Softmax (s) v = MatMul (x, wv) a = MatMul (p, v)
       y = MatMul (a, head)""",
    wq=(K, K),
    wk=(K, K),
    wv=(K, K),
    head=(K, 5),
)
GEMM = model(
    """two = Constant <value_ints = [14, 32]> () r = Reshape (x, two)
       a = Gemm <transB = 1> (r, w, b) y = MatMul (a, head)""",
    "float[14,5] y",
    w=(N, K),
    b=(N,),
    head=(N, 5),
)
SELECTING = model(
    """s = MatMul (x, w1) z = Relu (s) 
       axes = Constant <value_ints = [2]> () best = MatMul (z, w2) flat = Squeeze (best, axes)
       three = Constant <value_ints = [3]> () values, index = TopK (flat, three)
       wide = Unsqueeze (index, axes) kept = GatherND <batch_dims = 1> (x, wide)
       a = MatMul (kept, w3) y = MatMul (a, head)""",
    "float[2,3,5] y",
    w1=(K, K),
    w2=(K, 1),
    w3=(K, K),
    head=(K, 5),
)


def ranges_of(given: ir.Model, x: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns the range of what each of the blocks' linears reads."""
    shown = given.clone()
    read = dict.fromkeys(linear.rows for linear in block_linears(shown))
    shown.graph.outputs.extend(value for value in read if not value.is_graph_input())
    names = [value.name for value in shown.graph.outputs]
    found = dict(zip(names, answers(shown, {"x": x}), strict=True)) | {"x": x}
    return {
        str(value.name): (float(found[value.name].min()), float(found[value.name].max()))
        for value in read
    }


def quantised(given: ir.Model, form: str) -> ir.Model:
    ranges = ranges_of(given, drawn())
    step = QuantiseDynamically(BITS) if form == "dynamic" else QuantiseStatically(ranges, BITS)
    result = step(given.clone())
    assert result.modified
    RemoveUnusedNodesPass()(result.model)
    return result.model


@pytest.mark.parametrize("form", ["dynamic", "static"])
@pytest.mark.parametrize(
    "given", [MLP, SHARED, GEMM, SELECTING], ids=["mlp", "shared", "gemm", "selecting"]
)
def test_the_numbers_are_those_of_the_floats(given: ir.Model, form: str) -> None:
    wanted = answers(given, {"x": drawn()})[0]
    found = answers(quantised(given, form), {"x": drawn()})[0]
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-5 < error < MOST


def test_linears_become_integers_and_the_head_stays() -> None:
    found = operators(quantised(MLP, "dynamic"))
    assert found["MatMulInteger"] == found["DynamicQuantizeLinear"] == 2
    assert found["MatMul"] == 1
    static = operators(quantised(MLP, "static"))
    # the constant vectors behind the products went into them
    assert static == {"QuantizeLinear": 2, "MatMulIntegerToFloat": 2, "Gelu": 1, "MatMul": 1}


@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_what_several_linears_read_is_quantised_once(form: str) -> None:
    found = operators(quantised(SHARED, form))
    assert found["DynamicQuantizeLinear"] + found["QuantizeLinear"] == 1
    assert found["MatMulInteger"] + found["MatMulIntegerToFloat"] == 3
    assert found["MatMul"] == 3  # scores, mixing, head


def test_what_only_selects_stays() -> None:
    found = operators(quantised(SELECTING, "dynamic"))
    assert found["MatMulInteger"] == 1
    assert found["MatMul"] == 3  # two that rank, and the head


def test_a_gemm_keeps_its_bias() -> None:
    assert operators(quantised(GEMM, "dynamic"))["Add"] == 1
    assert operators(quantised(GEMM, "static"))["Gemm"] == 0


@pytest.mark.parametrize("form", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("shape", "behind"),
    [((), 0), ((1,), 0), ((1, 1), 0), ((N,), 0), ((1, N), 0), ((14, 1), 1), ((14, N), 1)],
    ids=str,
)
def test_what_a_gemm_adds_may_have_any_shape(
    shape: tuple[int, ...], behind: int, form: str
) -> None:
    given = model(
        """two = Constant <value_ints = [14, 32]> () r = Reshape (x, two)
           a = Gemm <transB = 1> (r, w, b) y = MatMul (a, head)""",
        "float[14,5] y",
        w=(N, K),
        b=shape,
        head=(N, 5),
    )
    (wanted,) = answers(given, {"x": drawn()})
    changed = quantised(given, form)
    (found,) = answers(changed, {"x": drawn()})
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-5 < error < MOST
    assert operators(changed)["Add"] == (behind if form == "static" else 1)


def test_a_computed_bias_of_a_gemm_is_added_behind() -> None:
    given = model(
        """two = Constant <value_ints = [14, 32]> () r = Reshape (x, two)
           c = Relu (b) a = Gemm <transB = 1> (r, w, c) y = MatMul (a, head)""",
        "float[14,5] y",
        w=(N, K),
        b=(1, N),
        head=(N, 5),
    )
    changed = quantised(given, "static")
    assert operators(changed)["Add"] == 1
    (wanted,), (found,) = (answers(each, {"x": drawn()}) for each in (given, changed))
    assert 1e-5 < np.abs(found - wanted).max() / np.abs(wanted).max() < MOST


@pytest.mark.parametrize(
    "body",
    [
        "a = Gemm <transB = 1, alpha = 0.5> (r, w, b) y = MatMul (a, head)",
        "t = Transpose (r) a = Gemm <transA = 1, transB = 1> (t, w, b) y = MatMul (a, head)",
        "c = Relu (w) a = Gemm <transB = 1> (r, c, b) y = MatMul (a, head)",
    ],
    ids=["scaled", "turned rows", "computed weight"],
)
def test_another_product_stays(body: str) -> None:
    given = model(
        "two = Constant <value_ints = [14, 32]> () r = Reshape (x, two) " + body,
        "float[14,5] y",
        w=(N, K),
        b=(N,),
        head=(N, 5),
    )
    before = operators(given)
    assert not QuantiseDynamically()(given).modified
    assert not QuantiseStatically({})(given).modified
    assert operators(given) == before


def test_rows_of_a_weight_are_a_weight() -> None:
    given = model(
        """from = Constant <value_ints = [16]> ()
           to = Constant <value_ints = [9223372036854775807]> ()
           axis = Constant <value_ints = [0]> () part = Slice (w, from, to, axis)
           turned = Transpose <perm = [1, 0]> (part) a = MatMul (x, turned)
           y = MatMul (a, head)""",
        w=(N, K),
        head=(N - 16, 5),
    )
    found = quantised(given, "dynamic")
    assert operators(found) == {
        "DynamicQuantizeLinear": 1,
        "MatMulInteger": 1,
        "Cast": 1,
        "Mul": 2,
        "MatMul": 1,
    }
    wanted = answers(given, {"x": drawn()})[0]
    error = np.abs(answers(found, {"x": drawn()})[0] - wanted).max() / np.abs(wanted).max()
    assert error < MOST


@pytest.mark.parametrize(
    ("form", "kernel"),
    [("dynamic", "DynamicQuantizeMatMul"), ("static", "MatMulIntegerToFloat")],
)
def test_onnx_runtime_makes_one_kernel_of_each(form: str, kernel: str, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    data = ir.to_proto(quantised(MLP, form)).SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count(kernel) == 2
    assert not {"MatMulInteger", "Cast", "Add", "Mul"} & {*kinds}
    weights = {each.name: each.data_type for each in graph.initializer}
    read = [name for node in graph.node if node.op_type == kernel for name in node.input]
    # signed weights beside unsigned activations: what processors multiply in one instruction
    assert [weights[name] for name in read if name.endswith("_int8")] == [onnx.TensorProto.INT8] * 2


@pytest.mark.parametrize("bits", [7, 8])
def test_each_column_of_a_weight_has_a_scale(bits: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
    matrix[:, 3] *= 1000
    matrix[:, 4] = 0
    integers, scale = per_channel(matrix, bits)
    most = 2 ** (bits - 1) - 1
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == most
    assert np.abs(integers[:, [0, 3]]).max(axis=0).tolist() == [most, most]
    assert (np.abs(integers * scale - matrix) < scale * 0.5001).all()
    assert not integers[:, 4].any()
    assert scale[4] == 1
