"""A value of an output of one row a sample is held to its column, and ordinary logits pass."""

from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.default_gates import set_gates
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.rounding.column_rounding import columns_of, draws_of
from tokexport.exporter.rounding.local_rounding import local_rounding, rows_to_measure
from tokexport.exporter.rounding.measure import Rounding
from tokexport.runtimes.arrays import Array

#: Of a float32.
ROUNDING = 2e-7
SAMPLES = ("samples",) * 2 + ("example",)
EDGES = ("zeros", "constant", "large", "tiny", "ties", "ends")


def gate_of(values: Array, sizes: Array, kinds: tuple[str, ...], seed: int) -> Gate:
    """The gate of an output (batches, samples, …) whose rounding has these deviations."""
    count, samples = values.shape[:2]
    random = np.random.default_rng(seed)
    batches = Batches(("x",), {"x": np.zeros((count, samples))}, count, None, "", kinds)
    rows = list(rows_to_measure(batches))
    draws = draws_of({"y": values}, len(rows), samples)

    def measured(runs: int) -> dict[str, Array]:
        shape = (runs, len(rows), *values.shape[1:])
        return {"y": np.abs(random.standard_normal(shape) * sizes[rows]).max(axis=0)}

    chance, far = measured(draws), measured(1)
    rounding = Rounding(tuple(rows), chance, {}, far, {}, {}, draws=draws)
    whole = local_rounding({"y": values}, rounding, batches, samples)
    return set_gates({"y": values}, whole, "fp32", None, batch=samples)["y"]


def boxes_beside_scores(batches: int, samples: int, seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    boxes = random.uniform(50, 640, (batches, samples, 4))
    scores = 1 / (1 + np.exp(3.2 + 0.1 * random.standard_normal((batches, samples, 1))))
    values = np.concatenate([boxes, scores], axis=2)
    return values.astype(np.float32), ROUNDING * np.array([300] * 4 + [0.05]) + 0 * values


@pytest.mark.parametrize("kinds", [SAMPLES, ("samples",), ("samples",) * 9, EDGES])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_score_beside_boxes_that_is_off_by_a_hundredth_fails(
    kinds: tuple[str, ...], samples: int
) -> None:
    values, sizes = boxes_beside_scores(len(kinds), samples, 0)
    gate = gate_of(values, sizes, kinds, 1)
    wrong = values.copy()
    wrong[-1, -1, -1] *= 1.01
    assert f"[{len(kinds) - 1}, {samples - 1}, 4]" in gate.judge(values, wrong).failure
    close = values + sizes * np.random.default_rng(2).standard_normal(values.shape)
    assert not gate.judge(values, close.astype(np.float32)).failure


@pytest.mark.parametrize("inner", [(2,), (3,), (1, 3), (2, 2)])
@pytest.mark.parametrize("kinds", [SAMPLES, ("samples",) * 6, EDGES])
def test_a_quiet_column_beside_one_or_two_loud_ones_is_held_to_itself(
    inner: tuple[int, ...], kinds: tuple[str, ...]
) -> None:
    values = np.random.default_rng(0).uniform(0.5, 1, (len(kinds), 1, *inner)).astype(np.float32)
    values[..., :-1] *= 1e4
    gate = gate_of(values, ROUNDING * np.abs(values), kinds, 1)
    wrong = values.copy()
    wrong.reshape(len(kinds), -1)[0, -1] *= 1.03
    if inner == (2, 2):
        wrong = values.copy()
        wrong[0, 0, 1, 1] *= 1.03
    assert "is off by" in gate.judge(values, wrong).failure
    assert not gate.judge(values, (values * (1 + ROUNDING)).astype(np.float32)).failure


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kinds", [SAMPLES, ("samples",) * 12, EDGES, ("samples",)])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_logits_near_zero_by_chance_are_allowed_what_rounding_does_beside_them(
    samples: int, kinds: tuple[str, ...], classes: int
) -> None:
    for seed in range(3 if classes == 1000 else 8):
        random = np.random.default_rng(seed)
        shape = (len(kinds), samples, classes)
        values = random.standard_normal(shape).astype(np.float32)
        sizes = np.full(shape, 1e-5) * random.uniform(0.5, 2, (*shape[:2], 1))
        gate = gate_of(values, sizes, kinds, seed)
        found = (values + sizes * random.standard_normal(shape)).astype(np.float32)
        assert not gate.judge(values, found).failure


def test_a_column_that_is_zero_where_rounding_was_measured_is_moved_as_an_ordinary_one() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal((8, 1, 40)), 0).astype(np.float32)
    values[:4, :, 7], values[4:, :, 7] = 0, 1e-3
    gate = gate_of(values, np.where(values == 0, 0.0, 1e-5), ("samples",) * 8, 0)
    off = np.where(values == 0, values, values + np.float32(1e-5))
    assert not gate.judge(values, off).failure
    off[6, 0, 7] *= 1.5
    assert "[6, 0, 7]" in gate.judge(values, off).failure


def test_a_larger_sample_than_any_measured_is_allowed_in_proportion() -> None:
    values, sizes = boxes_beside_scores(8, 1, 0)
    values[5] *= 50
    gate = gate_of(values, sizes, ("samples",) * 8, 0)
    close = values + sizes.astype(np.float32)
    close[5] += (49 * sizes[5]).astype(np.float32)
    assert not gate.judge(values, close).failure


def test_what_rounding_moves_far_of_its_own_scale_is_said_of_a_column() -> None:
    values, sizes = boxes_beside_scores(8, 1, 0)
    sizes[..., -1] = 1e-3
    assert "1 of 5 columns" in gate_of(values, sizes, ("samples",) * 8, 0).unstable


@pytest.mark.parametrize("inner", [(), (1,), (9, 8), (0,)])
def test_other_outputs_have_no_columns(inner: tuple[int, ...]) -> None:
    flat = np.ones((3, *inner))
    assert columns_of(flat, np.arange(3), [flat], [np.arange(3)], 1) is None
    assert draws_of({"y": flat[None]}, 1, 3) == 1


def test_a_batch_of_few_rows_is_run_more_often() -> None:
    row = np.ones((2, 1, 5), np.float32)
    assert [draws_of({"y": row}, rows, 1) for rows in (1, 2, 3, 9)] == [3, 2, 1, 1]
    assert draws_of({"y": np.ones((2, 4, 5))}, 1, 4) == 1
