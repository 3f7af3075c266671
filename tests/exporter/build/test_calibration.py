"""How many samples the ranges of int8 are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokexport.exporter.build.precision import CALIBRATION_SAMPLES, calibration_batches
from tokexport.exporter.inputs.batches import read_inputs
from tokexport.runtimes.bundle.manifest import TensorSpec


@pytest.mark.parametrize(
    ("samples", "batch", "taken"),
    [
        (1000, 1, 300),
        (1000, 100, 300),
        (301, 100, 300),  # the last of four batches is filled up
        (1000, 64, 256),  # four batches of 64, and a fifth would be beyond
        (1000, 299, 299),
        (1000, 512, 512),  # one batch, taken whole
        (40, 16, 48),  # all there are, the last batch filled up
    ],
)
def test_whole_batches_of_at_most_the_wanted_samples(
    samples: int, batch: int, taken: int, tmp_path: Path
) -> None:
    x = np.arange(samples, dtype=np.float32)[:, None]
    np.savez(tmp_path / "x.npz", x=x)
    batches = read_inputs(tmp_path / "x.npz", [TensorSpec("x", (batch, 1), "float32")], batch)
    found = np.concatenate([each["x"] for each in calibration_batches(batches)])
    assert len(found) == taken
    assert taken <= max(CALIBRATION_SAMPLES, batch)
    np.testing.assert_array_equal(found[: min(taken, samples)], x[:taken])


def test_a_scalar_input_is_one_sample_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.float32(2.0))
    batches = read_inputs(tmp_path / "x.npz", [TensorSpec("x", (), "float32")], 1)
    assert [each["x"].item() for each in calibration_batches(batches)] == [2.0]
