"""Adds the functions of domain ``tokexport`` that the graph calls, and drops those it does not."""

from __future__ import annotations

import onnx_ir as ir

from tokexport.graph_passes.errors import PassError
from tokexport.graph_passes.onnx_passes.graph.node_pass import OnnxPass
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_place
from tokexport.graph_passes.ops import onnx_functions as functions


class AddFunctions(OnnxPass):
    """Makes the model's functions those that its nodes call, and what their bodies call."""

    name = "add functions"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes the model in place."""
        called = {node.op_type for node in model.graph.all_nodes() if _is_ours(node)}
        wanted = {
            function.identifier(): function
            for function in map(ir.serde.deserialize_function, functions.with_callees(called))
        }
        before = {key for key in model.functions if key[0] == functions.DOMAIN}
        for key in before - set(wanted):
            del model.functions[key]
        for key in sorted(wanted.keys() - before):
            model.functions[key] = wanted[key]
        if called:
            model.opset_imports[functions.DOMAIN] = functions.DOMAIN_VERSION
        return ir.passes.PassResult(model, modified=before != set(wanted))

    def ensures(self, model: ir.Model) -> None:
        """Raises PassError where a call has no function, or its domain is not imported."""
        for node in filter(_is_ours, model.graph.all_nodes()):
            known = node.op_identifier() in model.functions
            if not known or functions.DOMAIN not in model.opset_imports:
                what = f"The pass '{self.name}' left a call without its function, {node.op_type}."
                raise PassError(what, where=node_place(node))


def _is_ours(node: ir.Node) -> bool:
    return node.domain == functions.DOMAIN
