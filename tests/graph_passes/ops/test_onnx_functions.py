"""The ONNX bodies of the operators against their meaning in torch, in every runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import token_cases as cases
from helpers.eager_tokens import MERGES, SCATTERS, moved, tensors
from helpers.function_models import Call, all_inputs, model_of
from helpers.graphs import TARGETS, assert_close, lowered, run_onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.ops import onnx_functions as functions
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.ops.both_ways_functions import BOTH_WAYS
from tokexport.graph_passes.ops.fused_functions import FUSED
from tokexport.graph_passes.ops.token_forms import FORMS, form_name
from tokexport.runtimes.trt.engine import build_engine

tensor = torch.from_numpy
MATCHES = {functions.match_name(order): order for order in ops.ORDERS}
ATTENTIONS = ("attention", "sized_attention")
FORM_NAMES = {form_name(operator, form) for operator, forms in FORMS.items() for form in forms}


def gather_call(seed: int, batch: int, tokens: int, count: int, channels: int) -> Call:
    x = cases.values(seed, batch, tokens, channels)
    index = cases.rows(seed + 1, batch, count, tokens)
    return Call("gather_tokens", (x, index), [(batch, count, channels)])


def scatter_call(name: str, seed: int, batch: int, tokens: int, count: int, channels: int) -> Call:
    overwrites = name == "scatter_tokens_none"
    count = min(count, tokens) if overwrites else count
    dst = cases.values(seed, batch, tokens, channels)
    index = cases.rows(seed + 1, batch, count, tokens, unique=overwrites)
    src = cases.values(seed + 2, batch, count, channels)
    return Call(name, (dst, index, src), [dst.shape])


def match_call(name: str, scores: cases.Array, r: int) -> Call:
    batch, rows, _ = scores.shape
    # A model in which every row merges reads no kept rows: there are none.
    read = (0, 1, 2) if r < rows else (1, 2)
    shapes = [(batch, rows - r), (batch, r), (batch, r)]
    return Call(name, (scores,), shapes, {"r": [r]}, read)


def merge_call(name: str, seed: int, batch: int, rows: int, others: int, r: int) -> Call:
    a, b = cases.values(seed, batch, rows, 5), cases.values(seed + 1, batch, others, 5)
    ranked = cases.rows(seed + 2, batch, rows, rows, unique=True)
    dst = cases.rows(seed + 3, batch, r, others)
    shape = (batch, rows - r + others, 5)
    return Call(name, (a, b, ranked[:, r:].copy(), ranked[:, :r].copy(), dst), [shape])


def attention_call(name: str, seed: int, batch: int, queries: int, keys: int) -> Call:
    q, k = cases.values(seed, batch, 2, queries, 4), cases.values(seed + 1, batch, 2, keys, 4)
    v, size = cases.values(seed + 2, batch, 2, keys, 3), cases.values(seed + 3, batch, keys)
    inputs = (q, k, v) if name == "attention" else (q, k, v, size)
    return Call(name, inputs, [(batch, 2, queries, 3)], {"scale": 0.5})


def eager(call: Call) -> list[torch.Tensor]:
    """What the operator itself gives on the arguments of a call."""
    found = moved(call)
    if found is not None:
        return found
    inputs = tensors(call)
    if call.name in MATCHES:
        matched = ops.bipartite_match(*inputs, call.attributes["r"][0], MATCHES[call.name])
        return [matched[i] for i in call.read]
    q, k, v, *size = inputs
    return [ops.sized_attention(q, k, v, size[0] if size else None, call.attributes["scale"])]


def check(calls: list[Call]) -> None:
    """Runs the calls in ONNX Runtime and OpenVINO and compares every result."""
    wanted = [part for call in calls for part in eager(call)]
    inputs = [tensor(array) for array in all_inputs(calls)]
    model = model_of(calls)
    for target in TARGETS:
        assert_close(run_onnx(lowered(model, target), *inputs, target=target), wanted, 1e-5)


def test_every_function_is_tested_here() -> None:
    tested = {"gather_tokens", *SCATTERS, *MERGES, *MATCHES, *ATTENTIONS}
    # Elsewhere: those of a layer in test_both_ways_kernels.py, the forms in test_token_forms.py,
    # and the other fused ones in test_native_kernels.py.
    assert tested == set(functions.signatures()) - {*FUSED, *BOTH_WAYS} - FORM_NAMES


SIZES = {
    "seed": cases.SEEDS,
    "batch": st.integers(1, 3),
    "tokens": st.integers(1, 9),
    "count": st.integers(1, 9),
    "channels": st.integers(1, 5),
}


@given(**SIZES)
@settings(max_examples=12)
def test_gather_body(seed: int, batch: int, tokens: int, count: int, channels: int) -> None:
    check([gather_call(seed, batch, tokens, count, channels)])


@given(**SIZES)
@settings(max_examples=15)
def test_scatter_bodies(seed: int, batch: int, tokens: int, count: int, channels: int) -> None:
    check([scatter_call(name, seed, batch, tokens, count, channels) for name in SCATTERS])


@given(case=cases.matches())
@settings(max_examples=20)
def test_match_bodies(case: tuple[cases.Array, int]) -> None:
    check([match_call(name, *case) for name in MATCHES])


@given(
    seed=cases.SEEDS,
    batch=st.integers(1, 3),
    rows=st.integers(2, 8),
    others=st.integers(1, 8),
    data=st.data(),
)
@settings(max_examples=15)
def test_merge_bodies(seed: int, batch: int, rows: int, others: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, rows - 1))
    check([merge_call(name, seed, batch, rows, others, r) for name in MERGES])


@given(seed=cases.SEEDS, batch=st.integers(1, 3), queries=st.integers(1, 5), keys=st.integers(1, 7))
@settings(max_examples=12)
def test_attention_bodies(seed: int, batch: int, queries: int, keys: int) -> None:
    check([attention_call(name, seed, batch, queries, keys) for name in ATTENTIONS])


def test_extremes_of_infinite_rows() -> None:
    dst, index, src = scatter_call("scatter_tokens_amax", 0, 1, 4, 3, 2).inputs
    src[0, 0], dst[0, 1] = -torch.inf, -torch.inf
    calls = [
        Call(functions.scatter_name(mode, own), (dst, index, src), [dst.shape])
        for mode in ("amax", "amin")
        for own in (True, False)
    ]
    wanted = [part for call in calls for part in eager(call)]
    inputs = [tensor(array) for array in all_inputs(calls)]
    model = model_of(calls)
    for target in TARGETS:
        found = run_onnx(lowered(model, target), *inputs, target=target)
        # OpenVINO's ReduceMax starts from the lowest finite number and so never gives -inf.
        lowest = torch.finfo(torch.float32).min if target == "openvino" else -torch.inf
        assert_close(
            [part.clamp(min=lowest) for part in found], [w.clamp(min=lowest) for w in wanted]
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["scatter_tokens_mean", "scatter_tokens_amax_exclude_self"])
def test_bodies_follow_the_dtype_of_their_rows(name: str, dtype: torch.dtype) -> None:
    call = scatter_call(name, 3, 2, 5, 4, 3)
    model = model_of([call])
    kind = {torch.float16: ir.DataType.FLOAT16, torch.float64: ir.DataType.DOUBLE}[dtype]
    for value in (model.graph.inputs[0], model.graph.inputs[2], model.graph.outputs[0]):
        value.dtype = kind
    dst, index, src = (tensor(array) for array in call.inputs)
    dst, src = dst.to(dtype), src.to(dtype)
    wanted = ops.scatter_tokens(dst, index, src, *SCATTERS[name])
    assert_close(run_onnx(model, dst, index, src), [wanted], 2e-3)


def test_callees_come_first_and_once() -> None:
    names = [proto.name for proto in functions.with_callees({"merge_tokens_sum", "gather_tokens"})]
    assert names == ["gather_tokens", "scatter_tokens_sum", "merge_tokens_sum"]


def test_no_body_holds_what_tensorrt_refuses() -> None:
    never_lowered_for_it = {*BOTH_WAYS} | FORM_NAMES
    for name in set(functions.signatures()) - never_lowered_for_it:
        for node in functions.function(name).node:
            assert node.op_type not in {"ScatterElements", "NonZero", "Unique", "Compress"}
            assert not [a for a in node.attribute if a.name == "reduction"]


@pytest.mark.parametrize("matching", [True, False], ids=["matches and merges", "the rest"])
def test_tensorrt_builds_every_body(tmp_path: Path, matching: bool) -> None:
    scores = cases.values(0, 2, 7, 6)
    if matching:
        calls = [match_call(name, scores, r) for name in MATCHES for r in (3, 7)]
        calls += [merge_call(name, 1, 2, 7, 6, 3) for name in MERGES]
    else:
        calls = [gather_call(2, 2, 7, 5, 4)]
        calls += [scatter_call(name, 3, 2, 7, 5, 4) for name in SCATTERS]
        calls += [attention_call(name, 4, 2, 5, 7) for name in ATTENTIONS]
    model = lowered(model_of(calls), "trt")
    assert {node.domain for node in model.graph} == {""}
    onnx.save(ir.to_proto(model), tmp_path / "model.onnx")
    build_engine(tmp_path / "model.onnx", tmp_path / "model.engine")
    assert (tmp_path / "model.engine").stat().st_size > 0
