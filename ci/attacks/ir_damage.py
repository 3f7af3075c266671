"""Damages the OpenVINO IR of a bundle: its XML, its layers, its weights and kernel calls."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final
from xml.etree import ElementTree

from attacks.manifest_damage import places
from attacks.values import FRACTIONS, count, damaged, text, value

_TYPES: Final = (
    *("Loop", "TensorIterator", "If", "Constant", "Parameter", "Result", "ReadValue", "Assign"),
    *("Reshape", "Broadcast", "Tile", "Gather", "GatherND", "GatherElements", "ScatterUpdate"),
    *("ScatterElementsUpdate", "ScatterNDUpdate", "TopK", "StridedSlice", "Slice", "Split"),
    *("VariadicSplit", "Concat", "Transpose", "Convolution", "GroupConvolution", "MaxPool"),
    *("AvgPool", "MatMul", "Add", "Select", "Range", "NonZero", "OneHot", "Pad", "Interpolate"),
    *("LSTMSequence", "NonMaxSuppression", "DetectionOutput", "Proposal", "RegionYolo", "Einsum"),
    *("ConvertLike", "Convert", "SoftMax", "Softmax", "ReduceSum", "ShapeOf", "Squeeze"),
    *("Unsqueeze", "TokenOperator", "Subgraph", "RandomUniform", "ExperimentalDetectronTopKROIs"),
    *(
        "EmbeddingSegmentsSum",
        "CTCLoss",
        "ROIAlign",
        "DFT",
        "IRDFT",
        "RDFT",
        "Unique",
        "FakeQuantize",
    ),
)
_SETS: Final = tuple(f"opset{number}" for number in (0, 1, 4, 8, 13, 16, 99)) + ("", "extension")
_ENTITIES: Final = (
    '<!DOCTYPE a [<!ENTITY b "c">]>',
    '<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]>',
    '<!DOCTYPE a SYSTEM "http://127.0.0.1/none">',
    '<?xml version="1.0" encoding="UTF-16"?>',
    "<![CDATA[x]]>",
    "<!--" + "-" * 1000,
)


def damage_ir(random: Random, bundle: Path) -> str:
    """Damages the IR of a bundle; returns what was done."""
    path = bundle / "model.xml"
    way = random.random()
    if way < 0.12:
        weights = bundle / "model.bin"
        content, done = damaged(weights.read_bytes(), random)
        weights.write_bytes(content)
        return f"model.bin: {done}"
    if way < 0.25:
        content, done = _as_text(path.read_bytes(), random)
        path.write_bytes(content)
        return f"text of model.xml: {done}"
    tree = ElementTree.parse(path)
    root = tree.getroot()
    said = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        said.append(random.choice(_WAYS)(root, random))
    try:
        tree.write(path, encoding="utf-8")
    except (ValueError, UnicodeEncodeError):  # a text that XML has no characters for
        path.write_bytes(ElementTree.tostring(root, encoding="us-ascii", method="html"))
    return f"model.xml: {'; '.join(said)}"


def _as_text(content: bytes, random: Random) -> tuple[bytes, str]:
    at = content.index(b"<layers")
    way = random.randrange(4)
    if way == 0:
        extra = random.choice(_ENTITIES).encode()
        return content[:at] + extra + content[at:], f"{extra!r:.60}"
    if way == 1:
        levels = random.choice((10, 70, 5_000, 300_000))
        return content[:at] + b"<a>" * levels + b"</a>" * levels + content[at:], f"{levels} levels"
    if way == 2:
        long = b' x="' + b"y" * random.choice((10**4, 10**7)) + b'"'
        return content.replace(b"<layer ", b"<layer" + long + b" ", 1), f"{len(long)} characters"
    return damaged(content, random)


def _elements(root: Any) -> list[tuple[Any, Any]]:
    """Returns every element with the one that holds it."""
    return [(parent, one) for parent in root.iter() for one in parent]


def _number_or_text(random: Random) -> str:
    way = random.random()
    if way < 0.5:
        return str(count(random))
    if way < 0.7:
        return str(random.choice(FRACTIONS))
    if way < 0.85:
        return ",".join(str(count(random)) for _ in range(random.randrange(1, 6)))
    return text(random)


def _attribute(root: Any, random: Random) -> str:
    """Changes an attribute of an element."""
    wanted = random.choice(("data", "data", "data", "layer", "port", "edge", None))
    found = [one for _, one in _elements(root) if one.tag == (wanted or one.tag) and one.attrib]
    one = random.choice(found)
    name = random.choice([*one.attrib])
    way = random.randrange(8)
    if way == 0:
        del one.attrib[name]
        return f"{one.tag} without {name}"
    if way == 1:
        other = random.choice(found)
        one.attrib[name] = other.attrib.get(name, "")
    elif name == "element_type" or name == "precision":
        one.attrib[name] = random.choice(
            (
                "f32",
                "f16",
                "i64",
                "i32",
                "u1",
                "u4",
                "i4",
                "nf4",
                "string",
                "boolean",
                "f64",
                "FP32",
            )
        )
    else:
        one.attrib[name] = _number_or_text(random)
    return f"{one.tag}.{name} = {one.attrib[name]!r:.40}"


def _layer(root: Any, random: Random) -> str:
    """Changes the type of a layer, or its set of operators."""
    layers = [one for _, one in _elements(root) if one.tag == "layer"]
    one = random.choice(layers)
    before = one.attrib.get("type", "")
    if random.random() < 0.3:
        one.attrib["version"] = random.choice(_SETS)
        return f"{before} of {one.attrib['version']!r}"
    one.attrib["type"] = random.choice(
        _TYPES if random.random() < 0.7 else [other.attrib.get("type", "") for other in layers]
    )
    return f"{before} is {one.attrib['type']}"


def _size(root: Any, random: Random) -> str:
    """Changes what a port says of its shape."""
    sizes = [one for _, one in _elements(root) if one.tag == "dim"]
    if not sizes:
        return "there is no size"
    one = random.choice(sizes)
    one.text = _number_or_text(random)
    return f"a size is {one.text!r:.40}"


def _shape_of_constant(root: Any, random: Random) -> str:
    """Changes the shape of a constant with the place of its numbers."""
    found = [one for _, one in _elements(root) if one.tag == "data" and "offset" in one.attrib]
    if not found:
        return "there is no constant"
    one = random.choice(found)
    sizes = [part for part in one.attrib.get("shape", "").split(",") if part.strip()] or ["1"]
    sizes[random.randrange(len(sizes))] = str(count(random))
    one.attrib["shape"] = ",".join(sizes if random.random() < 0.7 else sizes * 2)
    if random.random() < 0.3:
        one.attrib["size"] = str(random.choice((0, 1, 4, 2**40, count(random))))
    return f"a constant of shape {one.attrib['shape']!r:.40}"


def _structure(root: Any, random: Random) -> str:
    """Takes elements away, doubles them, moves them or changes their order."""
    parent, one = random.choice(_elements(root))
    way = random.randrange(5)
    if way == 0:
        parent.remove(one)
        return f"{one.tag} is gone"
    if way == 1:
        times = random.choice((1, 10, 1000))
        parent.extend([copy.deepcopy(one) for _ in range(times)])
        return f"{one.tag} {times} times more"
    if way == 2:
        _, other = random.choice(_elements(root))
        other.append(copy.deepcopy(one))
        return f"{one.tag} within {other.tag}"
    if way == 3:
        parent[:] = parent[::-1]
        return f"{parent.tag} backwards"
    one.tag = random.choice(("data", "layer", "port", "edge", "dim", "input", "output", "x"))
    return f"an element is called {one.tag}"


def _edge(root: Any, random: Random) -> str:
    """Leads an edge elsewhere."""
    edges = [one for _, one in _elements(root) if one.tag == "edge"]
    if not edges:
        return "there is no edge"
    one = random.choice(edges)
    name = random.choice([*one.attrib] or ["from-layer"])
    others = [other.attrib.get(name, "") for other in edges]
    one.attrib[name] = random.choice((*others, "-1", "99999", str(count(random))))
    return f"edge {name} = {one.attrib[name]}"


def _calls(root: Any, random: Random) -> str:
    """Changes the calls that kernels may compute."""
    found = [one for _, one in _elements(root) if "kernel_calls" in str(one.tag)]
    if not found:
        return "it names no kernel calls"
    try:
        calls = json.loads(found[0].attrib["value"])
    except (ValueError, RecursionError, KeyError):
        return "its kernel calls were damaged before"
    way = random.randrange(10)
    if way == 0:
        said = random.choice(("", "[", "{}", "[[]]", "null", "[null]", "[" * 10**5, "NaN"))
        found[0].attrib["value"] = said
        return f"kernel calls are {said:.20}"
    way_to: Any = ()
    if way == 1:
        calls = calls * random.choice((0, 2, 500))
    for _ in range(random.choice((1, 1, 2, 3))):
        ways = [*places(calls)]
        if not ways:
            break
        way_to = random.choice(ways)
        holder: Any = calls
        for part in way_to[:-1]:
            holder = holder[part]
        before = holder[way_to[-1]]
        if isinstance(before, int | float) and random.random() < 0.8:
            holder[way_to[-1]] = random.choice((count(random), random.choice(FRACTIONS)))
        elif isinstance(before, str) and random.random() < 0.7:
            texts = [one for one in map(str, _texts(calls)) if one]
            holder[way_to[-1]] = random.choice((*texts, text(random)))
        elif random.random() < 0.3:
            del holder[way_to[-1]]
        else:
            holder[way_to[-1]] = value(random)
    found[0].attrib["value"] = json.dumps(calls)
    return f"kernel calls, {'.'.join(map(str, way_to)) or 'none'}"


def _texts(data: Any) -> list[str]:
    """Returns all texts of parsed JSON."""
    if isinstance(data, str):
        return [data]
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [one for part in inner for one in _texts(part)]


_WAYS: Final[tuple[Callable[[Any, Random], str], ...]] = (
    *(_attribute, _attribute, _attribute, _layer, _layer, _size, _shape_of_constant),
    *(_structure, _edge, _edge, _calls, _calls, _calls),
)
