"""Gives values whose size depends on the data a fixed size: rows up to a cap, and a mask.

Before → after::

    y = x[:, mask]                 index, valid = the first cap true rows of mask
    softmax(y yᵀ, -1) y        →   softmax(y' y'ᵀ + where(valid, 0, -inf), -1) where(valid, y', 0)
    mean(y, 1)                     sum(where(valid, y', 0), 1) / sum(valid)

A mask that no input reaches has a count that is known, and needs no cap; a position read from a
tensor, ``x[scores.argmax()]``, becomes a selection of one row. ``op_rules`` and ``shape_rules`` say
for which operators this is exact; every other one that meets padded rows is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.torch_errors import in_words
from tokexport.graph_passes.torch_passes.graph.added_output import add_output
from tokexport.graph_passes.torch_passes.graph.calls import is_call
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.graph.random_draws import draws
from tokexport.graph_passes.torch_passes.pad import indexing, selections, unique
from tokexport.graph_passes.torch_passes.pad.numbers_of_rows import (
    ASSERTIONS,
    NUMBER_RULES,
    is_number,
    number,
)
from tokexport.graph_passes.torch_passes.pad.op_rules import RULES, Rule, pointwise
from tokexport.graph_passes.torch_passes.pad.padded_rows import Check, Padded, Selection, refused
from tokexport.graph_passes.torch_passes.pad.products import PRODUCT_RULES
from tokexport.graph_passes.torch_passes.pad.scatters import SCATTER_RULES
from tokexport.graph_passes.torch_passes.pad.shape_rules import SHAPE_RULES
from tokexport.graph_passes.torch_passes.pad.slices import CUT_RULES
from tokexport.graph_passes.torch_passes.pad.statistics import SPREAD_RULES, STATISTICS_RULES

_SELECTIONS: Final = {
    aten.nonzero.default: selections.nonzero,
    aten.argwhere.default: selections.nonzero,
    aten.nonzero_numpy.default: selections.where,
    aten.where.default: selections.where,
    aten.masked_select.default: selections.masked_select,
    aten._unique2.default: unique.unique,
    aten.unique_consecutive.default: unique.consecutive,
    aten.index.Tensor: indexing.index,
    aten.index_put.default: indexing.put,
}
_RULES: Final[dict[object, Rule]] = {
    **RULES,
    **PRODUCT_RULES,
    **CUT_RULES,
    **STATISTICS_RULES,
    **SHAPE_RULES,
    **SPREAD_RULES,
    **SCATTER_RULES,
    **NUMBER_RULES,
}


class PadTokens(TorchPass):
    """Pads what depends on the data.

    Args:
        program: The program whose graph is changed; its weights are constants here.
        caps: For how many rows each choice by the data has room, in order, and the last one at all
            that follow; None allows none.

    Attributes:
        selections: The choices that were padded.
        checks: What must hold of an input; the graph gives them as one more output, truth values
            (checks,), where there are any.
    """

    name: ClassVar[str] = "pad tokens"

    def __init__(self, program: ExportedProgram, caps: Sequence[int] | None) -> None:
        self._caps = caps
        self._program = program
        self._weights = _weights(program)
        self._known: dict[Node, Any] = {}
        self._fixed: dict[Node, bool] = {}
        self.selections: tuple[Selection, ...] = ()
        self.checks: tuple[Check, ...] = ()

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many choices were made fixed.

        Raises:
            TokenCountError: An operator cannot be made exact on padded rows.
        """
        padded = Padded(edit, self._caps)
        old = list(edit.graph.nodes)
        for node in old:
            asserts = is_call(node, *ASSERTIONS)
            if node.op == "call_function" and (asserts or self._depends(padded, node)):
                with edit.before(node):
                    self._try(padded, node)
        (output,) = edit.graph.find_nodes(op="output")
        for given in output.all_input_nodes:
            if padded.valid(padded.new(given)):
                raise refused(given, "it is an output, whose size would depend on the data")
        output.args = map_arg(output.args, padded.new)
        for node in reversed(old):
            if padded.changed(node) and not node.users:
                edit.graph.erase_node(node)
        self.selections = tuple(padded.selections)
        if self._caps is not None:  # else nothing was padded, and no branch taken by an example
            self.checks = tuple(padded.checks.values())
        if self.checks:
            with edit.before(output):
                holds = [edit.view(check.holds, [1]) for check in self.checks]
                both = edit.call(aten.cat.default, holds, 0) if len(holds) > 1 else holds[0]
            add_output(self._program, output, both)
        return len(padded.memo)

    def _depends(self, padded: Padded, node: Node) -> bool:
        return _is_symbolic(node) or any(padded.changed(part) for part in node.all_input_nodes)

    def _try(self, padded: Padded, node: Node) -> None:
        try:
            self._pad(padded, node)
        except TokenCountError:
            raise
        except Exception as error:
            raise refused(node, f"it does not take padded rows: {in_words(error)}") from error

    def _pad(self, padded: Padded, node: Node) -> None:
        target = node.target
        if target is operator.getitem:
            source = padded.new(node.args[0])
            position: Any = node.args[1]
            if isinstance(source, list):
                padded.set(node, source[position], padded.valid(source[position]))
            else:
                padded.set(node, padded.edit.item(source, position), padded.valid(source))
        elif target in _SELECTIONS:
            _SELECTIONS[target](padded, node, self._constant)
        elif target in _RULES:
            _RULES[target](padded, node)
        elif isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
            pointwise(padded, node)
        elif is_number(node):
            number(padded, node)
        elif any(padded.valid(padded.new(source)) for source in node.all_input_nodes):
            raise refused(node, "there is no rule for it")
        else:
            args, kwargs = padded.new(node.args), padded.named(node)
            new = padded.edit.call(target, *args, **kwargs)
            if _is_symbolic(new):
                raise refused(node, "there is no rule for it, and its size depends on the data")
            padded.set(node, new, {})

    def _constant(self, node: Node) -> Tensor | None:
        """Computes a value that no input reaches; None where one does."""
        for one in node.graph.nodes:
            if one not in self._fixed:
                self._fixed[one] = one in self._weights or (
                    one.op == "call_function"
                    and not draws(one)
                    and all(self._fixed[source] for source in one.all_input_nodes)
                )
            if one is node:
                break
        return self._computed(node) if self._fixed[node] else None

    def _computed(self, node: Node) -> Any:
        if node in self._weights:
            return self._weights[node]
        if node not in self._known:
            args, kwargs = map_arg((node.args, node.kwargs), self._computed)
            target: Any = node.target
            self._known[node] = target(*args, **kwargs)
        return self._known[node]


def _is_symbolic(node: Node) -> bool:
    values = node.meta.get("val")
    parts = values if isinstance(values, tuple | list) else (values,)
    sizes = [s for part in parts for s in (part.shape if isinstance(part, Tensor) else (part,))]
    return any(isinstance(s, torch.SymInt | torch.SymBool | torch.SymFloat) for s in sizes)


def _weights(program: ExportedProgram) -> dict[Node, Tensor]:
    """Returns the parameters, buffers and constants of a program by their nodes."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**program.constants, **program.state_dict}
    return {
        node: values[names[node.name]]
        for node in program.graph.nodes
        if node.op == "placeholder" and names.get(node.name) in values
    }
