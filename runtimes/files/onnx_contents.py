"""Checks an ONNX file before a runtime reads it: only what a bundle's artifact may hold.

A device has no onnx package, so the file is read as a Protocol Buffers message (onnx.proto;
encoding: protobuf.dev), in place and without recursion. tokexport writes no graph within a node:
    ``If``, ``Loop`` and ``Scan`` run other graphs, and an endless one cannot be interrupted.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tokexport.runtimes.files.regular_files import open_regular

#: The most nodes of a model with its functions inlined, and the deepest nesting of functions.
_MOST_NODES: Final = 200_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: The fields of each message that hold messages, by their numbers.
_WITHIN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
#: Of attributes, those that are graphs.
_GRAPHS: Final = {6, 11}
_EXTERNAL: Final = 1
#: Fields of a model.
_IR_VERSION: Final = 1
_OPSETS: Final = 8


class ContentsError(ValueError):
    """A model file is of another format, or holds what no artifact of a bundle does."""


@dataclass
class OnnxContents:
    """The operators and files that an ONNX file refers to.

    Attributes:
        operators: Every operator that is called, as ``domain:Type``, or ``Type`` of ONNX's own.
        files: The files that weights lie in, as the model names them.
        function_calls: How many nodes of the graph call a function of the file: those that native
            kernels may compute.
        ir_version: The version of the file's format.
        opset: The newest version of ONNX's own operators that it asks for.
    """

    operators: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    function_calls: int = 0
    ir_version: int = 0
    opset: int = 0


def onnx_contents(path: Path) -> OnnxContents:
    """Checks an ONNX file.

    Args:
        path: The file.

    Raises:
        ContentsError: It is no ONNX file, a node holds a graph, a function calls itself, or a
            tensor declares more numbers than the file holds.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        if file.seek(0, 2) == 0:
            raise ContentsError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Walk(content, path.parent).contents()


@dataclass
class _Body:
    """The nodes of the graph or of a function.

    Attributes:
        nodes: How many.
        calls: How often each operator is called, by domain and name.
        sizes: Of each, how many values its calls read and give.
        takes: Of a function, how many values it reads and gives.
    """

    nodes: int = 0
    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    sizes: dict[tuple[str, str], set[tuple[int, int]]] = field(default_factory=dict)
    takes: tuple[int, int] = (0, 0)


