"""Cuts an ONNX graph at values that are known: each is given to its readers, and computed beside.

::

    a = Add(x, b)                      a = Add(x, b)          an output
    y = Mul(a, c)               →      y = Mul(a.given, c)    a.given: an input
    z = Neg(y)                         z = Neg(y.given)

In the graph on the right an error of one node stays in it, whatever comes behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from tokexport.exporter.worker.cuts import drop_unread_weights
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_name
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec

#: What the name of an input ends with that gives a known value to its readers.
_GIVEN: Final = ".given"
#: The kinds of arrays that a runtime takes and gives.
_KINDS: Final = "fiub"


def computed_values(model: ir.Model) -> dict[str, ir.Value]:
    """Returns the values that the nodes of the main graph give, by name and in order."""
    found = (value for node in model.graph for value in node.outputs)
    return {value.name: value for value in found if value.name}


def expose(model: ir.Model, names: Iterable[str]) -> None:
    """Makes values further outputs of a model, in place."""
    values, there = computed_values(model), {*model.graph.outputs}
    wanted = (values[name] for name in names if name in values)
    model.graph.outputs.extend(value for value in wanted if value not in there)


def give(model: ir.Model, known: Mapping[str, Array]) -> dict[str, str]:
    """Cuts a model at the values that are known, in place.

    Args:
        model: The model.
        known: Values by name; those that it does not compute are left out.

    Returns:
        The names of the new inputs, by those of the values.
    """
    values = computed_values(model)
    specs = {
        name: TensorSpec(f"{name}{_GIVEN}", array.shape, str(array.dtype))
        for name, array in known.items()
        if name in values and _fits(values[name], array)
    }
    give_as(model, specs)
    return {name: spec.name for name, spec in specs.items()}


def give_as(model: ir.Model, specs: Mapping[str, TensorSpec]) -> None:
    """Makes the readers of values read new inputs, in place.

    Args:
        model: The model.
        specs: The new input of each value, by the name of the value.
    """
    for name, value in computed_values(model).items():
        if name not in specs:
            continue
        spec = specs[name]
        given = ir.Value(
            name=spec.name,
            type=ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype))),
            shape=ir.Shape(spec.shape),
        )
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, given)
        model.graph.inputs.append(given)


def _fits(value: ir.Value, array: Array) -> bool:
    """Returns whether an array can stand for a value; a runner takes no NaN."""
    if array.dtype.kind not in _KINDS:
        return False
    if value.dtype is not None and value.dtype != ir.DataType.from_numpy(array.dtype):
        return False
    if value.shape is not None and value.shape.is_static() and value.shape.numpy() != array.shape:
        return False
    return array.dtype.kind != "f" or not bool(np.isnan(array).any())


def keep_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Leaves the outputs of these names in a model, and what they are computed from, in place."""
    graph, values = model.graph, computed_values(model)
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    drop_unread_weights(model)
    unread = [value for value in graph.inputs if not value.uses()]
    for value in unread:
        graph.inputs.remove(value)


def part_for(model: ir.Model, names: Sequence[str], known: Mapping[str, Array]) -> Part:
    """Cuts the part out of a model that computes values from known ones, in place.

    Args:
        model: The model.
        names: The values.
        known: The known values, and the inputs of the model, by name.
    """
    named = give(model, known)
    keep_outputs(model, names)
    computed = {*computed_values(model)}
    sources = {given: name for name, given in named.items()}
    for value in model.graph.inputs:
        source = sources.get(str(value.name), str(value.name))
        if source not in computed:
            value.name = source
        sources[str(value.name)] = source
    return Part(model, {str(one.name): sources[str(one.name)] for one in model.graph.inputs})


class Part:
    """A part of a model, by itself a model.

    Args:
        model: It.
        sources: The value that each of its inputs is, by the input's name.
    """

    def __init__(self, model: ir.Model, sources: Mapping[str, str]) -> None:
        self.model, self.sources = model, sources

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""
        return tuple(str(value.name) for value in self.model.graph.outputs)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes, without constants."""
        return tuple(node_name(one) for one in self.model.graph if one.op_type != "Constant")

    def fed(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Returns its inputs, taken from values by their names."""
        return {name: values[source] for name, source in self.sources.items()}


def maker_of(model: ir.Model, name: str) -> ir.Node:
    """Returns the node that computes a value."""
    node = computed_values(model)[name].producer()
    assert node is not None
    return node


def operator_of(node: ir.Node) -> str:
    """Returns ``domain:Type``, or ``Type`` of a standard operator."""
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type
