from __future__ import annotations

import numpy as np
import pytest
from helpers.cli import MODELS, Compiled, compile_model


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The merging ViT for ort, proven on 5 labelled samples in batches of 2."""
    folder = tmp_path_factory.mktemp("compiled")
    inputs = folder / "data.npz"
    x = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    np.savez(inputs, x=x, labels=np.array([2, 4, 0, 1, 3]))
    options = ("--inputs", inputs, "--batch", 2)
    answer = compile_model(f"{MODELS}:with_inputs", folder / "bundle", *options, "--json")
    return Compiled(folder / "bundle", inputs, answer)
