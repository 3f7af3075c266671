"""A row that meets the scores of attention stands first, where OpenVINO reads it rightly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from helpers.graphs import emitted, lowered, rewrite
from openvino import opset13
from torch import nn

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.openvino_graph.int8 import left_out
from tokexport.exporter.openvino_graph.roles import is_fixed
from tokexport.exporter.openvino_graph.rows import put_rows_first, scaled_by_fixed_row
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.openvino.runner import OpenVinoRunner

HEADS, TOKENS, WIDTH = 3, 50, 32
_random = np.random.default_rng(0)
QUERIES, KEYS, VALUES = (
    _random.standard_normal((1, HEADS, TOKENS, WIDTH)).astype(np.float32) for _ in range(3)
)
ROW = (1 + _random.random(TOKENS)).astype(np.float32)
Meet = Callable[[Any, Any], Any]

#: How a row meets the scores: with OpenVINO's operators, in numpy, and what it becomes.
MEETINGS: dict[str, tuple[Meet, Meet, list[str]]] = {
    "add": (opset13.add, np.add, ["Add"]),
    "multiply": (opset13.multiply, np.multiply, ["Multiply"]),
    "maximum": (opset13.maximum, np.maximum, ["Maximum"]),
    "minimum": (opset13.minimum, np.minimum, ["Minimum"]),
    "subtract": (opset13.subtract, np.subtract, ["Negative", "Add"]),
    "divide": (opset13.divide, np.divide, ["Power", "Multiply"]),
}
#: A row of every rank, one that is computed from constants, and one that is given.
SHAPES = ((TOKENS,), (1, TOKENS), (1, 1, 1, TOKENS))


def attention(meet: Callable[[Any], Any], given: list[Any]) -> Any:
    """Returns the model of an attention in which the scores become ``meet(scores)``."""
    parameters = [opset13.parameter(list(QUERIES.shape), np.float32) for _ in range(3)]
    q, k, v = parameters
    scores = opset13.matmul(q, opset13.transpose(k, np.array([0, 1, 3, 2])), False, False)
    weights = opset13.softmax(meet(scores), -1)
    mixed = opset13.transpose(opset13.matmul(weights, v, False, False), np.array([0, 2, 1, 3]))
    return openvino.Model([mixed], [*parameters, *given], "attention")


def answer(scores: Array) -> Array:
    """Returns what the attention of such scores gives, in float64."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Array = (powers / powers.sum(axis=-1, keepdims=True)) @ VALUES.astype(np.float64)
    return found.swapaxes(1, 2)


SCORES = QUERIES.astype(np.float64) @ KEYS.swapaxes(-1, -2)


def run(model: Any, hint: str, *rows: Array) -> Array:
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    found: Array = compiled.create_infer_request().infer([QUERIES, KEYS, VALUES, *rows])[0]
    return found


