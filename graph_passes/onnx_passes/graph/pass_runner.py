"""Runs passes over an ONNX model in order, and holds the graph to conditions around each.

What holds before the first pass and behind each:

    every value is made once, by an input, a weight or a node, and before it is read
    every output of the model is made, and has the type and shape that it had
    every domain is imported; the project's own once ``AddFunctions`` is through
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tokexport.graph_passes.errors import GraphError, PassError
from tokexport.graph_passes.onnx_passes.graph.node_pass import Counted, OnnxPass, SharingNodePass
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_name, node_place
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import PassReport, check_order


@dataclass(frozen=True)
class OnnxResult:
    """A model that passes ran over, and what they did.

    Attributes:
        model: The model.
        reports: What each pass did, in order.
    """

    model: ir.Model
    reports: tuple[PassReport, ...]


@dataclass(frozen=True)
class _Fault:
    """A condition that a graph breaks."""

    what: str
    where: str = ""


def run_onnx_passes(
    model: ir.Model,
    passes: Sequence[ir.passes.PassBase],
    stage: str,
    look: Callable[[ir.Model], object] | None = None,
) -> OnnxResult:
    """Runs passes over a model in order, in place where a pass can.

    Args:
        model: The model.
        passes: The passes.
        stage: The stage that reports and errors name.
        look: Reads the model before each pass.

    Raises:
        PassError: A pass raised, or left a graph that breaks a condition; names the passes before.
        GraphError: A pass refuses the model.
    """
    check_order((pass_name(one), getattr(one, "comes_before", ())) for one in passes)
    results = _results(model)
    if fault := _fault_of(model, results):
        raise PassError(f"The graph is broken: {fault.what}.", where=fault.where).behind(stage, ())
    reports: list[PassReport] = []
    rewritten: set[str] = set()
    for onnx_pass in passes:
        if look is not None:
            look(model)
        name = pass_name(onnx_pass)
        try:
            found = onnx_pass(model)
            model = found.model
            counted = found if isinstance(found, Counted) else Counted(model, found.modified)
            if counted.modified or not isinstance(onnx_pass, SharingNodePass):
                _hold(onnx_pass, model, results)
        except MemoryError:
            raise
        except Exception as error:
            # What a pass requires or ensures comes wrapped into an error of the library.
            own = error if isinstance(error, GraphError) else error.__cause__
            if isinstance(own, GraphError) and not isinstance(own, PassError):
                raise own from own.__cause__
            failed = own if isinstance(own, PassError) else PassError.of(name, error)
            raise failed.behind(stage, [one.name for one in reports]) from error
        fired = counted.fired or int(counted.modified)
        reports.append(PassReport(stage, name, fired, counted.non_matches))
        rewritten |= counted.rewritten
    return OnnxResult(model, tuple(one.without(rewritten) for one in reports))


def pass_name(onnx_pass: ir.passes.PassBase) -> str:
    """Returns what a pass is called; one of a library by the words of its class."""
    if isinstance(onnx_pass, OnnxPass):
        return onnx_pass.name
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(onnx_pass).__name__)
    return words.removesuffix(" Pass").lower()


def _hold(onnx_pass: ir.passes.PassBase, model: ir.Model, results: list[_Result]) -> None:
    """Raises PassError where a pass left a graph that breaks a condition."""
    name = pass_name(onnx_pass)
    if fault := _fault_of(model, results):
        raise PassError(f"The pass '{name}' left a broken graph: {fault.what}.", where=fault.where)
    forbidden = onnx_pass.forbidden if isinstance(onnx_pass, OnnxPass) else frozenset()
    for node in model.graph.all_nodes() if forbidden else ():
        if (node.domain, node.op_type) in forbidden:
            raise PassError(
                f"The pass '{name}' left an operator that it promises to remove, {node.op_type}.",
                where=node_place(node),
            )


_Result = tuple[ir.DataType | None, ir.Shape | None]


def _results(model: ir.Model) -> list[_Result]:
    return [(value.dtype, value.shape) for value in model.graph.outputs]


def _fault_of(model: ir.Model, results: list[_Result]) -> _Fault | None:
    """Returns the first condition that a model breaks; None where it breaks none."""
    now = _results(model)
    if len(now) != len(results):
        return _Fault(f"it has {len(now)} outputs in place of {len(results)}")
    for output, (dtype, shape), (was, before) in zip(
        model.graph.outputs, now, results, strict=True
    ):
        if dtype is not None and was is not None and dtype != was:
            return _Fault(f"the output '{output.name}' is of {dtype.name}, and was of {was.name}")
        if _is_static(shape) and _is_static(before) and shape != before:
            return _Fault(f"the output '{output.name}' has the shape {shape}, and had {before}")
    return _fault_in(model.graph, set(), {"", DOMAIN, *model.opset_imports})


def _is_static(shape: ir.Shape | None) -> bool:
    return shape is not None and shape.is_static()


def _fault_in(graph: ir.Graph, outer: set[ir.Value], domains: set[str]) -> _Fault | None:
    """Returns the first fault of a graph, the branches and bodies of its nodes included.

    Args:
        graph: The graph.
        outer: The values around it.
        domains: The domains whose operators it may call.
    """
    names: set[str] = set()  # two branches may use the same
    made = {*outer, *graph.inputs, *graph.initializers.values()}
    for value in {*graph.inputs, *graph.initializers.values()}:
        if fault := _named_twice(value, names):
            return fault
    for node in graph:
        for read in node.inputs:
            if read is not None and read not in made:
                return _unmade(read, node)
        if node.domain not in domains:
            return _Fault(f"the domain '{node.domain}' is not imported", node_place(node))
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = _fault_in(attribute.as_graph(), made, domains)
                if inner is not None:
                    return inner
        for value in node.outputs:
            if fault := _named_twice(value, names):
                return _Fault(fault.what, node_place(node))
            made.add(value)
    for value in graph.outputs:
        if value not in made:
            return _Fault(f"nothing makes the output '{value.name}'")
    return None


def _named_twice(value: ir.Value, names: set[str]) -> _Fault | None:
    """Adds the name of a value to those that are given; says where it was given before."""
    if not value.name:  # a result that nothing reads
        return None
    if value.name in names:
        return _Fault(f"two values are called '{value.name}'")
    names.add(value.name)
    return None


def _unmade(value: ir.Value, reader: ir.Node) -> _Fault:
    maker = value.producer()
    what = f"a node reads '{value.name}', which nothing makes"
    if maker is not None and maker.graph is reader.graph:
        what = f"a node reads '{value.name}' before '{node_name(maker)}' makes it"
    elif maker is not None:
        what = f"a node reads '{value.name}' of '{node_name(maker)}', which is not in the graph"
    return _Fault(what, node_place(reader))
