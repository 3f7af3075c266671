import gc
import os
from collections.abc import Iterator

import pytest
import torch
from helpers.onnx_library import read_once
from helpers.torchvision_ops import define_torchvision_operators

from tokexport.exporter.worker.process import WORKER
from tokexport.runtimes.trt import cuda_driver

define_torchvision_operators()
if "PYTEST_XDIST_WORKER" in os.environ:  # the other workers want their cores too
    torch.set_num_threads(1)
#: A trace makes so many objects that Python's own 700 spend a fifth of the suite on collections.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hides a GPU, where there is one: an engine is then built and not run."""
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-of-no-machine.so.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a worker looks at it when it starts
    WORKER.stop()
    yield
    WORKER.stop()


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every compile time as few pairs as it can: no test reads a time."""
    monkeypatch.setattr("tokexport.exporter.speed.against_eager.SPEED_SECONDS", 0.01)
    monkeypatch.setattr("tokexport.exporter.speed.against_eager.TRIAL_SECONDS", 0.01)
    monkeypatch.setattr("tokexport.exporter.speed.interleaved.SETTLE_S", 0.0)
    monkeypatch.setattr("tokexport.exporter.tuning.trials.TRIAL_SECONDS", 0.01)
    monkeypatch.setattr("tokexport.exporter.tuning.trials.SAMPLE_SECONDS", 0.0)


@pytest.fixture(autouse=True, scope="session")
def _one_library() -> Iterator[None]:
    """Lets all exports share torch's ONNX library."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_once(monkeypatch)
        yield


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_collected() -> None:
    """Lets the collection before each timing pass over what was imported before the file."""
    gc.collect()
    gc.freeze()