def distance(found: Array, expected: Array) -> float:
    """Returns the root of the mean squared difference, as a share of the expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", MEETINGS)
def test_a_fixed_row_comes_first_and_the_answer_is_right(kind: str, shape: tuple[int, ...]) -> None:
    meet, numbers, becomes = MEETINGS[kind]
    model = attention(lambda scores: meet(scores, opset13.constant(ROW.reshape(shape))), [])
    expected = answer(numbers(SCORES, ROW))
    assert put_rows_first(model) == 1
    assert put_rows_first(model) == 0
    kinds = [operator.get_type_name() for operator in model.get_ordered_ops()]
    assert [one for one in kinds if one in {"Negative", "Power", *becomes}] == becomes
    assert distance(run(model, "f32"), expected) < 1e-5
    # Where the processor has bfloat16, this was not a number.
    assert distance(run(model, "bf16"), expected) < 6e-2


@pytest.mark.parametrize("kind", MEETINGS)
def test_a_given_row_comes_first_and_the_answer_is_right(kind: str) -> None:
    meet, numbers, _ = MEETINGS[kind]
    row = opset13.parameter([1, 1, 1, TOKENS], np.float32)
    model = attention(lambda scores: meet(scores, row), [row])
    assert put_rows_first(model) == 1
    expected = answer(numbers(SCORES, ROW))
    for hint, most in (("f32", 1e-5), ("bf16", 6e-2)):
        assert distance(run(model, hint, ROW.reshape(1, 1, 1, -1)), expected) < most


def test_rows_behind_other_numbers_come_first_too() -> None:
    scale, row = np.float32(0.25), opset13.constant(ROW)
    full = np.linspace(-1, 1, TOKENS * TOKENS, dtype=np.float32).reshape(1, 1, TOKENS, TOKENS)

    def meet(scores: Any) -> Any:
        scaled = opset13.relu(opset13.multiply(scores, scale))
        return opset13.add(opset13.add(opset13.add(scaled, row), opset13.constant(full)), row)

    model = attention(meet, [])
    assert put_rows_first(model) == 2
    expected = answer(np.maximum(SCORES * scale, 0) + 2 * ROW + full)
    for hint, most in (("f32", 1e-5), ("bf16", 6e-2)):
        assert distance(run(model, hint), expected) < most


@pytest.mark.parametrize(
    "meet",
    [
        pytest.param(lambda s: opset13.add(opset13.constant(ROW), s), id="row first"),
        pytest.param(lambda s: opset13.add(s, np.float32(2)), id="one number"),
        pytest.param(
            lambda s: opset13.add(s, np.ones((1, HEADS, 1, TOKENS), np.float32)), id="row a head"
        ),
        pytest.param(lambda s: opset13.add(s, np.ones((1, 1, TOKENS, 1), np.float32)), id="column"),
        pytest.param(lambda s: opset13.add(opset13.softmax(s, -1), ROW), id="not by number"),
        pytest.param(lambda s: opset13.subtract(opset13.constant(ROW), s), id="subtracted from"),
    ],
)
def test_all_else_stays_where_it_is(meet: Callable[[Any], Any]) -> None:
    assert put_rows_first(attention(meet, [])) == 0


def test_the_bias_of_a_linear_stays_where_it_is() -> None:
    x = opset13.parameter([1, 5, 8], np.float32)
    weight = opset13.constant(np.ones((8, 4), np.float32))
    y = opset13.add(opset13.matmul(x, weight, False, False), np.ones(4, np.float32))
    assert put_rows_first(openvino.Model([y], [x], "linear")) == 0


def test_scores_that_a_fixed_row_multiplies_stay_in_float32_in_int8() -> None:
    for kind, meet in (("multiply", opset13.multiply), ("divide", opset13.divide)):
        model = attention(lambda s, meet=meet: meet(s, opset13.constant(ROW)), [])
        (name,) = scaled_by_fixed_row(model)
        (scores,) = (one for one in model.get_ops() if one.get_friendly_name() == name)
        assert scores.get_type_name() == "MatMul", kind
        assert scores.input_value(1).get_node().get_type_name() == "Transpose", kind
        assert name in left_out(model), kind
    assert not scaled_by_fixed_row(attention(lambda s: opset13.add(s, ROW), []))


class MaskedAttention(nn.Module):
    """An attention with a fixed number for each of its keys, as padding or a learned bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 10)
        self.of_keys = nn.Parameter(torch.randn(33))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(-1, 33, 3, 2, 32).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * 32**-0.5 + self.of_keys).softmax(dim=-1)
        y: torch.Tensor = self.out((weights @ v).transpose(1, 2).reshape(-1, 33, 64))
        return y


def test_an_artifact_has_its_rows_first_and_answers_right(tmp_path: Path) -> None:
    model, x = MaskedAttention().eval(), torch.randn(1, 33, 64)
    onnx_model = emitted(rewrite(model, x))
    save_onnx(lowered(onnx_model, "openvino"), tmp_path / "in.onnx")
    build(BACKENDS["openvino"], tmp_path / "in.onnx", tmp_path, "bf16")
    assert put_rows_first(openvino.Core().read_model(tmp_path / "model.xml")) == 0
    with OpenVinoRunner.from_file(tmp_path / "model.xml", precision="bf16") as runner:
        (found,) = runner.run({runner.inputs[0].name: x.numpy()}).values()
    with torch.no_grad():
        assert distance(found, model(x).numpy()) < 2e-2


def test_long_and_doubled_ways_are_walked_once() -> None:
    """Two thousand sums in a row, each of which reads the one before it twice."""
    parameter = opset13.parameter([1, 4], np.float32)
    fixed, given = opset13.constant(np.ones((1, 4), np.float32)), parameter
    for _ in range(2000):
        fixed, given = opset13.add(fixed, fixed), opset13.add(given, given)
    assert is_fixed(fixed.output(0))
    assert not is_fixed(given.output(0))
    product = opset13.multiply(given, fixed)
    assert scaled_by_fixed_row(openvino.Model([product], [parameter])) == set()
