from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest

from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.trt.cuda_driver import CudaDriver, CudaDriverError, Gpu
from tokexport.runtimes.trt.engine import RTX_CAPABILITIES, build_engine
from tokexport.runtimes.trt.runner import NO_GPU, TrtRunner, check_gpu, check_version

BUILT = RuntimeInfo(
    "trt", "tensorrt-rtx", "1.7.1.116", {"compute_capabilities": list(RTX_CAPABILITIES)}
)
ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9", (13, 0))
SPECS = {
    "inputs": (TensorSpec("x", (1, 4, 8), "float32"),),
    "outputs": (TensorSpec("y", (1, 4, 8), "float32"),),
}


@pytest.fixture
def gpu() -> Gpu | None:
    """The GPU of this machine, if there is one."""
    try:
        return CudaDriver().gpu()
    except CudaDriverError:
        return None


def test_an_engine_runs_where_it_can_and_says_what_is_missing_elsewhere(
    save_model: Callable[..., Path], function_model: onnx.ModelProto, gpu: Gpu | None
) -> None:
    path = save_model(function_model)
    engine = path.with_suffix(".engine")
    built = build_engine(path, engine)
    listed = built.details["compute_capabilities"]
    if gpu is None:
        with pytest.raises(RunError, match=NO_GPU.replace("(", r"\(").replace(")", r"\)")) as no:
            TrtRunner.from_file(engine, **SPECS, built=built)
        assert "libcuda" in no.value.where or "GPU" in no.value.where
    elif gpu.compute_capability not in listed:
        with pytest.raises(RunError, match=f"list compute capability {gpu.compute_capability}"):
            TrtRunner.from_file(engine, **SPECS, built=built)
    else:
        x = np.random.default_rng(0).standard_normal((1, 4, 8), dtype=np.float32)
        weight = onnx.numpy_helper.to_array(function_model.graph.initializer[0])
        with TrtRunner.from_file(engine, **SPECS, built=built) as runner:
            y = runner.run({"x": x})["y"]
        np.testing.assert_allclose(y, np.maximum(2 * (x @ weight), 0), rtol=1e-2, atol=1e-2)


def test_a_listed_gpu_is_taken() -> None:
    check_gpu(BUILT, ADA)
    check_version(BUILT, "1.7.1.116")


def test_another_version_is_refused_before_loading() -> None:
    with pytest.raises(RunError, match=r"by TensorRT-RTX 1\.7\.1\.116, and 1\.7\.2\.5 is") as no:
        check_version(BUILT, "1.7.2.5")
    assert "Install TensorRT-RTX 1.7.1.116" in no.value.fix


def test_an_unlisted_gpu_is_sent_to_full_tensorrt() -> None:
    hopper = Gpu("NVIDIA H200", "9.0", (13, 0))
    with pytest.raises(RunError) as no:
        check_gpu(BUILT, hopper)
    assert no.value.what == (
        "TensorRT-RTX does not list compute capability 9.0; use full TensorRT."
    )
    assert "NVIDIA H200" in no.value.where


def test_a_driver_before_cuda_13_is_too_old_for_rtx() -> None:
    with pytest.raises(RunError, match="CUDA 13 driver") as no:
        check_gpu(BUILT, dataclasses.replace(ADA, cuda_version=(12, 8)))
    assert "supports CUDA 12.8" in no.value.where


def test_an_engine_of_full_tensorrt_is_for_the_gpu_that_built_it() -> None:
    built = RuntimeInfo("trt", "tensorrt", "10.9.0.34", {"compute_capabilities": ["9.0"]})
    with pytest.raises(RunError, match=r"for compute capability \['9.0'\], and this NVIDIA"):
        check_gpu(built, ADA)
    check_gpu(built, Gpu("NVIDIA H200", "9.0", (12, 4)))


@pytest.mark.parametrize(
    ("version", "install"),
    [
        ("10.9.0.34", "pip install tensorrt==10.9.0.34"),
        ("10; rm -rf ~", "pip install tensorrt"),
        ("10 --index-url x", "pip install tensorrt"),
    ],
)
def test_an_engine_is_never_loaded_by_the_other_flavour(
    run_python: Callable[[str], CompletedProcess[str]], tmp_path: Path, version: str, install: str
) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"ftrt")
    done = run_python(
        "import sys; sys.modules['tensorrt'] = None\n"
        "from pathlib import Path\n"
        "from tokexport.runtimes.errors import RuntimeMissingError\n"
        "from tokexport.runtimes.bundle.manifest import RuntimeInfo\n"
        "from tokexport.runtimes.trt.runner import TrtRunner\n"
        f"built = RuntimeInfo('trt', 'tensorrt', {version!r})\n"
        f"path = Path({str(engine)!r})\n"
        "try: TrtRunner.from_file(path, inputs=(), outputs=(), built=built)\n"
        "except RuntimeMissingError as error: print(error.what); print(error.fix)"
    )
    assert done.stdout.splitlines() == [
        f"The engine was built by TensorRT {version}, which is not ready here.",
        f"Install it: {install}",
    ], done.stderr
