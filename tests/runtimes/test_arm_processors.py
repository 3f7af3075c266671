"""The kernels for 64-bit ARM, on emulated processors with and without products of bytes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import arm_processors
import numpy as np
import pytest
from helpers.emulated_kernels import (
    EMULATOR,
    VARIABLE,
    EmulatedRunner,
    build_server,
    kernels_on,
    tool,
)
from helpers.function_models import Call
from helpers.thorough import thorough_but
from helpers.token_cases import Array, values

from tokexport.graph_passes.onnx_passes.fuse.pack_integer_linears import packed_bytes
from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel

#: Of each processor the kernels that it gets: one of 2016, one with SDOT, and all there is.
PROCESSORS = {"cortex-a72": "neon", "neoverse-n1": "neon_dotprod", "max": "neon_i8mm"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs operators, for aarch64."""
    tool(EMULATOR)
    return build_server(tmp_path_factory.mktemp("aarch64"))


def on(processor: str, server: Path) -> list[str]:
    """Returns the command that runs the program on a processor."""
    return [tool(EMULATOR), "-cpu", processor, str(server)]


@pytest.mark.parametrize(("processor", "isa"), PROCESSORS.items())
def test_a_processor_gets_the_best_kernels_that_it_can_run(
    processor: str, isa: str, server: Path
) -> None:
    assert kernels_on(on(processor, server)) == isa


@pytest.mark.parametrize("most", PROCESSORS.values())
def test_better_kernels_can_be_left_out(
    most: str, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEXPORT_MAX_ISA", most)
    assert kernels_on(on("max", server)) == most


def product(command: list[str], x: Array, w: Array) -> Array:
    """Multiplies in 8-bit integers on an emulated processor."""
    integers, scales = per_channel(w)
    inputs = (x, packed_bytes(integers), scales, np.zeros(w.shape[1], np.float32))
    call = Call("integer_linear", inputs, [(*x.shape[:2], w.shape[1])])
    with EmulatedRunner(command, [call]) as runner:
        return runner.run({f"in{i}": array for i, array in enumerate(inputs)})["y_0"]


@pytest.mark.parametrize("rows", range(1, 15))
def test_products_of_bytes_are_the_same_bit_by_bit(rows: int, server: Path) -> None:
    for depth, columns in ((1, 1), (4, 31), (7, 33), (64, 64), (2049, 40)):
        x, w = values(rows, 1, rows, depth), values(depth, depth, columns)
        found = [product(on(name, server), x, w) for name in ("neoverse-n1", "max")]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("fill", [-1.0, 1.0])
def test_the_largest_products_of_bytes_are_exact(fill: float, server: Path) -> None:
    depth = 4096
    x, w = np.ones((1, 3, depth), np.float32), np.full((depth, 9), fill, np.float32)
    x[:, 1] *= -1  # so that the zero point is in the middle of the range
    for name in ("neoverse-n1", "max"):
        found = product(on(name, server), x, w) / depth
        np.testing.assert_allclose(found, fill * x[..., :1] * np.ones((1, 3, 9)), rtol=5e-3)


@pytest.mark.parametrize("processor", thorough_but(["max"], PROCESSORS))
def test_the_kernels_compute_what_their_functions_say(processor: str, server: Path) -> None:
    command = shlex.join(on(processor, server))
    environment = {"TOKEXPORT_FUZZ": "3", **os.environ, VARIABLE: command}
    files = [str(path) for path in Path(__file__).parent.glob("test_*_kernels.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def verified_on(
    processor: arm_processors.Processor, bundle: str, library: str | Path
) -> dict[str, Any]:
    """Returns the verdict on a bundle with a library of kernels, or without: ``off``."""
    arm_processors.fetch()
    root = arm_processors.ROOT
    script = [str(root / "ci" / "verified_bundle.py"), str(root / "tests" / "bundles" / bundle)]
    environment = {"PYTHONPATH": str(root / "ci" / "typing"), "TOKEXPORT_NATIVE": str(library)}
    said = arm_processors.run_python(processor, script, environment)
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    assert found["machine"] == "aarch64"
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("bundle", ["kernels_ort", "least_cosine", "relative_tolerance"])
@pytest.mark.parametrize("processor", arm_processors.PROCESSORS, ids=lambda one: one.isa)
def test_a_bundle_that_was_compiled_on_x86_passes_its_gate(
    processor: arm_processors.Processor, bundle: str, server: Path
) -> None:
    found = verified_on(processor, bundle, server.with_name("tokexport_native.so"))
    assert found["kernels"] == processor.isa
    assert found["passed"], found


@pytest.mark.thorough
@pytest.mark.parametrize("bundle", ["kernels_openvino", "least_cosine"])
@pytest.mark.parametrize("processor", arm_processors.PROCESSORS, ids=lambda one: one.isa)
def test_a_bundle_passes_its_gate_without_kernels(
    processor: arm_processors.Processor, bundle: str
) -> None:
    found = verified_on(processor, bundle, "off")
    assert found["kernels"] == "none"
    assert found["passed"], found
