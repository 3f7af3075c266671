"""The signal of a short-time spectrum comes back, whatever its frames, window and length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

HANN = torch.hann_window(16)
CASES: dict[str, dict[str, Any]] = {
    "a window": {"n_fft": 16, "hop_length": 4, "window": HANN},
    "a length": {"n_fft": 16, "hop_length": 4, "window": HANN, "length": 70},
    "a short window": {"n_fft": 16, "win_length": 10, "hop_length": 3, "window": HANN[:10] + 0.1},
    "normalised, from the first number": {
        **{"n_fft": 8, "hop_length": 4, "window": torch.ones(8)},
        **{"normalized": True, "center": False},
    },
}


@pytest.mark.filterwarnings("ignore:The length of signal is shorter")
@pytest.mark.parametrize("name", CASES)
def test_a_signal_and_back(name: str) -> None:
    options = CASES[name]
    ahead = {key: one for key, one in options.items() if key != "length"}

    def function(x: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.stft(x, **ahead, return_complex=True) * torch.tensor(0.5 - 0.25j)
        return torch.istft(spectrum, **options), torch.istft(spectrum[0], **options)

    x = torch.randn(2, 63, generator=torch.Generator().manual_seed(0))
    rewritten = checked(
        function, x, targets=TARGETS if name == "a length" else ("ort",), tolerance=1e-5
    )
    assert "aten.istft" not in calls(rewritten)
