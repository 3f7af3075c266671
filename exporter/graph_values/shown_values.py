"""Runs an artifact with one more output, so that what its runtime fuses elsewhere stays fused."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.graph_values.given_values import computed_values, expose, give_as
from tokexport.exporter.graph_values.suspect import Values
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import KERNEL_CALLS
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec

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
    def shapes(self) -> Mapping[str, tuple[int, ...] | None]:
        """The shape of every value that can be shown, by name and in order; None if not known."""

    @abstractmethod
    def read_for(self, name: str) -> Sequence[str]:
        """Returns the values that the node which computes a value reads; '' for one unnamed."""

    @abstractmethod
    def write(
        self, folder: Path, shown: Sequence[str], given: Mapping[str, TensorSpec] | None = None
    ) -> Path:
        """Writes the artifact with further outputs and inputs, and returns its file.

        Args:
            folder: Where it goes.
            shown: The values that become outputs, in order.
            given: The new input that the readers of a value read, by the name of the value.
        """

    def outputs(self, inputs: Sequence[Values]) -> list[Values]:
        """Returns the outputs, by batch."""
        with self.opened(self.path) as runner:
            return [runner.run(one) for one in inputs]

    def show(self, name: str, inputs: Sequence[Values]) -> Shown:
        """Returns a value beside the outputs, by batch."""
        with scratch_folder() as folder, self.opened(self.write(folder, [name])) as runner:
            last = runner.outputs[-1].name
            found = [runner.run(one) for one in inputs]
        values = [one[last] for one in found]
        return Shown(values, [{n: a for n, a in one.items() if n != last} for one in found])

    def opened(self, path: Path) -> WorkerRunner:
        """Opens a file that was written from it, as it is opened itself."""
        opening = Opening(path, precision=self.precision, threads=self._threads, native=self.native)
        return WorkerRunner(opening)


class OnnxArtifact(Artifact):
    """An ONNX file."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...] | None]:
        """The shape of every value that can be shown, by name and in order; None if not known."""
        values = computed_values(ir.load(self.path))
        return {name: _static(value.shape) for name, value in values.items()}

    def read_for(self, name: str) -> Sequence[str]:
        """Returns the values that the node which computes a value reads; '' for one unnamed."""
        node = computed_values(ir.load(self.path))[name].producer()
        return [] if node is None else [(one and one.name) or "" for one in node.inputs]

    def write(
        self, folder: Path, shown: Sequence[str], given: Mapping[str, TensorSpec] | None = None
    ) -> Path:
        """Writes the artifact with further outputs and inputs, and returns its file."""
        model = ir.load(self.path)
        expose(model, shown)
        give_as(model, given or {})
        path = folder / self.path.name
        save_onnx(model, path)
        return path


class IrArtifact(Artifact):
    """The IR of OpenVINO, whose ports keep the names of the values that it was converted from."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...] | None]:
        """The shape of every value that can be shown, by name and in order; None if not known."""
        ports = _ports(ET.parse(self.path).getroot())
        sizes = {name: [int(dim.text or -1) for dim in port] for name, (_, port) in ports.items()}
        return {
            name: tuple(one) if min(one, default=0) >= 0 else None for name, one in sizes.items()
        }

    def read_for(self, name: str) -> Sequence[str]:
        """Returns the values that the node which computes a value reads; '' for one unnamed."""
        root = ET.parse(self.path).getroot()
        ports = _ports(root)
        layer, _ = ports[name]
        names = {(one.attrib["id"], port.attrib["id"]): name for name, (one, port) in ports.items()}
        read = {
            int(edge.attrib["to-port"]): (edge.attrib["from-layer"], edge.attrib["from-port"])
            for edge in root.iterfind("edges/edge")
            if edge.attrib["to-layer"] == layer.attrib["id"]
        }
        return [names.get(read[place], "") for place in sorted(read)]

    def write(
        self, folder: Path, shown: Sequence[str], given: Mapping[str, TensorSpec] | None = None
    ) -> Path:
        """Writes the artifact with further outputs and inputs, and returns its file."""
        tree = ET.parse(self.path)
        graph = _IrGraph(tree.getroot())
        for name, spec in (given or {}).items():
            graph.give(name, spec)
        for name in shown:
            graph.show(name)
        graph.rename_kernel_inputs({name: spec.name for name, spec in (given or {}).items()})
        path = folder / self.path.name
        tree.write(path, encoding="utf-8", xml_declaration=True)
        _share(self.path.with_suffix(".bin"), path.with_suffix(".bin"))
        return path


class _IrGraph:
    """The layers and edges of an IR, under change."""

    def __init__(self, root: ET.Element) -> None:
        self._root, self._ports = root, _ports(root)
        layers, edges = root.find("layers"), root.find("edges")
        assert layers is not None
        assert edges is not None
        self._layers, self._edges = layers, edges
        self._next = 1 + max(int(one.attrib["id"]) for one in layers)

    def show(self, name: str) -> None:
        """Makes a value a further output."""
        layer, port = self._ports[name]
        result = self._layer(f"{_SHOWN}_{name}", "Result")
        kind = {"id": "0", "precision": port.attrib["precision"]}
        _add_port(ET.SubElement(result, "input"), kind, port)
        ends = {"from-layer": layer.attrib["id"], "from-port": port.attrib["id"]}
        to = {"to-layer": result.attrib["id"], "to-port": "0"}
        ET.SubElement(self._edges, "edge", {**ends, **to})

    def give(self, name: str, spec: TensorSpec) -> None:
        """Makes the readers of a value read a new input; outputs stay as they are."""
        layer, port = self._ports[name]
        kind = port.attrib["precision"]
        made = self._layer(spec.name, "Parameter")
        shape = ",".join(map(str, spec.shape))
        ET.SubElement(made, "data", shape=shape, element_type=kind.lower())
        named = {"id": "0", "precision": kind, "names": spec.name}
        _add_port(ET.SubElement(made, "output"), named, port)
        results = {one.attrib["id"] for one in self._layers if one.attrib["type"] == "Result"}
        for edge in self._edges:
            ends = edge.attrib["from-layer"], edge.attrib["from-port"]
            is_read = ends == (layer.attrib["id"], port.attrib["id"])
            if is_read and edge.attrib["to-layer"] not in results:
                edge.attrib.update({"from-layer": made.attrib["id"], "from-port": "0"})

    def rename_kernel_inputs(self, names: Mapping[str, str]) -> None:
        """Makes the native kernels that read values read their new inputs too."""
        for one in self._root.iter(KERNEL_CALLS):
            calls = json.loads(one.attrib.get("value", "[]"))
            for given in (given for call in calls for given in call["inputs"]):
                if given.get("name") in names:
                    given["name"] = names[given["name"]]
            one.attrib["value"] = json.dumps(calls)

    def _layer(self, name: str, kind: str) -> ET.Element:
        number, self._next = self._next, self._next + 1
        return ET.SubElement(
            self._layers, "layer", id=str(number), name=name, type=kind, version="opset1"
        )


def _add_port(parent: ET.Element, attributes: dict[str, str], like: ET.Element) -> None:
    """Adds a port of the sizes of another."""
    port = ET.SubElement(parent, "port", attributes)
    for dim in like.findall("dim"):
        ET.SubElement(port, "dim").text = dim.text


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


def _static(shape: ir.Shape | None) -> tuple[int, ...] | None:
    return shape.numpy() if shape is not None and shape.is_static() else None


def _share(source: Path, target: Path) -> None:
    """Puts a file at another place, by a link where the disk allows one."""
    if not source.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
