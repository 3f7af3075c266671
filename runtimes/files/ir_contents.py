"""Checks an OpenVINO IR before OpenVINO reads it: only what a bundle's artifact may hold.

tokexport writes no layer with a graph inside (``Loop``, ``TensorIterator``, ``If``): an endless one
cannot be interrupted. Nor does it write layers with state. With these layers, with inputs that
nothing feeds, and with some layers of too few inputs OpenVINO reads foreign memory without an
error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.parsers import expat

from tokexport.runtimes.files.onnx_contents import ContentsError
from tokexport.runtimes.files.regular_files import open_regular

_REFUSED: Final = {
    **dict.fromkeys(("If", "Loop", "TensorIterator"), "runs a graph of its own"),
    **dict.fromkeys(("Assign", "ReadValue"), "keeps something from run to run"),
}
#: Layers that read nothing.
_SOURCES: Final = {"Const", "Parameter"}
#: The number of inputs of layers for which OpenVINO does not check it.
_FEWEST: Final = {"Broadcast": 2, "Slice": 4}
#: Layers whose second input is a constant of whole numbers: of others OpenVINO reads axes too.
_CONSTANT_AXES: Final = {"Squeeze", "Unsqueeze"}
#: Elements within elements, and all of them: an IR has a dozen levels, and twenty lines a layer.
_DEEPEST: Final = 64
_MOST_ELEMENTS: Final = 10_000_000
_CHUNK: Final = 1 << 20
#: How the names of a ladder's artifacts differ from that of the first.
_RUNG: Final = re.compile(r"\.batch\d+$")


def check_ir(path: Path) -> None:
    """Checks the ``.xml`` of an IR.

    Args:
        path: The file; the file of its weights lies beside it.

    Raises:
        ContentsError: It is no XML, declares entities, nests deeper than an IR does, runs a graph
            within a layer, has layers with state, layers whose inputs do not match its edges or
            axes that are no constants, or weights outside of the ``.bin``.
        OSError: It cannot be read.
    """
    weights = weights_beside(path)
    _Reader(weights.stat().st_size if weights.is_file() else 0).read(path)


def weights_beside(path: Path) -> Path:
    """Returns the file of an IR's weights, which the IRs of a ladder share.

    Args:
        path: The ``.xml``: ``model.xml`` and ``model.batch8.xml`` have ``model.bin``.
    """
    return path.with_name(f"{_RUNG.sub('', path.stem)}.bin")


class _Reader:
    """Reads an IR element by element, and keeps only the numbers of layers and ports."""

    def __init__(self, weight_bytes: int) -> None:
        self._weight_bytes = weight_bytes
        self._elements = 0
        self._within: list[str] = []
        self._layer = ""
        self._sources: set[str] = set()
        self._others: dict[str, str] = {}
        self._read: set[tuple[str, str]] = set()
        self._fed: set[tuple[str, str]] = set()
        self._second: dict[str, str] = {}
        self._constants: set[str] = set()

    def read(self, path: Path) -> None:
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            with open_regular(path) as file:
                while chunk := file.read(_CHUNK):
                    parser.Parse(chunk, False)
                parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise ContentsError(f"it is no XML: {error}") from error
        inputs = Counter(layer for layer, _ in self._read)
        if self._read != self._fed or inputs.keys() != self._others.keys():
            raise ContentsError("the inputs of its layers do not match its edges")
        for layer, kind in self._others.items():
            if inputs[layer] < _FEWEST.get(kind, 1):
                raise ContentsError(f"a layer has too few inputs: {kind}")
            second = self._second.get(layer)
            if kind in _CONSTANT_AXES and second is not None and second not in self._constants:
                raise ContentsError(f"the axes of a layer are no constant: {kind}")

    def _doctype(self, *_: object) -> None:
        raise ContentsError("it declares entities")

    def _begin(self, name: str, given: Mapping[str, str]) -> None:
        self._elements += 1
        if len(self._within) >= _DEEPEST or self._elements > _MOST_ELEMENTS:
            raise ContentsError("it has more elements, or nests them deeper, than an IR")
        if name == "layer":
            self._begin_layer(given.get("id", ""), given.get("type", ""))
        elif name == "port" and self._within[-1:] == ["input"]:
            self._add(self._read, self._layer, given.get("id", ""))
        elif name == "edge":
            self._add(self._fed, given.get("to-layer", ""), given.get("to-port", ""))
            if given.get("to-port") == "1":
                self._second[given.get("to-layer", "")] = given.get("from-layer", "")
        elif name == "data" and "offset" in given and "size" in given:
            self._hold_to_weights(given["offset"], given["size"])
            if given.get("element_type", "").startswith(("i", "u")):
                self._constants.add(self._layer)
        self._within.append(name)

    def _begin_layer(self, number: str, kind: str) -> None:
        if kind in _REFUSED:
            raise ContentsError(f"a layer {_REFUSED[kind]}: {kind}")
        if number in self._sources or number in self._others:
            raise ContentsError(f"two layers have the number {number:.20}")
        self._layer = number
        if kind in _SOURCES:
            self._sources.add(number)
        else:
            self._others[number] = kind

    @staticmethod
    def _add(ports: set[tuple[str, str]], layer: str, port: str) -> None:
        if (layer, port) in ports:
            raise ContentsError(f"port {port} of layer {layer} stands twice")
        ports.add((layer, port))

    def _hold_to_weights(self, offset: str, size: str) -> None:
        try:
            begin, length = int(offset), int(size)
        except ValueError as error:
            raise ContentsError("the place of a constant is no number") from error
        if begin < 0 or length < 0 or begin + length > self._weight_bytes:
            raise ContentsError("a constant lies outside of the file of weights")

    def _end(self, name: str) -> None:
        self._within.pop()
