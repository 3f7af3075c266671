"""Compares a model with its bundles, as a test in your own project would.

pytest examples/parity_in_ci.py
"""

from pathlib import Path

import pytest
import torch
from digits_vit import DigitsViT

import tokexport
from tokexport.exporter.errors import GateError


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_the_bundle_agrees_with_the_model(target: str, tmp_path: Path) -> None:
    """Compiling fails by itself where a step leaves the gate; the report says by how much."""
    torch.manual_seed(0)
    model = DigitsViT().eval()
    result = tokexport.compile(
        model, torch.rand(1, 1, 8, 8), target=target, output=tmp_path / "bundle", timed=False
    )
    assert result.status == "PASSED"
    worst = result.report.stages[-1].worst[
        "output"
    ]  # of all values, what uses most of its allowance
    assert worst.share < 1


def test_a_gate_that_no_arithmetic_meets_fails(tmp_path: Path) -> None:
    """A gate of your own is an absolute tolerance; one that fails writes no bundle."""
    torch.manual_seed(0)
    model = DigitsViT().eval()
    with pytest.raises(GateError, match="Parity failed at"):
        tokexport.compile(model, torch.rand(1, 1, 8, 8), output=tmp_path / "bundle", atol=1e-12)
    assert not (tmp_path / "bundle").exists()
