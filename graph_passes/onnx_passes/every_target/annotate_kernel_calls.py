"""Names the calls that native kernels may take over where the graph is loaded.

The graph itself does not change: the calls are inlined behind this pass, so that what is built runs
everywhere. Which values each call read and gave is written into the model's metadata, under
``KERNEL_CALLS``, as a list in JSON::

    {"operator": "cosine_match", "attributes": {"heads": 6, …},
     "inputs": [{"name": "rows"}], "outputs": [{"name": "kept", "shape": [1, 86]}, …]}

The name of an output that nothing reads is ``null``. An input that is a constant of one number, as
the sizes before the first merge are, may vanish in what folds constants; it is written as
``{"fill": 1.0, "shape": [1, 197, 1]}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import (
    DOMAIN,
    merge_name,
    scatter_name,
    signatures,
)
from tokexport.graph_passes.ops.ops import MODES

#: The key of the model's metadata.
KERNEL_CALLS: Final = "tokexport.kernel_calls"
#: The operators whose kernels both runtimes have; those of a layer are for ONNX Runtime alone.
OPERATORS: Final = frozenset(
    (
        "bipartite_match",
        "bipartite_match_by_score",
        "cosine_match",
        "gather_tokens",
        "match_back",
        "merge_both_ways",
        "merge_both_ways_by_weight",
        "merge_by_size",
        "places_both_ways",
        "scored_match",
        *(merge_name(mode) for mode in MODES),
        *(scatter_name(mode, include) for mode in MODES for include in (True, False)),
    )
)


class AnnotateKernelCalls(OnnxPass):
    """Records the calls of operators that have kernels outside ONNX Runtime."""

    name = "annotate kernel calls"
    comes_before = ("inline", "fold constants", "strip metadata")

    def call(self, model: ir.Model) -> Counted:
        """Adds the metadata."""
        found = [_described(node) for node in model.graph if node.domain == DOMAIN]
        calls = [call for call in found if call is not None]
        if calls:
            model.metadata_props[KERNEL_CALLS] = json.dumps(calls)
        return Counted(model, bool(calls), len(calls))


def _described(node: ir.Node) -> dict[str, Any] | None:
    """Returns the record of a call; None if it has no kernel, or something is unknown."""
    if node.op_type not in OPERATORS or not _fits(node):
        return None
    inputs = [_input(value) for value in node.inputs]
    shapes = [shape_of(value) for value in node.outputs]
    if None in inputs or None in shapes:
        return None
    return {
        "operator": node.op_type,
        "attributes": {name: given.as_ints()[0] for name, given in node.attributes.items()},
        "inputs": inputs,
        "outputs": [
            {"name": value.name if _is_read(value) else None, "shape": shape}
            for value, shape in zip(node.outputs, shapes, strict=True)
        ],
    }


def _fits(node: ir.Node) -> bool:
    """Returns whether the inputs have the types of kernels: float32, int64 for indices."""
    wanted = {"T": ir.DataType.FLOAT, "I": ir.DataType.INT64}
    kinds = [wanted[kind] for _, kind in signatures()[node.op_type].inputs]
    return [value and value.dtype for value in node.inputs] == kinds


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _input(value: ir.Value | None) -> dict[str, Any] | None:
    """Returns the name of an input, or its number and shape where it is a constant."""
    if value is None:
        return None
    constant = ir.convenience.get_const_tensor(value)
    if constant is None:
        return {"name": value.name}
    array = constant.numpy()
    if array.size == 0 or not np.all(array == array.flat[0]):
        return None
    return {"fill": array.flat[0].item(), "shape": array.shape}


@contextmanager
def call_names_kept(model: ir.Model) -> Iterator[None]:
    """Keeps the names of outputs of named calls in what replaces them meanwhile.

    A value stands for another where one that read the other reads it now.
    """
    text = model.metadata_props.get(KERNEL_CALLS, "[]")
    calls = json.loads(text)
    named = {one["name"] for call in calls for one in call["outputs"]}
    taken = named | {one.get("name") for call in calls for one in call["inputs"]}
    readers = {
        value.name: [(use.node, use.idx) for use in value.uses()]
        for node in model.graph
        for value in node.outputs
        if value.name in named
    }
    yield
    standing = {value.name for node in model.graph for value in node.outputs}
    for name in readers.keys() - standing:
        for node, position in readers[name]:
            value = node.inputs[position] if node.graph is model.graph else None
            if value is None or value.producer() is None or value.is_graph_output():
                continue
            if value.name not in taken:
                value.name = name
                break
