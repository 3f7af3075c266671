"""Runs the artifact of a package in a process that has numpy and its runtime alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.bundle.reference import read_reference
from tokexport.runtimes.verification import verify_runner

#: What a user's own program may look like: no import of ours, and none is there to import.
_PROGRAM = """
import sys
import numpy as np

artifact, given, output = sys.argv[1:]
with np.load(given) as file:
    inputs = {name: file[name] for name in file.files}
if artifact.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    run = lambda arrays: dict(zip(names, session.run(names, arrays)))
else:
    import openvino
    model = openvino.Core().compile_model(artifact, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run = lambda arrays: {p.get_any_name(): np.array(v) for p, v in model(arrays).items()}
count = len(next(iter(inputs.values())))
runs = [run({name: array[i] for name, array in inputs.items()}) for i in range(count)]
np.savez(output, **{name: np.stack([one[name] for one in runs]) for name in runs[0]})
assert not [name for name in sys.modules if name.partition(".")[0] in ("tokexport", "torch")]
"""


class _Replayed:
    """A runner that returns what another process has answered, batch after batch."""

    def __init__(self, runtime, outputs, answers):
        self.runtime, self.outputs, self._answers = runtime, outputs, answers
        self._next = 0

    def run(self, arrays):
        index, self._next = self._next, self._next + 1
        return {name: array[index] for name, array in self._answers.items()}


def hold_to_reference(artifact: Path, bundle: Path, place: Path) -> None:
    """Holds an artifact, run without tokexport, to the gates of the bundle that it came from.

    Args:
        artifact: The ONNX file or the IR in the package.
        bundle: The bundle.
        place: A folder for what the processes exchange.
    """
    manifest = read_manifest(bundle)
    reference = read_reference(bundle, manifest)
    np.savez(place / "given.npz", **reference.inputs)
    answered = place / "answered.npz"
    hidden = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, artifact, place / "given.npz", answered],
        env={**hidden, "ORT_DISABLE_TELEMETRY": "1"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(answered) as file:
        answers = {name: file[name] for name in file.files}
    result = verify_runner(
        _Replayed(manifest.runtime, manifest.outputs, answers), manifest, reference
    )
    assert result.passed, result
