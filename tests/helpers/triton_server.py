"""Runs a real Triton Inference Server on the processor, and asks it over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "build" / "triton" / "serve"
_STARTS_S = 120


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        address: Where it listens.
    """

    address: str

    def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs of a model by name.

        Raises:
            ValueError: The server refuses the request; says what it says.
        """
        given = [
            {
                "name": name,
                "shape": array.shape,
                "datatype": np_to_triton_dtype(array.dtype),
                "data": array.ravel().tolist(),
            }
            for name, array in inputs.items()
        ]
        found = self._ask(f"models/{model}/infer", {"inputs": given})
        return {
            one["name"]: np.array(one["data"], triton_to_np_dtype(one["datatype"])).reshape(
                one["shape"]
            )
            for one in found["outputs"]
        }

    def batches_run(self, model: str) -> dict[int, int]:
        """Returns how often the model ran by the number of samples that Triton had joined."""
        (found,) = self._ask(f"models/{model}/stats")["model_stats"]
        return {
            one["batch_size"]: int(one["compute_infer"]["count"]) for one in found["batch_stats"]
        }

    def _ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/v2/{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(error.read().decode()) from error


@contextmanager
def triton(repository: Path, log: Path) -> Iterator[Server]:
    """Serves a model repository for a block; the test is skipped where pip cannot give a Triton."""
    fetched = subprocess.run(
        [ROOT / "ci" / "triton_server.sh", sys.executable],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"no Triton here: {fetched.stderr.strip().splitlines()[-1:]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SERVE, "--model-repository", repository, "--http-port", str(port)]
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address, log)
            yield Server(address)
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Waits until all models are loaded."""
    end = time.monotonic() + _STARTS_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])
