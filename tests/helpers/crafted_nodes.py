"""Nodes of the domain whose attributes, shapes or indices no exporter would write.

Each starts as a call that is right; one to three things of it are then changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

import numpy as np
from helpers.token_cases import Array, rows, values
from onnx import TensorProto, helper

from tokexport.graph_passes.onnx_passes.fuse.pack_integer_linears import packed_bytes
from tokexport.graph_passes.onnx_passes.fuse.pack_linears import packed_panels
from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel
from tokexport.graph_passes.ops import onnx_functions as functions

#: What a count is replaced with: products of two or three of these leave 64 bits.
COUNTS: Final = (
    *(-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 7, 31, 33, 255, 2**16, 2**24, 2**24 + 1),
    *(2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**33, 2**61, 2**62, 2**62 + 1, 2**63 - 2, 2**63 - 1),
)
#: Heads and their depth whose product, or whose product with a size, leaves 64 bits or is small.
HEADS: Final = (
    (4, 2**62),
    (2**62, 4),
    (2**32, 2**32),
    (2**33, 2**31),
    (2**61, 8),
    (0, 2**24),
    (8, 0),
)
FRACTIONS: Final = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.4e38)
_TYPES: Final = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
    "float64": TensorProto.DOUBLE,
}
_B, _N, _C = 2, 9, 8
_SETS: Final = {"a_start": [1], "b_start": [0], "step": [2]}
_HEADS: Final = {"heads": [2], "depth": [4]}
_NA, _NB, _R = 4, 5, 3


@dataclass(frozen=True)
class Node:
    """A call of one operator.

    Attributes:
        name: The operator.
        inputs: Its arguments in order.
        attributes: Its attributes: lists of counts, or fractions.
    """

    name: str
    inputs: tuple[Array, ...]
    attributes: Mapping[str, Any]

    def model(self) -> bytes:
        """Returns the serialised ONNX model of the node alone, without a body to fall back on."""
        names = [f"in{i}" for i in range(len(self.inputs))]
        results = [f"out{i}" for i in range(len(functions.signatures()[self.name].outputs))]
        letters = [letter for _, letter in functions.signatures()[self.name].outputs]
        node = helper.make_node(
            self.name, names, results, "crafted", domain=functions.DOMAIN, **self.attributes
        )
        graph = helper.make_graph(
            [node],
            "crafted",
            [
                helper.make_tensor_value_info(name, _TYPES[str(array.dtype)], [None] * array.ndim)
                for name, array in zip(names, self.inputs, strict=True)
            ],
            [
                helper.make_tensor_value_info(
                    name, TensorProto.INT64 if letter == "I" else TensorProto.FLOAT, None
                )
                for name, letter in zip(results, letters, strict=True)
            ],
        )
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", functions.OPSET),
                helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION),
            ],
            ir_version=10,
        )
        serialised: bytes = model.SerializeToString()
        return serialised


def sound_nodes() -> list[Node]:
    """Returns a call of every operator that has a kernel for floats, as an exporter writes it."""
    x, size = values(0, _B, _N, _C), 1 + np.abs(values(1, _B, _N, 1))
    match = (rows(2, _B, _NA - _R, _NA), rows(3, _B, _R, _NA), rows(4, _B, _R, _NB))
    a, b = values(5, _B, _NA, _C), values(6, _B, _NB, _C)
    w, bias = packed_panels(values(7, _C, 6)), values(8, 6)
    columns = values(9, _B, _N, 6)
    q = values(10, _B, 2, _N, 4)
    q_start, k_start = {"q_start": [0]}, {"k_start": [0]}
    attend = {"scale": 0.5, **_HEADS, **q_start, **k_start}
    weights = np.abs(values(11, _B, 2, _N, _N))
    forth = rows(12, _B, _NA, _NA, unique=True)
    back = rows(13, _B, _NB, _NB, unique=True)
    both = (
        *(forth[:, _R:].copy(), forth[:, :_R].copy(), rows(14, _B, _R, _NB)),
        *(back[:, 1:].copy(), back[:, :1].copy(), rows(15, _B, 1, _NA - _R)),
    )
    protected, r = {"protected": [0]}, {"r": [_R]}
    cosine = {**_HEADS, "start": [0], **_SETS, "blocked": [1], **r}
    found: dict[str, tuple[tuple[Array, ...], Mapping[str, Any]]] = {
        "gather_tokens": ((x, rows(16, _B, 4, _N)), {}),
        "bipartite_match": ((values(17, _B, _NA, _NB),), r),
        "bipartite_match_by_score": ((values(17, _B, _NA, _NB),), r),
        "attention": ((q, q, q), {"scale": 0.5}),
        "sized_attention": ((q, q, q, size[..., 0]), {"scale": 0.5}),
        "linear": ((x, w, bias), {}),
        "linear_gelu": ((x, w, bias), {}),
        "linear_add": ((x, w, bias, columns), {}),
        "patch_embed": (
            (values(18, _B, 2, 4, 6), packed_panels(values(7, 8, 6)), bias, values(19, 1, 7, 6)),
            {"patch": [2, 2], "kernel": [-1, 2, 2, 2], "first": [1]},
        ),
        "layer_norm": ((x, values(20, _C), values(21, _C)), {"epsilon": 1e-5}),
        "rows_attention": ((x, x, x), {**attend, "v_start": [0]}),
        "rows_sized_attention": ((x, x, x, size[..., 0]), {**attend, "v_start": [0]}),
        "rows_attention_by_size": ((x, x, x, size), {**attend, "v_start": [0]}),
        "attention_weights": ((x, x), attend),
        "sized_attention_weights": ((x, x, size[..., 0]), attend),
        "attention_weights_by_size": ((x, x, size), attend),
        "cosine_match": ((x,), cosine),
        "merge_by_size": ((x, size, *match), {**protected, **_SETS}),
        "cosine_merge_norm": (
            (x, x, size, values(20, _C), values(21, _C)),
            {**cosine, **protected, "epsilon": 1e-5},
        ),
        "fusion_criteria": ((weights, size), {"info_power": 0.05, "size_power": 0.5}),
        "scored_match": ((x, size[..., 0]), {**_SETS, **r}),
        "match_back": ((values(17, _B, _NA, _NB), both[0]), {"r": [1]}),
        "places_both_ways": (both, {**protected, **_SETS}),
        "merge_both_ways": ((x, *both), {**protected, **_SETS}),
        "merge_both_ways_by_weight": ((x, size, *both), {**protected, **_SETS}),
        "ahead_attention": (
            (weights, x, rows(22, _B, _N, _N), size, *both),
            {**_HEADS, "v_start": [0], **protected, **_SETS},
        ),
    }
    for name in functions.signatures():
        if name.startswith("scatter_tokens_") and "__" not in name:
            found[name] = ((x, rows(23, _B, 4, _N), values(24, _B, 4, _C)), {})
        if name.startswith("merge_tokens_") and "__" not in name:
            found[name] = ((a, b, *match), {})
    return [Node(name, inputs, attributes) for name, (inputs, attributes) in found.items()]


def sound_integer_nodes() -> list[Node]:
    """Returns a call of every operator in bytes, which not every processor has a kernel for."""
    x, bias, columns = values(0, _B, _N, _C), values(8, 6), values(9, _B, _N, 6)
    integers, scales = per_channel(values(7, _C, 6))
    inputs = (x, packed_bytes(integers), scales, bias)
    return [
        Node("integer_linear", inputs, {}),
        Node("integer_linear_gelu", inputs, {}),
        Node("integer_linear_add", (*inputs, columns), {}),
    ]


def crafted_nodes(seed: int, count: int) -> Iterator[Node]:
    """Draws nodes, those of all operators in turn."""
    random, sound = Random(seed), sound_nodes()
    for i in range(count):
        yield changed(sound[i % len(sound)], random)


def changed(node: Node, random: Random) -> Node:
    """Returns a node of which one to three things are others."""
    for _ in range(random.choice((1, 1, 2, 3))):
        node = _changed(node, random)
    return node


def _changed(node: Node, random: Random) -> Node:
    if "heads" in node.attributes and random.random() < 0.3:
        heads, depth = random.choice(HEADS)
        return replace(node, attributes={**node.attributes, "heads": [heads], "depth": [depth]})
    if node.attributes and random.random() < 0.7:
        name = random.choice([*node.attributes])
        return replace(node, attributes={**node.attributes, name: _drawn(node, name, random)})
    position = random.randrange(len(node.inputs))
    array = node.inputs[position]
    if array.dtype == np.int64 and random.random() < 0.5:
        array = array.copy()
        array.flat[: random.randint(1, max(array.size, 1))] = random.choice(COUNTS)
    elif random.random() < 0.2:
        array = array.copy() if array.dtype != np.float32 else array * np.float32("nan")
    else:
        array = _of_another_shape(array, random)
    inputs = (*node.inputs[:position], array, *node.inputs[position + 1 :])
    return replace(node, inputs=inputs)


def _drawn(node: Node, name: str, random: Random) -> Any:
    value = node.attributes[name]
    if not isinstance(value, list):
        return random.choice(FRACTIONS)
    if random.random() < 0.1:
        return [random.choice(COUNTS) for _ in range(random.randint(1, 5))]
    value = [*value]
    value[random.randrange(len(value))] = random.choice(COUNTS)
    return value


def _of_another_shape(array: Array, random: Random) -> Array:
    """Returns numbers in a shape with an axis more or less, or one of another length."""
    shape = [*array.shape] or [1]
    axis = random.randrange(len(shape))
    way = random.randrange(5)
    if way == 0:
        del shape[axis]
    elif way == 1:
        shape.insert(axis, random.choice((0, 1, 2)))
    elif way == 2:
        shape[axis] = 0
        shape[random.randrange(len(shape))] = random.choice((0, 2**20, 2**31))
    else:
        shape[axis] = random.choice((0, 1, 2, 3, 40))
    if np.prod(shape, dtype=object) > 2**16:  # an axis of an empty tensor was that long
        shape[axis] = 0
    if np.prod(shape, dtype=object) == 0:
        return np.empty(shape, array.dtype)
    return np.resize(array, shape)
