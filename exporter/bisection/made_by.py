"""Finds the pass that made a node, or after which a graph is wrong first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnx_ir as ir
from onnx_ir.passes import PassBase
from torch.export import ExportedProgram

from tokexport.exporter.graph_values.given_values import operator_of
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.every_target.add_functions import AddFunctions
from tokexport.graph_passes.onnx_passes.graph.pass_runner import pass_name
from tokexport.graph_passes.torch_passes.graph.pass_runner import run_passes

#: What makes the nodes that no pass of a lowering made.
EMITTED: Final = "the translation to ONNX"


@dataclass
class Makers:
    """The pass that made each node of a lowered graph.

    Attributes:
        passes: The passes, in order.
        by_value: By the name of a value and the operator that computes it: what made that node.
    """

    passes: Sequence[PassBase]
    by_value: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, value: str, operator: str) -> str:
        """Returns what made the node of an operator that computes a value; '' if not known."""
        return self.by_value.get((value, operator), "")


def lowering_makers(emitted: Path, passes: Sequence[PassBase]) -> Makers:
    """Lowers an emitted file once more, and notes which pass makes which node."""
    makers = Makers(passes)
    names = iter([EMITTED, *map(pass_name, passes)])

    def look(model: ir.Model) -> None:
        name = next(names)
        for node in model.graph:
            for value in node.outputs:
                makers.by_value.setdefault((str(value.name), operator_of(node)), name)

    look(pipelines.lower(ir.load(emitted), passes, look).model)
    return makers


def first_wrong(count: int, is_wrong: Callable[[int], bool]) -> int | None:
    """Returns after how many of some passes a graph is wrong first; None if it never is.

    Args:
        count: How many passes there are.
        is_wrong: Returns whether the graph is wrong after so many of them.
    """
    if not is_wrong(count):
        return None
    right, wrong = 0, count
    if is_wrong(0):
        return 0
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if is_wrong(middle):
            wrong = middle
        else:
            right = middle
    return wrong


def lowered_by(emitted: Path, passes: Sequence[PassBase], count: int) -> ir.Model:
    """Returns an emitted model after the first passes of a lowering, with its functions."""
    model = pipelines.lower(ir.load(emitted), passes[:count]).model
    return AddFunctions()(model).model


def rewritten_by(program: ExportedProgram, count: int) -> ExportedProgram:
    """Returns a captured program after the first passes of a rewriting, in place."""
    passes = (*pipelines.REWRITE, *pipelines.TRIM)
    return run_passes(program, passes[:count]).program


def rewriting_names() -> Mapping[int, str]:
    """Returns the names of the passes of a rewriting, by how many have run behind them."""
    passes = (*pipelines.REWRITE, *pipelines.TRIM)
    return {position + 1: one.name for position, one in enumerate(passes)}
