"""The pass that gives calls of token operators another body."""

from __future__ import annotations

import itertools
from collections import Counter

import onnx_ir as ir
import pytest
import torch
from helpers.function_models import Call, model_of
from helpers.graphs import TARGETS, assert_close, emitted, rewrite, run_onnx
from helpers.thorough import thorough_but
from helpers.token_cases import rows, values
from models.tiny_vit import image, tiny_tome
from torch import Tensor

from tokexport.graph_passes.onnx_passes.every_target.choose_forms import (
    ChooseForms,
    TokenCall,
    token_calls,
)
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pipelines import calls_to_choose, lower, lowering

GATHER = TokenCall("gather_tokens", ((2, 7, 3), (2, 4)))


def gathers(*counts: int) -> ir.Model:
    """A model that gathers so many rows in each call."""
    x = values(0, 2, 7, 3)
    return model_of(
        [Call("gather_tokens", (x, rows(1, 2, count, 7)), [(2, count, 3)]) for count in counts]
    )


def names(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_calls_are_counted_by_what_they_look_like() -> None:
    other = TokenCall("gather_tokens", ((2, 7, 3), (2, 5)))
    assert token_calls(gathers(4, 5, 4)) == Counter({GATHER: 2, other: 1})
    assert str(other) == "gather_tokens(2×7×3, 2×5)"


def test_a_choice_is_for_calls_that_look_so_and_no_others() -> None:
    model = gathers(4, 5, 4)
    assert ChooseForms({GATHER: "flat"})(model).modified
    assert names(model) == ["gather_tokens__flat", "gather_tokens", "gather_tokens__flat"]
    assert token_calls(model) == {TokenCall("gather_tokens", ((2, 7, 3), (2, 5))): 1}


@pytest.mark.parametrize(
    "forms",
    [
        {},
        {GATHER: "native"},
        {TokenCall("gather_tokens", ((1, 7, 3), (1, 4))): "flat"},
        {TokenCall("gather_tokens", GATHER.shapes, constant=(1,)): "flat"},
    ],
)
def test_without_a_choice_that_fits_nothing_changes(forms: dict[TokenCall, str]) -> None:
    model = gathers(4)
    assert not ChooseForms(forms)(model).modified
    assert names(model) == ["gather_tokens"]


@pytest.mark.parametrize("dtype", [ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT64])
def test_other_numbers_than_float32_keep_what_they_have(dtype: ir.DataType) -> None:
    model = gathers(4)
    model.graph.inputs[0].dtype = dtype
    assert not token_calls(model)
    assert not ChooseForms({GATHER: "flat"})(model).modified


def test_an_unknown_shape_keeps_what_it_has() -> None:
    model = gathers(4)
    model.graph.inputs[1].shape = ir.Shape([2, "K"])
    assert not token_calls(model)


def constant_index(x: Tensor) -> Tensor:
    index = torch.tensor([[4, 1], [0, 6]])
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def test_a_constant_index_is_another_kind_of_call() -> None:
    model = emitted(rewrite(constant_index, torch.randn(2, 7, 3)))
    (call,) = calls_to_choose(model, lowering("openvino"))
    assert call.constant == (1,)
    assert str(call) == "gather_tokens(2×7×3, 2×2 constant)"


@pytest.mark.parametrize(
    ("target", "form"),
    thorough_but(
        [(TARGETS[0], "one-hot-flat"), (TARGETS[-1], "scatter-flat")],
        itertools.product(TARGETS, ["scatter", "scatter-flat", "one-hot-flat"]),
    ),
)
def test_a_merging_vit_in_another_form_answers_the_same(target: str, form: str) -> None:
    model, x = tiny_tome(), torch.randn(2, 3, 48, 48)
    onnx_model = emitted(rewrite(model, x))
    with torch.no_grad():
        wanted = (model(x),)
    found = calls_to_choose(onnx_model.clone(), lowering(target))
    merge = "merge_by_size"
    calls = {call: form for call in found if call.operator == merge}
    assert calls
    lowered = lower(onnx_model.clone(), lowering(target, forms=calls)).model
    left = Counter(node.op_type for node in lowered.graph if node.domain == DOMAIN)
    if target == "ort":
        assert left[f"{merge}__{form.replace('-', '_')}"] == sum(found[call] for call in calls)
        assert left[merge] == 0
    else:
        assert not left
        assert not lowered.functions
        reductions = {node.attributes.get_string("reduction", "none") for node in lowered.graph}
        assert ("add" in reductions) == form.startswith("scatter")
    assert_close(run_onnx(lowered, x, target=target), wanted, 1e-5)


@pytest.mark.parametrize("target", ["ort", "openvino", "trt"])
def test_without_forms_the_lowered_graph_holds_none(target: str) -> None:
    x = torch.randn(2, 3, 48, 48)
    lowered = lower(emitted(rewrite(tiny_tome(), x)), lowering(target)).model
    assert not [node for node in lowered.graph if "__" in node.op_type]
    assert not [name for _, name, _ in lowered.functions if "__" in name]


def test_the_model_stays_as_it_was_where_calls_are_asked_for() -> None:
    onnx_model = emitted(rewrite(tiny_tome(), image()))
    before = names(onnx_model)
    assert calls_to_choose(onnx_model.clone(), lowering("ort"))
    assert names(onnx_model) == before
