"""What this repository asks of its model, beside what its lock holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from model import build
from safetensors.torch import load_file

from tokexport.exporter.errors import GateError

if TYPE_CHECKING:
    from model import SmallViT

    from tokexport.exporter.pytest_plugin.parity import Parity

HERE = Path(__file__).parent


@pytest.fixture
def model() -> SmallViT:
    """The model with its trained weights."""
    found = build()
    found.load_state_dict(load_file(HERE / "weights.safetensors"))
    return found


@pytest.mark.tokexport(target=("ort", "openvino"), reduce="tome:r=3")
def test_merging_loses_no_accuracy(parity: Parity, model: SmallViT) -> None:
    """``parity`` compiles the model, and fails where a stage does not agree with eager PyTorch."""
    result = parity(model, torch.zeros(8, 1, 8, 8), inputs=HERE / "digits.npz", samples=64)
    assert result.report.token_schedule == (17, 14, 11, 8)
    assert result.report.accuracy is not None
    assert result.report.accuracy.after > 0.9


def test_the_labels_are_digits() -> None:
    """The lock holds the labels' hash; this says what they are."""
    with np.load(HERE / "digits.npz") as data:
        assert set(data["labels"].tolist()) == set(range(10))


@pytest.mark.tokexport(atol=1e-12)
def test_a_tolerance_that_no_arithmetic_meets_fails(parity: Parity, model: SmallViT) -> None:
    """A tolerance of your own is an absolute one; where it fails there is no bundle."""
    with pytest.raises(GateError, match="Parity failed at"):
        parity(model, torch.zeros(8, 1, 8, 8), inputs=HERE / "digits.npz", samples=8)
