"""Runs an artifact with one more output, so that what its runtime fuses elsewhere stays fused."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.graph_values.given_values import computed_values, expose
from tokexport.exporter.graph_values.suspect import Values
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.runtimes.arrays import Array

#: What the operator is called that makes a value of an IR an output.
_SHOWN: Final = "tokexport_shown"


@dataclass(frozen=True)
class Shown:
    """What an artifact gives with one more output.

    Attributes:
        value: The further output, by batch.
        outputs: The outputs that it has anyway, by batch.
    """

    value: Sequence[Array]
    outputs: Sequence[Values]


class Artifact(ABC):
    """The file that a runtime loads, opened again and again with another output.

    Args:
        path: The file.
        precision: What OpenVINO computes an IR in.
        native: Whether the native kernels run.
        threads: The most threads; None leaves it to the runtime.
    """

    def __init__(
        self, path: Path, precision: str, *, native: bool = True, threads: int | None = None
    ) -> None:
        self.path, self.precision, self.native = path, precision, native
        self._threads = threads

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The values that can be shown."""

    @abstractmethod
    def write(self, name: str, folder: Path) -> Path:
        """Writes the artifact with one more output into a folder, and returns its file."""

    def outputs(self, inputs: Sequence[Values]) -> list[Values]:
        """Returns the outputs, by batch."""
        with self._opened(self.path) as runner:
            return [runner.run(one) for one in inputs]

    def show(self, name: str, inputs: Sequence[Values]) -> Shown:
        """Returns a value beside the outputs, by batch."""
        with scratch_folder() as folder, self._opened(self.write(name, folder)) as runner:
            last = runner.outputs[-1].name
            found = [runner.run(one) for one in inputs]
        values = [one[last] for one in found]
        return Shown(values, [{n: a for n, a in one.items() if n != last} for one in found])

    def _opened(self, path: Path) -> WorkerRunner:
        opening = Opening(path, precision=self.precision, threads=self._threads, native=self.native)
        return WorkerRunner(opening)


class OnnxArtifact(Artifact):
    """An ONNX file."""

    @property
    def names(self) -> Sequence[str]:
        """The values that can be shown."""
        return [*computed_values(ir.load(self.path))]

    def write(self, name: str, folder: Path) -> Path:
        """Writes the artifact with one more output into a folder, and returns its file."""
        model = ir.load(self.path)
        expose(model, [name])
        path = folder / self.path.name
        save_onnx(model, path)
        return path


class IrArtifact(Artifact):
    """The IR of OpenVINO, whose ports keep the names of the values that it was converted from."""

    @property
    def names(self) -> Sequence[str]:
        """The values that can be shown."""
        return [*_ports(ET.parse(self.path).getroot())]

    def write(self, name: str, folder: Path) -> Path:
        """Writes the artifact with one more output into a folder, and returns its file."""
        tree = ET.parse(self.path)
        root = tree.getroot()
        layer, port = _ports(root)[name]
        layers, edges = root.find("layers"), root.find("edges")
        assert layers is not None
        assert edges is not None
        number = str(1 + max(int(one.attrib["id"]) for one in layers))
        result = ET.SubElement(
            layers, "layer", id=number, name=_SHOWN, type="Result", version="opset1"
        )
        given = ET.SubElement(
            ET.SubElement(result, "input"), "port", id="0", precision=port.attrib["precision"]
        )
        for dim in port.findall("dim"):
            ET.SubElement(given, "dim").text = dim.text
        ends = {"from-layer": layer.attrib["id"], "from-port": port.attrib["id"]}
        ET.SubElement(edges, "edge", {**ends, "to-layer": number, "to-port": "0"})
        path = folder / self.path.name
        tree.write(path, encoding="utf-8", xml_declaration=True)
        _share(self.path.with_suffix(".bin"), path.with_suffix(".bin"))
        return path


def artifact_at(
    path: Path, precision: str, *, native: bool = True, threads: int | None = None
) -> Artifact:
    """Returns the artifact in a file, by its suffix."""
    kind = IrArtifact if path.suffix == ".xml" else OnnxArtifact
    return kind(path, precision, native=native, threads=threads)


def _ports(root: ET.Element) -> dict[str, tuple[ET.Element, ET.Element]]:
    """Returns the layer and the port of every value that has a name, in order."""
    found = {}
    for layer in root.iterfind("layers/layer"):
        if layer.attrib["type"] in ("Const", "Parameter"):
            continue
        for port in layer.iterfind("output/port"):
            for name in port.attrib.get("names", "").split(","):
                if name:
                    found[name] = layer, port
    return found


def _share(source: Path, target: Path) -> None:
    """Puts a file at another place, by a link where the disk allows one."""
    if not source.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
