import gc
import os
from collections.abc import Iterator

import pytest
import torch
from helpers import measured_worker
from helpers.composite_operators import look_up_quickly
from helpers.fast import FastRun, Timing
from helpers.onnx_library import read_once
from helpers.torchvision_ops import define_torchvision_operators
from hypothesis import HealthCheck, settings

from tokexport.exporter.speed import time_limits
from tokexport.exporter.worker.process import WORKER
from tokexport.runtimes.trt import cuda_driver

define_torchvision_operators()
#: No test asserts a time, of an example neither.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
os.environ[time_limits.VARIABLE] = "0"  # as few rounds as count: no test reads a time
if "PYTEST_XDIST_WORKER" in os.environ:  # the other workers want their cores too
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # and those of the processes that tests start
#: A trace makes so many objects that Python's own 700 spend a fifth of the suite on collections.
gc.set_threshold(100_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of ``make test-fast`` and ``make slow-tests``."""
    parser.addoption("--fast", action="store_true", help="leave out what slow_tests.txt names")
    parser.addoption("--time-tests", action="store_true", help="write slow_tests.txt anew")


def pytest_configure(config: pytest.Config) -> None:
    """Lets ``--fast`` leave tests out, and ``--time-tests`` time them."""
    if config.getoption("--fast"):
        config.pluginmanager.register(FastRun())
    if config.getoption("--time-tests"):
        config.pluginmanager.register(Timing())


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hides a GPU, where there is one: an engine is then built and not run."""
    try:
        cuda_driver.CudaDriver()
    except cuda_driver.CudaDriverError:  # there is none to hide, and the worker may go on
        yield
        return
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-of-no-machine.so.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a worker looks at it when it starts
    WORKER.stop()
    yield
    WORKER.stop()


@pytest.fixture(autouse=True, scope="session")
def _one_library() -> Iterator[None]:
    """Lets all exports share torch's ONNX library, and what is known of its operators."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_once(monkeypatch)
        look_up_quickly(monkeypatch)
        if measured_worker.VARIABLE in os.environ:
            measured_worker.end_by_terminating(monkeypatch)
        yield
        WORKER.stop()


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_collected() -> None:
    """Lets the collection before each timing pass over what was imported before the file."""
    gc.collect()
    gc.freeze()
