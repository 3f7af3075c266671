"""The plot of a sweep: one large loss does not squash the others."""

from __future__ import annotations

import numpy as np
import pytest

from tokexport.exporter.sweep.plot import is_steep, loss_place


@pytest.mark.parametrize(
    ("quality", "steep"),
    [
        ([1.0, 0.99, 0.98, 0.96], False),
        ([1.0, 0.998, 0.994, 0.982, 0.31], True),
        ([1.0, 0.99, 0.2], False),  # of two losses neither squashes others
        ([1.0, 1.0], False),
    ],
)
def test_a_steep_loss_takes_a_logarithmic_axis(quality: list[float], steep: bool) -> None:
    assert is_steep(quality) is steep


def test_places_on_the_axis_keep_the_order_and_have_one_for_no_loss() -> None:
    places = loss_place(np.array([0.3, 0.9, 0.99, 0.999, 1.0]), 0.001)
    assert np.all(np.isfinite(places))
    assert np.all(np.diff(places) > 0)
