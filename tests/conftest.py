import gc
import os
from collections.abc import Iterator

import pytest
import torch
from helpers.onnx_library import read_once
from helpers.torchvision_ops import define_torchvision_operators

from tokexport.runtimes import cuda_driver

define_torchvision_operators()
if "PYTEST_XDIST_WORKER" in os.environ:  # the other workers want their cores too
    torch.set_num_threads(1)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the driver of a GPU, where there is one: an engine is then built and not run."""
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-of-no-machine.so.1")


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every compile time fewer pairs: no test reads a time."""
    monkeypatch.setattr("tokexport.exporter.speed.SPEED_SECONDS", 0.5)
    monkeypatch.setattr("tokexport.exporter.speed.TRIAL_SECONDS", 0.2)
    monkeypatch.setattr("tokexport.exporter.benchmark.SETTLE_S", 0.0)


@pytest.fixture(autouse=True, scope="session")
def _one_library() -> Iterator[None]:
    """Lets the exports share torch's ONNX library, and collections pass over what is imported."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_once(monkeypatch)
        gc.collect()
        gc.freeze()
        yield
