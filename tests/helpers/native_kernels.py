"""Runs calls of functions with the native kernels or with their bodies in standard operators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from helpers.emulated_kernels import EmulatedRunner, emulated_command, kernels_on
from helpers.function_models import Call, all_inputs, model_of
from helpers.token_cases import Array
from hypothesis import settings
from hypothesis import strategies as st

from tokexport.graph_passes import pipelines
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.native_library import NO_KERNELS, kernels_of, native_library
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert
from tokexport.runtimes.ort.runner import OrtRunner

FUZZ = settings(max_examples=int(os.environ.get("TOKEXPORT_FUZZ", "12")))
BATCH = st.integers(1, 9)
SEED = st.integers(0, 2**20)

#: Where another processor is emulated its kernels run, and the bodies of the functions here.
EMULATED = emulated_command()
#: Those that have kernels for what moves tokens; narrower vectors are the same in both.
RUNTIMES = ("ort",) if EMULATED or "TOKEXPORT_MAX_ISA" in os.environ else ("ort", "openvino")


def chosen_kernels() -> str:
    """Returns the instruction set of the kernels that the tests run."""
    if EMULATED:
        return kernels_on(EMULATED)
    library = native_library()
    return NO_KERNELS if library is None else kernels_of(library)


def multiplies_bytes() -> bool:
    """Whether these kernels multiply bytes; without, the body would be held to itself."""
    return chosen_kernels().endswith(("vnni", "dotprod", "i8mm"))


@contextmanager
def opened(calls: list[Call], native: bool, runtime: str) -> Iterator[Runner]:
    """Opens a model of calls with the kernels or with the bodies."""
    if native and EMULATED:
        with EmulatedRunner(EMULATED, calls) as emulated:
            yield emulated
        return
    if runtime == "ort":
        model = ir.to_proto(model_of(calls)).SerializeToString()
        with OrtRunner.from_bytes(model, threads=2, native=native) as runner:
            yield runner
        return
    with TemporaryDirectory() as folder:
        lowered, converted = Path(folder, "model.onnx"), Path(folder, "model.xml")
        ir.save(pipelines.lower(model_of(calls), pipelines.lowering("openvino")).model, lowered)
        convert(lowered, converted)
        with OpenVinoRunner.from_file(converted, threads=2, native=native) as openvino_runner:
            assert openvino_runner.runtime.details["kernel_calls"] == (len(calls) if native else 0)
            yield openvino_runner


def run(calls: list[Call], native: bool, runtime: str = "ort") -> dict[str, Array]:
    """Runs calls with the kernels or with the bodies."""
    with opened(calls, native, runtime) as runner:
        assert (runner.runtime.details["kernels"] == NO_KERNELS) is not native
        return runner.run({f"in{i}": array for i, array in enumerate(all_inputs(calls))})


def assert_same(*calls: Call, tolerance: float = 2e-6, runtime: str = "ort") -> None:
    """Holds the kernels to the bodies: indices equal, floats within a part of the largest."""
    wanted, found = run(list(calls), native=False), run(list(calls), True, runtime)
    for name, array in wanted.items():
        if array.dtype == np.int64:
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        elif array.size:
            scale = np.abs(array[np.isfinite(array)]).max(initial=1.0)
            np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale)
