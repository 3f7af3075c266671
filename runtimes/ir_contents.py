"""Looks through an OpenVINO IR before OpenVINO sees it: what a bundle's artifact may hold.

No tokexport writes a layer with a graph within it, as ``Loop``, ``TensorIterator`` and ``If`` are:
one without an end cannot be interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.parsers import expat

from tokexport.runtimes.onnx_contents import ContentsError
from tokexport.runtimes.regular_files import open_regular

_REFUSED: Final = {"If", "Loop", "TensorIterator"}
#: Elements within elements, and all of them: an IR has a dozen levels, and twenty lines a layer.
_DEEPEST: Final = 64
_MOST_ELEMENTS: Final = 10_000_000
_CHUNK: Final = 1 << 20


def check_ir(path: Path) -> None:
    """Looks through the ``.xml`` of an IR.

    Args:
        path: The file; the ``.bin`` of its weights lies beside it.

    Raises:
        ContentsError: It is no XML, declares entities, nests deeper than an IR does, runs a graph
            within a layer, or has weights outside of the ``.bin``.
        OSError: It cannot be read.
    """
    weights = path.with_suffix(".bin")
    _Reader(weights.stat().st_size if weights.is_file() else 0).read(path)


class _Reader:
    """Reads an IR element by element, and keeps none."""

    def __init__(self, weight_bytes: int) -> None:
        self._weight_bytes = weight_bytes
        self._depth = 0
        self._elements = 0

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

    def _doctype(self, *_: object) -> None:
        raise ContentsError("it declares entities")

    def _begin(self, name: str, given: Mapping[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > _DEEPEST or self._elements > _MOST_ELEMENTS:
            raise ContentsError("its elements are more, or deeper in one another, than in an IR")
        if name == "layer" and given.get("type") in _REFUSED:
            raise ContentsError(f"a layer runs a graph of its own: {given['type']}")
        if name == "data" and "offset" in given and "size" in given:
            self._within(given["offset"], given["size"])

    def _within(self, offset: str, size: str) -> None:
        try:
            begin, length = int(offset), int(size)
        except ValueError as error:
            raise ContentsError("the place of a constant is no number") from error
        if begin < 0 or length < 0 or begin + length > self._weight_bytes:
            raise ContentsError("a constant lies outside of the file of weights")

    def _end(self, name: str) -> None:
        self._depth -= 1
