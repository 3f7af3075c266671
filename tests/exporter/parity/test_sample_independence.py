from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.sample_independence import alike_within, samples_are_independent
from tokexport.runtimes.arrays import Array

Model = Callable[[Array], Array]
WEIGHT = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)


def batches(rows: int, batch: int, **more: Array) -> Batches:
    x = np.random.default_rng(1).standard_normal((rows, batch, 8)).astype(np.float32)
    return Batches(("x", *more), {"x": x, **more}, rows * batch, None, "drawn")


def found(model: Model, samples: Batches, batch: int) -> bool:
    def run(given: Batches) -> dict[str, Array]:
        return {"y": np.stack([model(one["x"]) for one in given])}

    return samples_are_independent(run, samples, run(samples), alike_within(1e-4), batch)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_a_model_of_samples_alone_is_independent(batch: int) -> None:
    assert found(lambda x: np.maximum(x @ WEIGHT, 0), batches(2, batch), batch)


def halves(x: Array) -> Array:
    one, two = np.split(x, 2)
    return np.concatenate([one - two, two - one])


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (lambda x: x - x.mean(axis=0), 2),
        (lambda x: x - x.mean(axis=0), 5),
        (lambda x: x - x[::-1], 3),
        (lambda x: x - x[::-1], 8),
        (halves, 4),
        (halves, 8),
        (lambda x: x + x[:1], 4),
        (lambda x: x + np.arange(len(x), dtype=np.float32)[:, None], 4),
        (lambda x: x / np.abs(x).max(), 4),
        (lambda x: np.sort(x, axis=0), 4),
    ],
)
def test_a_model_that_reads_other_samples_or_places_is_not(model: Model, batch: int) -> None:
    assert not found(model, batches(2, batch), batch)
    assert not found(model, batches(1, batch), batch)


def test_equal_samples_show_nothing() -> None:
    same = Batches(("x",), {"x": np.ones((1, 4, 8), np.float32)}, 1, None, "one")
    assert not found(lambda x: x @ WEIGHT, same, 4)
    one = np.random.default_rng(0).standard_normal((1, 1, 8)).astype(np.float32)
    filled = Batches(("x",), {"x": np.repeat(one, 4, axis=1)}, 1, None, "one")
    assert not found(lambda x: x - x.mean(axis=0), filled, 4)


def test_an_input_without_samples_is_left_as_it_is() -> None:
    scalars = np.full(2, 3.0, np.float32)
    assert found(lambda x: x @ WEIGHT, batches(2, 4, gain=scalars), 4)
