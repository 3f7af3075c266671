"""Measures what an artifact takes before it answers: loading, its first run, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokexport.exporter.worker.runner import start_in_worker
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import Manifest


@dataclass(frozen=True)
class StartUp:
    """What an artifact takes in a process that has loaded its runtime.

    Attributes:
        load_ms: What loading took, in milliseconds.
        first_run_ms: What the first run took.
        memory_bytes: How much more memory the process held then; None where the system does not
            say.
    """

    load_ms: float
    first_run_ms: float
    memory_bytes: int | None

    def sentence(self) -> str:
        """Returns the figures in a line."""
        held = "" if self.memory_bytes is None else f", memory {self.memory_bytes / 1e6:.0f} MB"
        return f"load {self.load_ms:.0f} ms, first run {self.first_run_ms:.1f} ms{held}"


def measure_start_up(
    bundle: Path,
    manifest: Manifest,
    batch: Mapping[str, Array],
    *,
    onnx: Path,
    threads: int | None = None,
) -> StartUp:
    """Loads an artifact once more in the worker, and runs it once.

    Args:
        bundle: The folder of the artifact.
        manifest: What it holds.
        batch: The inputs of a run, by name.
        onnx: The ONNX file that it was built from.
        threads: Number of threads for a CPU runtime; None leaves the choice to the runtime.
    """
    found = start_in_worker(bundle, manifest, dict(batch), onnx=onnx, threads=threads)
    return StartUp(found["load_ms"], found["first_run_ms"], found["memory_bytes"])
