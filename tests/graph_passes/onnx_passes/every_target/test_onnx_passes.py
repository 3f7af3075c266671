"""The passes over ONNX graphs: folding, and what is refused for TensorRT."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.graphs import assert_close, checked, emitted, lowered, rewrite, run_eager, run_onnx
from onnx import parser
from torch import Tensor

from tokexport.graph_passes import pipelines
from tokexport.graph_passes.errors import OperatorRefusedError
from tokexport.graph_passes.onnx_passes.every_target.fold_constants import (
    LARGEST_FOLDED,
    FoldConstants,
)
from tokexport.graph_passes.onnx_passes.graph.source_lines import STACK_TRACE, lines_by_node
from tokexport.graph_passes.onnx_passes.targets.refuse_for_tensorrt import RefuseForTensorRt

TRACE = 'File "/home/me/model.py", line 7, in forward\n    return x.thing()'


def graph(inputs: str, body: str, output: str = "float[2,3] y") -> ir.Model:
    """Returns the model of one graph; its nodes know the line they came from."""
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({output}) {{ {body} }}'
    model = ir.from_proto(parser.parse_model(text))
    for position, node in enumerate(model.graph):
        node.name = f"node_{position}"
        node.metadata_props[STACK_TRACE] = TRACE
    return model


X, INDEX = "float[2,3] x", "int64[2,3] i"
TOP_K = "k = Constant <value_ints = [{k}]> () y, j = TopK (x, k)"
REFUSED: dict[str, tuple[ir.Model, str, str]] = {
    "scatter elements": (
        graph(f"{X}, {INDEX}", 'y = ScatterElements <axis = 1, reduction = "add"> (x, i, x)'),
        "a scatter with reduction 'add'",
        "one-hot product",
    ),
    "scatter nd": (
        graph(f"{X}, int64[1,1] i, float[1,3] u", 'y = ScatterND <reduction = "max"> (x, i, u)'),
        "a scatter with reduction 'max'",
        "one-hot product",
    ),
    "resize": (
        graph(
            "float[1,1,4,4] x, float[8] roi, float[4] s",
            'y = Resize <antialias = 1, mode = "linear"> (x, roi, s)',
            "float[1,1,2,2] y",
        ),
        "antialiasing",
        "Resize without antialiasing",
    ),
    "top-k of integers": (
        graph("int64[2,3] x", TOP_K.format(k=2), "int64[2,2] y"),
        "a top-k of integers",
        "Sort floats",
    ),
    "large top-k": (
        graph("float[1,5000] x", TOP_K.format(k=3841), "float[1,3841] y"),
        "K = 3841, above 3840",
        "fewer",
    ),
    "integer product": (
        graph("int64[2,3] n, int64[3,2] m", "y = MatMul (n, m)", "int64[2,2] y"),
        "a product of integer matrices",
        "Multiply floats",
    ),
    "nonzero": (
        graph(X, "y = NonZero (x)", "int64[2,m] y"),
        "the operator NonZero",
        "fixed number",
    ),
    "compress": (
        graph(f"{X}, bool[6] c", "y = Compress (x, c)", "float[m] y"),
        "the operator Compress",
        "fixed number",
    ),
    "unique": (graph(X, "y = Unique (x)", "float[m] y"), "the operator Unique", "fixed number"),
    "dft": (
        graph("float[1,4,1] x", "y = DFT (x)", "float[1,4,2] y"),
        "the operator DFT",
        "constant DFT matrix",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_tensorrt_does_not_take_is_refused_by_node_and_line(name: str) -> None:
    model, what, fix = REFUSED[name]
    with pytest.raises(OperatorRefusedError) as caught:
        RefuseForTensorRt()(model)
    error = caught.value
    assert what in error.what
    refused = [node for node in model.graph if node.op_type != "Constant"][0]
    assert error.where == (
        f"Node {refused.name} ({refused.op_type}), "
        "from /home/me/model.py:7, in forward: return x.thing()"
    )
    assert fix in error.fix


TAKEN = {
    "plain scatter": graph(f"{X}, {INDEX}", "y = ScatterElements <axis = 1> (x, i, x)"),
    "named none": graph(
        f"{X}, int64[1,1] i, float[1,3] u", 'y = ScatterND <reduction = "none"> (x, i, u)'
    ),
    "top-k": graph("float[1,5000] x", TOP_K.format(k=3840), "float[1,3840] y"),
    "product": graph(f"{X}, float[3,3] m", "y = MatMul (x, m)"),
    "an own operator": graph(X, "y = NonZeroOfMine (x)"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_tensorrt_takes_passes_unchanged(name: str) -> None:
    model = TAKEN[name]
    before = ir.to_proto(model).SerializeToString()
    assert not RefuseForTensorRt()(model).modified
    assert ir.to_proto(model).SerializeToString() == before


def test_an_operator_inside_a_branch_is_refused() -> None:
    body = "k = Constant <value_ints = [2]> () {2}, j = TopK (n, k)"
    branch = f"{{0}} = {{1}} () => (int64[2,2] {{2}}) {{{{ {body} }}}}"
    branches = ", ".join(
        branch.format(*names) for names in (("then_branch", "a", "p"), ("else_branch", "b", "q"))
    )
    model = graph("bool c, int64[2,3] n", f"y = If (c) <{branches}>", "int64[2,2] y")
    with pytest.raises(OperatorRefusedError, match="a top-k of integers"):
        RefuseForTensorRt()(model)


def test_a_top_k_inside_a_function_is_refused_by_the_line_of_its_call() -> None:
    def function(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, partner = scores.max(dim=-1)
        ranked = best.argsort(dim=-1, descending=True)
        return ranked[:, 5:].sort(1)[0], ranked[:, :5], partner.gather(1, ranked[:, :5])

    rewritten = rewrite(function, torch.randn(1, 4000, 2))
    assert rewritten.recognised == {"bipartite_match": 1}
    with pytest.raises(OperatorRefusedError, match="K = 3995, above 3840") as caught:
        lowered(emitted(rewritten), "trt")
    assert "in function: return ranked[:, 5:]" in caught.value.where


def test_an_integer_scatter_is_refused_for_tensorrt_only() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.ones_like(x).scatter_add(1, x % 3, x)

    x = torch.arange(12).reshape(2, 6)
    rewritten = checked(function, x, targets=("ort",))
    with pytest.raises(OperatorRefusedError, match="a scatter with reduction 'add'"):
        lowered(emitted(rewritten), "trt")


def test_shapes_and_ranges_are_folded() -> None:
    model = graph(
        X,
        """zero = Constant <value_int = 0> () one = Constant <value_int = 1> ()
        s = Shape <start = 1, end = 2> (x) n = Squeeze (s) r = Range (zero, n, one)
        f = Cast <to = 1> (r) y = Add (x, f)""",
    )
    assert FoldConstants()(model).modified
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == ["Add"]
    x = torch.randn(2, 3)
    (session_input,) = model.graph.inputs
    session_input.name = "in0"
    assert_close(run_onnx(model, x), [x + torch.arange(3.0)])
    assert not FoldConstants()(model).modified


def test_weights_are_not_folded() -> None:
    rows = LARGEST_FOLDED // 64 + 1
    model = graph(f"float[2,{rows}] x", "t = Exp (w) y = MatMul (x, t)", "float[2,64] y")
    weight = ir.tensor(np.ones((rows, 64), np.float32), name="w")
    value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == "w")
    value.const_value = weight
    model.graph.register_initializer(value)
    FoldConstants()(model)
    assert [node.op_type for node in model.graph] == ["Exp", "MatMul"]
    assert list(model.graph.initializers) == ["w"]


def test_lines_by_node() -> None:
    model = TAKEN["product"].clone()
    line = "/home/me/model.py:7, in forward: return x.thing()"
    assert lines_by_node(model) == {"node_0": line, "y": line}
    next(iter(model.graph)).metadata_props.clear()
    assert lines_by_node(model) == {}


@pytest.mark.parametrize("target", pipelines.LOWER)
def test_the_artifact_holds_no_trace_of_the_machine(target: str) -> None:
    def function(x: Tensor) -> Tensor:
        return x.gather(1, x.sum(-1).argsort(1)[:, :2, None].expand(-1, -1, 4)) * 2

    x = torch.randn(2, 6, 4)
    model = lowered(emitted(rewrite(function, x)), target)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    assert b"graphs.py" not in proto.SerializeToString()
    assert bool(model.functions) == (target == "ort")
    assert_close(run_onnx(model, x), run_eager(function, x), 0.0)
