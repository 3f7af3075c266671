"""Writes a folder that shows a fault: one node, what it takes and what it should give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.graph_values.local_errors import compared
from tokexport.exporter.graph_values.shown_values import Artifact
from tokexport.exporter.graph_values.suspect import Suspect, Values
from tokexport.exporter.json_values import plain
from tokexport.exporter.system.output_folder import check_folder_place, folder_written_whole
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner, convert_in_worker
from tokexport.runtimes.native_library import Kernels

#: The files of the folder.
NODE: Final = "node.onnx"
IR_FILE: Final = "node.xml"
RECORD: Final = "bisect.json"
_SCRIPT: Final = Path(__file__).with_name("reproduce.py.txt")
_FILES: Final = {
    *(NODE, IR_FILE, "node.bin", "node.onnx.data", RECORD, "README.md", "reproduce.py"),
    *("inputs.npz", "expected.npz"),
}


@dataclass(frozen=True)
class Written:
    """A folder that was written.

    Attributes:
        reproduces: Whether what it holds shows the fault by itself.
        whole: Whether it holds the whole artifact in place of one node.
    """

    reproduces: bool
    whole: bool


def require_free(folder: Path, force: bool) -> None:
    """Refuses a folder that is there already; with ``force``, one that holds other things.

    Raises:
        UsageError: It is no name, or the folder that this process is in.
        WriteError: The folder that it goes into does not exist.
        OutputExistsError: It may not be replaced.
    """
    check_folder_place(
        folder,
        "reproduction",
        force,
        lambda found: [one for one in found - _FILES if "/" in one or not one.endswith(".so")],
    )


class Reproduction:
    """A folder that is made beside its place, and put there whole.

    Args:
        folder: The place.
        runtime: ``ort`` or ``openvino``: what runs the node.
        precision: What OpenVINO computes it in.
        kernels: The native kernels, where they take part.
    """

    def __init__(
        self, folder: Path, runtime: str, precision: str, kernels: Kernels | None = None
    ) -> None:
        self._final, self._runtime, self._precision = folder, runtime, precision
        self._library = None if kernels is None else kernels.library

    def write(
        self, suspect: Suspect, artifact: Artifact | None, record: Mapping[str, object], text: str
    ) -> Written:
        """Writes the folder.

        Args:
            suspect: The node.
            artifact: The artifact, for a fault that the node alone does not show; None where the
                node is part of a file of ONNX.
            record: What ``bisect.json`` holds.
            text: What the README says before the command.

        Raises:
            WriteError: It cannot be written.
        """
        with folder_written_whole(self._final) as made:
            written = self._fill(made, suspect, artifact)
            data = {**record, "reproduces": written.reproduces}
            whole = json.dumps(plain(data), indent=2, ensure_ascii=False)
            (made / RECORD).write_text(whole + "\n", encoding="utf-8", errors="replace")
            (made / "README.md").write_text(text + _command(written), encoding="utf-8")
        return written

    def _fill(self, folder: Path, suspect: Suspect, artifact: Artifact | None) -> Written:
        written = Written(reproduces=False, whole=False)
        inputs: Values = suspect.inputs
        model = NODE
        if suspect.part is not None:
            save_onnx(suspect.part.model, folder / NODE)
            written = Written(self._shows(folder, suspect), whole=False)
            if self._runtime == "openvino":
                model = IR_FILE
        if not written.reproduces and artifact is not None:
            inputs = self._whole(folder, suspect, artifact)
            model, written = artifact.path.name, Written(reproduces=True, whole=True)
        for name, arrays in (("inputs", inputs), ("expected", suspect.expected)):
            kept: dict[str, Any] = {**arrays}
            np.savez(folder / f"{name}.npz", **kept)
        settings = {
            "MODEL": model,
            "RUNTIME": self._runtime,
            "PRECISION": self._precision,
            "KERNELS": self._copied_library(folder) if suspect.native else "",
        }
        script = _SCRIPT.read_text(encoding="utf-8")
        for name, value in settings.items():
            script = script.replace(f'{name} = ""', f'{name} = "{value}"')
        script = script.replace("ALLOWED = 0.0", f"ALLOWED = {suspect.difference.allowed!r}")
        (folder / "reproduce.py").write_text(script, encoding="utf-8")
        return written

    def _copied_library(self, folder: Path) -> str:
        if self._library is None:
            return ""
        shutil.copyfile(self._library, folder / self._library.name)
        return self._library.name

    def _shows(self, folder: Path, suspect: Suspect) -> bool:
        """Returns whether the node by itself gives what was found."""
        path = folder / NODE
        if self._runtime == "openvino":
            convert_in_worker(path, folder / IR_FILE)
            path = folder / IR_FILE
        opening = Opening(path, precision=self._precision, native=suspect.native)
        with WorkerRunner(opening) as runner:
            found = runner.run({spec.name: suspect.inputs[spec.name] for spec in runner.inputs})
        return any(
            compared(expected, found[name], (), self._precision).error > suspect.difference.allowed
            for name, expected in suspect.expected.items()
        )

    def _whole(self, folder: Path, suspect: Suspect, artifact: Artifact) -> Values:
        """Puts the whole artifact with one more output into the folder; returns its inputs."""
        for one in folder.iterdir():
            one.unlink()
        artifact.write(folder, [suspect.value])
        return suspect.fed


def _command(written: Written) -> str:
    what = (
        "The fault shows in the whole artifact only: it is here with one more output.\n"
        if written.whole
        else ""
    )
    says = "" if written.reproduces else "By itself the node does not show the fault.\n"
    return (
        f"\n{what}{says}\n```bash\npython reproduce.py   # needs numpy and the runtime\n```\n\n"
        "It runs the node on `inputs.npz`, and says how far its output is from `expected.npz`.\n"
    )
