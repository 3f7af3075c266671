"""The forms of the token operators against the operators themselves, in every runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import token_cases as cases
from helpers.eager_tokens import MERGES, SCATTERS, moved, tensors
from helpers.function_models import Call, model_of
from helpers.graphs import TARGETS, assert_close, lowered, run_onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.ops import onnx_functions as functions
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.ops.token_forms import FORMS, NATIVE, candidates, form_name

tensor = torch.from_numpy
SETS = {"a_start": [1], "b_start": [2], "step": [2]}


def eager(call: Call) -> list[torch.Tensor]:
    """What the operator itself gives."""
    found = moved(call)
    if found is not None:
        return found
    inputs = tensors(call)
    x, size, *indices = inputs
    merged = [
        torch.cat([part[:, :1], ops.merge_tokens(part[:, 1::2], part[:, 2::2], *indices, "sum")], 1)
        for part in (x * size, size)
    ]
    return [merged[0] / merged[1], merged[1]]


def check(call: Call, tolerance: float = 1e-5) -> None:
    """Holds every form, and so the standard body, to the operator in every runtime."""
    wanted = eager(call)
    inputs = [tensor(array) for array in call.inputs]
    for form in FORMS[call.name]:
        model = model_of([replace(call, name=form_name(call.name, form))])
        for target in TARGETS:
            found = run_onnx(lowered(model, target), *inputs, target=target)
            try:
                assert_close(found, wanted, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{call.name}, {form}, {target}") from error


@given(
    seed=cases.SEEDS,
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    count=st.integers(1, 12),
    channels=st.integers(1, 5),
)
@settings(max_examples=3)
def test_gathers_and_scatters(
    seed: int, batch: int, tokens: int, count: int, channels: int
) -> None:
    x = cases.values(seed, batch, tokens, channels)
    index = cases.rows(seed + 1, batch, count, tokens)
    check(Call("gather_tokens", (x, index), [(batch, count, channels)]))
    for name in SCATTERS:
        k = min(count, tokens) if name == "scatter_tokens_none" else count
        index = cases.rows(seed + 1, batch, k, tokens, unique=name == "scatter_tokens_none")
        check(Call(name, (x, index, cases.values(seed + 2, batch, k, channels)), [x.shape]))


@given(
    seed=cases.SEEDS,
    batch=st.integers(1, 3),
    rows=st.integers(1, 8),
    others=st.integers(1, 8),
    channels=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=3)
def test_merges(
    seed: int, batch: int, rows: int, others: int, channels: int, data: st.DataObject
) -> None:
    r = data.draw(st.integers(1, rows))
    a, b = (
        cases.values(seed, batch, rows, channels),
        cases.values(seed + 1, batch, others, channels),
    )
    ranked = cases.rows(seed + 2, batch, rows, rows, unique=True)
    indices = ranked[:, r:].copy(), ranked[:, :r].copy(), cases.rows(seed + 3, batch, r, others)
    for name in MERGES:
        check(Call(name, (a, b, *indices), [(batch, rows - r + others, channels)]))


@given(seed=cases.SEEDS, batch=st.integers(1, 3), tokens=st.integers(3, 12), data=st.data())
@settings(max_examples=3)
def test_merges_by_size(seed: int, batch: int, tokens: int, data: st.DataObject) -> None:
    x = cases.values(seed, batch, tokens, 4)
    size = 1 + np.abs(cases.values(seed + 1, batch, tokens, 1, levels=4))
    rows, others = tokens // 2, (tokens - 1) // 2
    r = data.draw(st.integers(1, rows))
    ranked = cases.rows(seed + 2, batch, rows, rows, unique=True)
    indices = ranked[:, r:].copy(), ranked[:, :r].copy(), cases.rows(seed + 3, batch, r, others)
    shapes = [(batch, tokens - r, 4), (batch, tokens - r, 1)]
    check(Call("merge_by_size", (x, size, *indices), shapes, {"protected": [1], **SETS}))


def test_every_operator_that_moves_tokens_has_forms() -> None:
    assert set(FORMS) == {"gather_tokens", *SCATTERS, *MERGES, "merge_by_size"}
    for operator, forms in FORMS.items():
        assert len(forms) > 1, operator
        assert candidates(operator, kernels=False) == tuple(forms)
        assert candidates(operator, kernels=True) == (NATIVE, *forms)


@pytest.mark.parametrize("operator", FORMS)
def test_a_form_is_made_of_standard_operators_alone(operator: str) -> None:
    """A part that is a kernel would make another thing of the form where the library is."""
    for form in FORMS[operator]:
        for function in functions.with_callees({form_name(operator, form)}):
            assert "__" in function.name, (operator, form)


def test_of_rows_that_overwrite_each_other_the_last_stays_in_the_form_by_gathers() -> None:
    dst, src = cases.values(0, 2, 5, 3), cases.values(1, 2, 4, 3)
    index = np.array([[3, 1, 3, 3], [0, 0, 2, 0]])
    call = Call("scatter_tokens_none", (dst, index, src), [dst.shape])
    model = model_of([replace(call, name="scatter_tokens_none__gather")])
    for target in TARGETS:
        inputs = map(tensor, call.inputs)
        assert_close(run_onnx(lowered(model, target), *inputs, target=target), eager(call), 0)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_what_an_infinite_row_does_to_a_sum(mode: str) -> None:
    dst, index, src = (
        cases.values(0, 2, 4, 3),
        np.array([[0, 1, 1], [2, 3, 3]]),
        cases.values(1, 2, 3, 3),
    )
    src[0, 0] = np.inf
    call = Call(functions.scatter_name(mode, True), (dst, index, src), [dst.shape])
    inputs = [tensor(array) for array in call.inputs]
    for target in TARGETS:
        found = {
            form: run_onnx(
                lowered(model_of([replace(call, name=form_name(call.name, form))]), target),
                *inputs,
                target=target,
            )
            for form in FORMS[call.name]
        }
        assert_close(found["scatter"], eager(call), 1e-6)
        assert found["one-hot"][0][0].isnan().any(dim=-1).sum() >= 3
        assert_close([found["one-hot"][0][1]], [eager(call)[0][1]], 1e-6)
