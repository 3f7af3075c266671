"""Cuts a part out of an exported graph, as a function of some of its values.

A piece holds no weights: it takes them by name from the module it runs for, so that one piece
serves all blocks of a kind, and what a training step or ``to()`` made of a weight is what is used.
Sizes are read from the piece's own inputs: what was traced for N tokens runs for any other number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from tokexport.graph_passes.reduction.errors import SurgeryError


@dataclass(frozen=True)
class Subgraph:
    """A part of a block.

    Attributes:
        graph: Takes the inputs, then the weights; returns the outputs.
        weights: The names of the parameters and buffers it reads, as the block has them.
        constants: Tensors that the trace fixed, read after the weights.
    """

    graph: GraphModule
    weights: tuple[str, ...]
    constants: tuple[Tensor, ...]

    def run(self, block: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the piece with the weights of a block."""
        weights = [_weight(block, name) for name in self.weights]
        constants = [one.to(inputs[0].device) for one in self.constants]
        results: tuple[Tensor, ...] = self.graph(*inputs, *weights, *constants)
        return results


def _weight(block: nn.Module, name: str) -> Any:
    for part in name.split("."):
        block = getattr(block, part)
    return block


def cut_subgraph(
    program: ExportedProgram, inputs: Sequence[Node], outputs: Sequence[Node], what: str
) -> Subgraph:
    """Returns the part of a program's graph that computes some values from others.

    Args:
        program: A traced block, whose sizes are symbols.
        inputs: Values that the piece takes.
        outputs: Values that it returns.
        what: What it is, for a message: "the MLP".

    Raises:
        SurgeryError: The outputs need a value beside the inputs and the weights.
    """
    return _Cut(program, inputs, what).piece(outputs)


class _Cut:
    """Copies nodes into a new graph, each once."""

    def __init__(self, program: ExportedProgram, inputs: Sequence[Node], what: str) -> None:
        self._program, self._what = program, what
        signature = program.graph_signature
        self._weights: Mapping[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
        }
        self._fixed: Mapping[str, str] = signature.inputs_to_lifted_tensor_constants
        self.graph = Graph()
        self._copies: dict[Node, Node] = {}
        self._sizes: dict[Any, tuple[Node, int]] = {}
        for position, node in enumerate(inputs):
            copy = self.graph.placeholder(f"input_{position}")
            self._copies[node] = copy
            shape = node.meta["val"].shape
            for axis, size in enumerate(shape):  # from the end: a position term may gain a batch
                if isinstance(size, torch.SymInt):
                    self._sizes.setdefault(size.node.expr, (copy, axis - len(shape)))

    def piece(self, outputs: Sequence[Node]) -> Subgraph:
        wanted = self._needed(outputs)
        named = [n for n in wanted if n.op == "placeholder" and n.name in self._weights]
        fixed = [n for n in wanted if n.op == "placeholder" and n.name in self._fixed]
        for node in (*named, *fixed):
            self._copies[node] = self.graph.placeholder(node.name)
        for node in self._program.graph.nodes:
            if node in wanted and node not in self._copies:
                self._copies[node] = self._copy(node)
        self.graph.output(tuple(self._copies[node] for node in outputs))
        self.graph.lint()
        constants = [self._program.constants[self._fixed[node.name]] for node in fixed]
        return Subgraph(
            GraphModule(nn.Module(), self.graph),
            tuple(self._weights[node.name] for node in named),
            tuple(tensor for tensor in constants if isinstance(tensor, Tensor)),
        )

    def _needed(self, outputs: Sequence[Node]) -> dict[Node, None]:
        """Returns what the outputs are computed from, in a fixed order."""
        found: dict[Node, None] = {}
        ahead = list(outputs)
        while ahead:
            node = ahead.pop()
            if node in found or node in self._copies:
                continue
            found[node] = None
            if self._size_of(node) is not None:
                continue
            if node.op == "placeholder" and node.name not in {**self._weights, **self._fixed}:
                raise SurgeryError(
                    f"{self._what.capitalize()} reads more than the tokens it works on: "
                    f"'{node.name}'.",
                    fix="Only blocks of one attention followed by one MLP can be reduced.",
                )
            ahead.extend(node.all_input_nodes)
        return found

    def _size_of(self, node: Node) -> tuple[Node, int] | None:
        """Returns the input and the axis whose size a node is."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            return self._sizes.get(value.node.expr)
        return None

    def _copy(self, node: Node) -> Node:
        size = self._size_of(node)
        if size is not None:
            return self.graph.call_function(torch.ops.aten.sym_size.int, size)
        copy = self.graph.node_copy(node, lambda one: self._copies[one])
        trace = node.meta.get("stack_trace")
        copy.meta = {"stack_trace": trace} if trace else {}
        return copy
