from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokexport.exporter.bundle.reference_file import save_reference
from tokexport.exporter.errors import InternalError


def test_the_reference_is_read_back_as_it_was(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    inputs = {"x": random.standard_normal((2, 4, 3)).astype(np.float32)}
    outputs = {"logits": random.standard_normal((2, 4, 5)), "kept/ids": np.arange(8).reshape(2, 4)}
    save_reference(tmp_path / "reference.npz", inputs, outputs)
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as found:
        assert found.files == ["inputs/x", "outputs/logits", "outputs/kept/ids"]
        np.testing.assert_array_equal(found["inputs/x"], inputs["x"])
        for name, values in outputs.items():
            np.testing.assert_array_equal(found[f"outputs/{name}"], values)
            assert found[f"outputs/{name}"].dtype == values.dtype


def test_the_reference_refuses_what_is_not_one_value_a_batch(tmp_path: Path) -> None:
    x = np.zeros((2, 3), np.float32)
    for wrong in (np.zeros((3, 3), np.float32), np.float32(1), np.array([None, None])):
        with pytest.raises(InternalError, match="one value per batch"):
            save_reference(tmp_path / "reference.npz", {"x": x}, {"y": np.asarray(wrong)})
    assert list(tmp_path.iterdir()) == []
