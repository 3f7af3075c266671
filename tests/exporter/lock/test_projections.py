"""A few numbers a sample say how far two outputs are apart."""

from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.lock.projections import MOST_SAMPLES, VECTORS, moved, projections


@pytest.mark.parametrize("shape", [(4, 1000), (4, 197, 64), (4, 5), (4,)])
@pytest.mark.parametrize("error", [1e-5, 1e-2, 0.3])
def test_the_distance_is_estimated(shape: tuple[int, ...], error: float) -> None:
    random = np.random.default_rng(0)
    one = random.standard_normal(shape).astype(np.float32)
    other = one + error * random.standard_normal(shape).astype(np.float32)
    samples, apart = moved(projections(one), projections(other))
    scale = max(abs(float(number)) for row in projections(one) for number in row.split())
    largest = max(
        float(np.sqrt(np.square(one[at] - other[at], dtype=np.float64).mean())) for at in range(4)
    )
    assert 0.4 * largest < apart * scale < 2.5 * largest
    assert samples == ((0, 1, 2, 3) if error > 5e-3 else ())


def test_the_samples_that_moved_are_named() -> None:
    one = np.random.default_rng(0).standard_normal((6, 100)).astype(np.float32)
    other = one.copy()
    other[[1, 4]] *= 1.1
    assert moved(projections(one), projections(other))[0] == (1, 4)


@pytest.mark.parametrize("classes", [3, VECTORS, 50, 1000])
def test_two_classes_that_changed_places_move_most_samples(classes: int) -> None:
    one = np.random.default_rng(1).standard_normal((MOST_SAMPLES, classes)).astype(np.float32)
    for first, second in ((0, 1), (1, classes - 1), (0, classes // 2)):
        other = one.copy()
        other[:, [first, second]] = other[:, [second, first]]
        assert len(moved(projections(one), projections(other))[0]) > MOST_SAMPLES / 2


def test_fills_and_whole_numbers_have_projections() -> None:
    one = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    one[:, ::3] = -np.inf
    assert moved(projections(one), projections(one)) == ((), 0.0)
    assert "nan" not in "".join(projections(one))
    whole = np.arange(20).reshape(2, 10)
    assert moved(projections(whole), projections(whole + 1))[0] == (0, 1)


def test_another_number_of_samples_is_another_output() -> None:
    one = np.ones((3, 4), np.float32)
    assert moved(projections(one), projections(one[:2]))[0] == (0, 1, 2)