class _Walk:
    """One walk over a file."""

    def __init__(self, content: mmap.mmap, folder: Path) -> None:
        self._content = content
        self._folder = folder
        self._found = OnnxContents()
        self._bodies: dict[tuple[str, str], _Body] = {}

    def contents(self) -> OnnxContents:
        main = _Body()
        graphs = 0
        for number, kind, begin, end in self._fields(0, len(self._content)):
            if number == _IR_VERSION and kind == _VARINT:
                self._found.ir_version = self._varint(begin, end)[0]
            elif number == _OPSETS:
                self._must(kind == _BYTES, "a field has another type than it has in ONNX")
                self._opset(begin, end)
            within = _WITHIN["model"].get(number)
            if within is None:
                continue
            self._must(kind == _BYTES, "a field has another type than it has in ONNX")
            if within == "graph":
                graphs += 1
                self._body(begin, end, within, main)
            else:
                self._function(begin, end)
        self._must(graphs == 1, f"it has {graphs} graphs")
        self._count(main)
        calls = main.calls.items()
        self._found.function_calls = sum(times for name, times in calls if name in self._bodies)
        return self._found

    def _opset(self, begin: int, end: int) -> None:
        """Keeps the version of an opset, where it is that of ONNX's own operators."""
        domain, version = "", 0
        for number, kind, first, last in self._fields(begin, end):
            if number == 1 and kind == _BYTES:
                domain = self._text(first, last)
            elif number == 2 and kind == _VARINT:
                version = self._varint(first, last)[0]
        if domain in ("", "ai.onnx"):
            self._found.opset = max(self._found.opset, version)

    def _function(self, begin: int, end: int) -> None:
        name, domain = self._texts(begin, end, 1, 10)
        key = domain, name
        self._must(key not in self._bodies, f"function {name!r} stands twice")
        numbers = [field[0] for field in self._fields(begin, end)]
        self._bodies[key] = _Body(takes=(numbers.count(4), numbers.count(5)))
        self._body(begin, end, "function", self._bodies[key])

    def _body(self, begin: int, end: int, message: str, body: _Body) -> None:
        """Walks a graph or function: its nodes, and their and its own tensors."""
        ahead = [(message, begin, end)]
        while ahead:
            message, begin, end = ahead.pop()
            if message == "tensor":
                self._tensor(begin, end)
                continue
            if message == "node":
                self._node(begin, end, body)
            for number, kind, first, last in self._fields(begin, end):
                if message == "attribute" and number in _GRAPHS:
                    raise ContentsError("a node holds a graph of its own, as If, Loop and Scan do")
                within = _WITHIN[message].get(number)
                if within is not None:
                    self._must(kind == _BYTES, "a field has another type than it has in ONNX")
                    ahead.append((within, first, last))

    def _node(self, begin: int, end: int, body: _Body) -> None:
        name, domain = self._texts(begin, end, 4, 7)
        domain = "" if domain == "ai.onnx" else domain
        body.nodes += 1
        body.calls[domain, name] = body.calls.get((domain, name), 0) + 1
        body.sizes.setdefault((domain, name), set()).add(self._values(begin, end))
        self._found.operators.add(f"{domain}:{name}" if domain else name)

    def _values(self, begin: int, end: int) -> tuple[int, int]:
        """Returns how many values a node reads and gives; those without a name it does not read."""
        found = [0, 0]
        for number, _, first, last in self._fields(begin, end):
            if number in (1, 2):
                found[number - 1] += number == 2 or last > first
        return found[0], found[1]

    def _tensor(self, begin: int, end: int) -> None:
        """Checks the size that a tensor declares against its bytes."""
        external, count, location = False, 1, ""
        for number, kind, first, last in self._fields(begin, end):
            if number == 1:
                for size in self._numbers(kind, first, last):
                    self._must(size < 2**63, "a tensor has a negative size")
                    count *= size
                    self._must(count < 2**63, "a tensor has more numbers than memory holds")
            elif number == 14:
                external = _EXTERNAL in self._numbers(kind, first, last)
            elif number == 13 and kind == _BYTES:
                key, value = self._texts(first, last, 1, 2)
                if key == "location":
                    self._must(not location, "a tensor lies in two files")
                    location = value
        there = end - begin
        if external:
            self._must(location != "", "a tensor lies in a file without a name")
            self._found.files.add(location)
            there = self._size_of(location)
        # A byte is two numbers of four bits at the most.
        self._must(count <= 2 * there, "a tensor declares more numbers than it has bytes")

    def _size_of(self, location: str) -> int:
        try:
            return (self._folder / location).stat().st_size
        except (OSError, ValueError) as error:
            raise ContentsError(f"its file of weights {location!r:.80} is missing") from error

    def _numbers(self, kind: int, first: int, last: int) -> Iterator[int]:
        """Yields whole numbers, one or packed."""
        if kind == _VARINT:
            yield self._varint(first, last)[0]
            return
        self._must(kind == _BYTES, "a field has another type than it has in ONNX")
        while first < last:
            value, first = self._varint(first, last)
            yield value

    def _count(self, main: _Body) -> None:
        """Checks the number of nodes of the model with its functions inlined."""
        total: dict[tuple[str, str], int] = {}
        for name in self._callees_first():
            total[name] = self._with_calls(self._bodies[name], total)
        self._with_calls(main, total)

    def _with_calls(self, body: _Body, total: dict[tuple[str, str], int]) -> int:
        found = body.nodes
        for name, times in body.calls.items():
            found += times * total.get(name, 0)
            if name in total:
                reads, gives = self._bodies[name].takes
                fits = all(one == reads and other <= gives for one, other in body.sizes[name])
                self._must(fits, f"function {name[1]!r} is called with other values than it takes")
        self._must(found <= _MOST_NODES, f"it has more than {_MOST_NODES:,} nodes")
        return found

    def _callees_first(self) -> list[tuple[str, str]]:
        done: dict[tuple[str, str], bool] = {}
        order: list[tuple[str, str]] = []
        for start in self._bodies:
            ahead = [start]
            while ahead:
                name = ahead[-1]
                if name not in done:
                    done[name] = False
                    for callee in self._bodies[name].calls:
                        if callee in self._bodies:
                            self._must(
                                done.get(callee, True), f"function {callee[1]!r} calls itself"
                            )
                            if callee not in done:
                                ahead.append(callee)
                    continue
                ahead.pop()
                if not done[name]:
                    done[name] = True
                    order.append(name)
        return order

    def _fields(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields the fields of a message: number, wire type, and the place of the value."""
        at = begin
        while at < end:
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            first = at
            if kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind == _BYTES:
                length, first = self._varint(at, end)
                at = first + length
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                raise ContentsError("it is no ONNX file")
            self._must(number > 0 and at <= end, "it is no ONNX file, or ends too early")
            yield number, kind, first, at

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Returns a number of at most 64 bits, and where it ends."""
        value = 0
        for place in range(10):
            if at + place >= end:
                break
            byte = self._content[at + place]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value & (2**64 - 1), at + place + 1
        raise ContentsError("it is no ONNX file, or ends too early")

    def _texts(self, begin: int, end: int, one: int, other: int) -> tuple[str, str]:
        """Returns two text fields of a message, '' for a missing one."""
        found = {one: "", other: ""}
        for number, kind, first, last in self._fields(begin, end):
            if number in found and kind == _BYTES:
                found[number] = self._text(first, last)
        return found[one], found[other]

    def _text(self, first: int, last: int) -> str:
        self._must(last - first <= 4096, "a name is longer than names are")
        return self._content[first:last].decode("utf-8", "replace")

    @staticmethod
    def _must(holds: bool, what: str) -> None:
        if not holds:
            raise ContentsError(what)
