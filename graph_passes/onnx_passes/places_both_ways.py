"""Recognises where each token goes in a match forth and back.

Before → after, for an index that is computed from the matches alone, by integer operators::

    GatherElements(second, first)  …      →  places_both_ways(kept, src, dst, kept_back, …)

There are many ways to write this, so that it is told by what it gives and not by how: the
operators before it are run on drawn matches, and have to give the places of each.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tokexport.graph_passes.onnx_functions import DOMAIN, OPSET
from tokexport.graph_passes.onnx_passes.replacement import Replacement
from tokexport.graph_passes.onnx_passes.strided_views import shape_of

#: Operators that move integers, or add constants to them: of drawn matches two say all.
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
_TRIALS: Final = 2
_MOST_NODES: Final = 100

Integers = NDArray[np.int64]


class GatherElements(OpRun):
    """The operator as ONNX defines it; that of onnx 1.23 fails where the two shapes differ."""

    def _run(self, data: Integers, indices: Integers, axis: int = 0) -> tuple[Integers]:
        return (np.take_along_axis(data, indices, axis),)


class PlacesBothWays(ir.passes.InPlacePass):
    """Rewrites indices that say where tokens go in a match forth and back."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites in place."""
        changed = False
        for node in list(model.graph):
            index = node.inputs[1] if _gathers(node) else None
            if index is not None and index.graph is model.graph:
                changed |= _rewrite(index)
        return ir.passes.PassResult(model, modified=changed)


def _gathers(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "gather_tokens"


def _rewrite(index: ir.Value) -> bool:
    last, shape = index.producer(), shape_of(index)
    found = _computed(index)
    if last is None or shape is None or found is None or not _fits(*found, shape, index):
        return False
    match, _ = found
    new = Replacement(last)
    starts = [match.attributes.get_ints(name)[0] for name in ("a_start", "b_start")]
    new.put(
        new.call(
            "places_both_ways",
            *match.outputs,
            domain=DOMAIN,
            protected=[min(starts)],
            a_start=starts[:1],
            b_start=starts[1:],
            step=list(match.attributes.get_ints("step")),
        )
    )
    return True


def _computed(index: ir.Value) -> tuple[ir.Node, list[ir.Node]] | None:
    """Returns the match that an index is computed from, and the nodes in between, in order."""
    match: ir.Node | None = None
    found: list[ir.Node] = []
    seen: set[ir.Node] = set()
    waiting = [index]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or node in seen or _constant(value) is not None:
            if node is None and _constant(value) is None:
                return None
            continue
        if node.domain == DOMAIN and node.op_type == "match_both_ways":
            if match not in (None, node):
                return None
            match = node
            continue
        seen.add(node)
        found.append(node)
        if node.domain != "" or node.op_type not in _MOVING or len(found) > _MOST_NODES:
            return None
        waiting += [one for one in node.inputs if one is not None]
    graph = index.producer()
    if match is None or graph is None or graph.graph is None:
        return None
    return match, [node for node in graph.graph if node in seen]


def _constant(value: ir.Value) -> NDArray[np.generic] | None:
    constant = ir.convenience.get_const_tensor(value)
    return None if constant is None else constant.numpy()


def _fits(match: ir.Node, nodes: list[ir.Node], shape: tuple[int, ...], index: ir.Value) -> bool:
    """Tells whether the nodes give the places of drawn matches."""
    shapes = [shape_of(value) for value in match.outputs]
    tokens = shape_of(match.inputs[0]) if match.inputs[0] is not None else None
    if None in shapes or tokens is None or shape != tokens[:2]:
        return False
    sizes = [one[1] for one in shapes if one is not None]
    evaluator = _evaluator(match, nodes, index)
    for seed in range(_TRIALS):
        drawn = _drawn(seed, shape[0], sizes)
        wanted = _places(match, drawn, shape)
        if wanted is None:
            return False
        names = [str(value.name) for value in match.outputs]
        (given,) = evaluator.run(None, dict(zip(names, drawn, strict=True)))
        if not np.array_equal(given, wanted):
            return False
    return True


def _evaluator(match: ir.Node, nodes: list[ir.Node], index: ir.Value) -> ReferenceEvaluator:
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
        "places",
        [
            onnx.helper.make_tensor_value_info(str(value.name), integers, shape_of(value))
            for value in match.outputs
        ],
        [onnx.helper.make_tensor_value_info(str(index.name), integers, shape_of(index))],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    return ReferenceEvaluator(model, new_ops=[GatherElements])


def _drawn(seed: int, images: int, sizes: list[int]) -> list[Integers]:
    """Draws a match forth and one back, of so many rows each."""
    generator = np.random.default_rng(seed)
    kept, gone, _, kept_back, gone_back, _ = sizes
    found = []
    for left, taken, columns in ((kept, gone, kept_back + gone_back), (kept_back, gone_back, kept)):
        ranked = generator.permuted(np.tile(np.arange(left + taken), (images, 1)), axis=1)
        to = generator.integers(0, columns, (images, taken))
        found += [ranked[:, taken:], ranked[:, :taken], to]
    return found


def _places(match: ir.Node, drawn: list[Integers], shape: tuple[int, ...]) -> Integers | None:
    """Returns where each token goes; None where some are neither in a nor in b, nor the first."""
    kept, src, dst, kept_back, src_back, dst_back = drawn
    step = match.attributes.get_ints("step")[0]
    everyone = range(shape[1])
    a, b = (
        np.array(everyone[match.attributes.get_ints(name)[0] :: step])
        for name in ("a_start", "b_start")
    )
    protected = shape[1] - len(a) - len(b)
    if sorted([*range(protected), *a, *b]) != [*everyone]:
        return None
    found = np.tile(np.arange(shape[1]), (shape[0], 1))
    for image in range(shape[0]):
        to = found[image]
        left = kept.shape[1]
        to[a[kept[image]]] = protected + np.arange(left)
        to[b[kept_back[image]]] = protected + left + np.arange(kept_back.shape[1])
        to[b[src_back[image]]] = protected + dst_back[image]
        to[a[src[image]]] = to[b[dst[image]]]
    return found
