"""Recognises where each token goes in a match of both directions, forth and back.

Before → after, for an index that is computed from the matches alone, by integer operators::

    GatherElements(second, first)  …      →  places_both_ways(kept, src, dst, kept_back, …)

There are many ways to write this, so what counts is what it gives and not how: the operators before
it are run on drawn matches, and have to give the destinations of each. They only move integers and
add constants to them; the draws reach each way that a token can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tokexport.graph_passes.onnx_passes.graph.node_pass import Rewrite, SharingNodePass
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import SPLIT
from tokexport.graph_passes.ops.onnx_functions import DOMAIN, OPSET
from tokexport.graph_passes.pass_report import Reason

#: Operators that move integers, or add constants to them.
_MOVING: Final = frozenset(
    (
        "Add",
        "Concat",
        "Constant",
        "Expand",
        "Gather",
        "GatherElements",
        "Identity",
        "Reshape",
        "ScatterElements",
        "Slice",
        "Squeeze",
        "Unsqueeze",
    )
)
_MOST_NODES: Final = 100

Integers = NDArray[np.int64]


class GatherElements(OpRun):
    """The operator as ONNX defines it; that of onnx 1.23 fails where the two shapes differ."""

    def _run(self, data: Integers, indices: Integers, axis: int = 0) -> tuple[Integers]:
        return (np.take_along_axis(data, indices, axis),)


@dataclass(frozen=True)
class Split:
    """A match of both directions, and the tokens that it splits.

    Attributes:
        merge: A merge by it.
        indices: kept, src and dst of both.
        rows: How many there are of each.
        tokens: B and N.
    """

    merge: ir.Node
    indices: tuple[ir.Value, ...]
    rows: tuple[int, ...]
    tokens: tuple[int, ...]

    def positions(self, name: str) -> Integers:
        """Returns the tokens of the set that begins at an attribute."""
        start, step = (self.merge.attributes.get_ints(one)[0] for one in (name, "step"))
        return np.arange(start, self.tokens[1], step)


class TokenDestinations(SharingNodePass[list[Split]]):
    """Rewrites indices that say where tokens go in a match of both directions."""

    name = "token destinations"
    comes_before = ("ahead attention",)
    domain = DOMAIN
    op_types = ("gather_tokens",)

    def shared(self, graph: ir.Graph) -> list[Split]:
        """Returns the matches of both directions."""
        return _splits(graph)

    def match(self, node: ir.Node, shared: list[Split]) -> Rewrite | Reason | None:
        """Matches an index (B, N) that gives, on drawn matches, the destination of each token."""
        index = node.inputs[1]
        of_all = [
            split for split in shared if index is not None and shape_of(index) == split.tokens
        ]
        if index is None or not of_all:
            return None
        last = index.producer()
        computed = [(split, nodes) for split in of_all if (nodes := _computed(index, split))]
        if last is None or not computed:
            return None  # of something else than a match
        for split, nodes in computed:
            if _gives_destinations(split, nodes, index):
                return partial(_rewrite, last, split)
        return Reason("its index, of a match in both directions, is not where each token goes")


def _splits(graph: ir.Graph) -> list[Split]:
    """Returns the matches that something merges by."""
    found: dict[tuple[ir.Value, ...], Split] = {}
    for node in graph:
        if node.domain != DOMAIN or not node.op_type.startswith("merge_both_ways"):
            continue
        indices = tuple(value for value in node.inputs[-6:] if value is not None)
        shape = shape_of(node.inputs[0]) if node.inputs[0] is not None else None
        shapes = [one for value in indices if (one := shape_of(value)) is not None]
        if shape is not None and len(shapes) == len(indices):
            rows = tuple(one[1] for one in shapes)
            found.setdefault(indices, Split(node, indices, rows, shape[:2]))
    return list(found.values())


def _rewrite(last: ir.Node, split: Split) -> None:
    new = Replacement(last)
    attributes = {name: list(split.merge.attributes.get_ints(name)) for name in SPLIT}
    new.put(new.call("places_both_ways", *split.indices, domain=DOMAIN, outputs=1, **attributes))


def _computed(index: ir.Value, split: Split) -> list[ir.Node] | None:
    """Returns the nodes that compute an index from a split, in order; None for other indices."""
    found: set[ir.Node] = set()
    waiting = [index]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in split.indices or _constant(value) is not None or node in found:
            continue
        if node is None or node.domain != "" or node.op_type not in _MOVING:
            return None
        inputs = [one for one in node.inputs if one is not None]
        if node.op_type == "Add" and not any(_constant(one) is not None for one in inputs):
            return None
        found.add(node)
        waiting += inputs
    last = index.producer()
    if not found or len(found) > _MOST_NODES or last is None or last.graph is None:
        return None
    return [node for node in last.graph if node in found]


def _constant(value: ir.Value) -> NDArray[np.generic] | None:
    constant = ir.convenience.get_const_tensor(value)
    return None if constant is None else constant.numpy()


def _gives_destinations(split: Split, nodes: list[ir.Node], index: ir.Value) -> bool:
    """Returns whether the nodes give the destinations of drawn matches."""
    evaluator = _evaluator(split, nodes, index)
    names = [str(value.name) for value in split.indices]
    for drawn in _drawn(split):
        try:
            (given,) = evaluator.run(None, dict(zip(names, drawn, strict=True)))
        except (IndexError, ValueError):  # no index for every match
            return False
        if not np.array_equal(given, _destinations(split, drawn)):
            return False
    return True


def _evaluator(split: Split, nodes: list[ir.Node], index: ir.Value) -> ReferenceEvaluator:
    read = {value for node in nodes for value in node.inputs if value is not None}
    made = {value for node in nodes for value in node.outputs}
    constants = [
        onnx.numpy_helper.from_array(array, value.name)
        for value in read - made
        if (array := _constant(value)) is not None
    ]
    integers = onnx.TensorProto.INT64
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "destinations",
        [
            onnx.helper.make_tensor_value_info(str(value.name), integers, shape_of(value))
            for value in split.indices
        ],
        [onnx.helper.make_tensor_value_info(str(index.name), integers, shape_of(index))],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    return ReferenceEvaluator(model, new_ops=[GatherElements])


def _drawn(split: Split) -> Iterator[list[Integers]]:
    """Draws matches of a split: to any row, to kept or merged rows of the second, all to one."""
    images = split.tokens[0]
    kept, gone, _, kept_back, gone_back, _ = split.rows
    generator = np.random.default_rng(0)

    def ranked(left: int, taken: int) -> tuple[Integers, Integers]:
        rows = generator.permuted(np.tile(np.arange(left + taken), (images, 1)), axis=1)
        return rows[:, taken:], rows[:, :taken]

    for chosen in ("any", "left", "gone", "one"):
        left, src = ranked(kept, gone)
        left_back, src_back = ranked(kept_back, gone_back)
        targets = {"left": left_back, "gone": src_back}.get(chosen, left_back)
        if chosen in ("any", "one") or targets.shape[1] == 0:
            targets = np.tile(np.arange(kept_back + gone_back), (images, 1))
        at = generator.integers(0, 1 if chosen == "one" else targets.shape[1], (images, gone))
        dst = np.take_along_axis(targets, at, axis=1)
        dst_back = generator.integers(0, 1 if chosen == "one" else kept, (images, gone_back))
        yield [np.sort(left, axis=1), src, dst, left_back, src_back, dst_back]


def _destinations(split: Split, drawn: list[Integers]) -> Integers:
    """Returns where each token goes."""
    kept, src, dst, kept_back, src_back, dst_back = drawn
    a, b = split.positions("a_start"), split.positions("b_start")
    protected = split.merge.attributes.get_ints("protected")[0]
    found = np.tile(np.arange(split.tokens[1]), (split.tokens[0], 1))
    for image, to in enumerate(found):
        left = kept.shape[1]
        to[a[kept[image]]] = protected + np.arange(left)
        to[b[kept_back[image]]] = protected + left + np.arange(kept_back.shape[1])
        to[b[src_back[image]]] = protected + dst_back[image]
        to[a[src[image]]] = to[b[dst[image]]]
    return found
