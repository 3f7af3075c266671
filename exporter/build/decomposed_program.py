"""Hands torch's ONNX exporter a program that it need not trace once more.

The exporter first replaces each operator that has no ONNX form by ones that have, for which it
traces the whole graph anew. What comes out of the passes seldom holds such an operator::

    aten.linear, aten.mul, tokexport.merge_tokens    as it is
    aten.linear, aten.celu                           traced anew: celu becomes others
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.utils import _pytree as pytree


class DecomposedProgram(ExportedProgram):
    """A copy of a program with a graph of its own, which stays where no operator is replaced.

    Args:
        program: A functional program of one trace; its weights are shared.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(
            root=program.graph_module,
            graph=copy.deepcopy(program.graph),
            graph_signature=program.graph_signature,
            state_dict=program.state_dict,
            range_constraints=program.range_constraints,
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants=program.constants,
            verifiers=program.verifiers,
        )
        self._given = program

    def run_decompositions(
        self,
        decomp_table: Mapping[Any, Callable[..., Any]] | None = None,
        decompose_custom_triton_ops: bool = False,
    ) -> ExportedProgram:
        """Returns this very program where nothing in it is in the table."""
        table = None if decomp_table is None else dict(decomp_table)
        if table is not None and not any(node.target in table for node in self.graph.nodes):
            return self
        traced: ExportedProgram = self._given.run_decompositions(table, decompose_custom_triton_ops)
        return traced


def without_a_trace(program: ExportedProgram) -> ExportedProgram:
    """Returns a program to export that is traced anew only where an operator asks for it.

    It is the one given where its graph holds other graphs, or values of several traces.
    """
    return DecomposedProgram(program) if _is_of_one_trace(program.graph) else program


def _is_of_one_trace(graph: Graph) -> bool:
    traces = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            return False
        if node.op == "call_function" and "val" not in node.meta:
            return False
        values = pytree.tree_leaves(node.meta.get("val"))
        traces |= {one.fake_mode for one in values if isinstance(one, FakeTensor)}
    return len(traces) == 1
