"""Puts other nodes in the place of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


class Replacement:
    """Nodes that take the place of one; they keep its source line.

    Args:
        node: The node.
    """

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._name = node.name or node.outputs[0].name  # names of nodes differ, or are left out
        self._nodes: list[ir.Node] = []

    def call(
        self,
        operator: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> ir.Value:
        """Adds a call of an operator, a standard one by default; returns its first result."""
        node = ir.Node(
            domain,
            operator,
            inputs,
            attributes=ir.convenience.convert_attributes(attributes),
            num_outputs=outputs,
            name=f"{self._name}/{len(self._nodes)}",
            metadata_props=dict(self._node.metadata_props),
        )
        for position, value in enumerate(node.outputs):
            value.name = f"{node.name}/{position}"
        self._nodes.append(node)
        return node.outputs[0]

    def integers(self, *numbers: int) -> ir.Value:
        """Adds a constant int64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """Adds a constant."""
        tensor = ir.tensor(array)
        value = self.call("Constant", value=tensor)
        value.const_value = tensor
        value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
        return value

    def put(self, *results: ir.Value | None) -> None:
        """Takes the node out; its readers read these results, one for each of its own.

        None stands for one that nothing reads.
        """
        graph = self._node.graph
        assert graph is not None
        pairs = zip(self._node.outputs, results, strict=True)
        read = [(old, new) for old, new in pairs if new is not None]
        ir.convenience.replace_nodes_and_values(
            graph,
            self._node,
            [self._node],
            self._nodes,
            [old for old, _ in read],
            [new for _, new in read],
        )

    @staticmethod
    def move_readers(old: ir.Value, new: ir.Value, operator: str | None = None) -> None:
        """Lets the nodes that read a value read a further result; a graph's output stays.

        Args:
            old: The value.
            new: What stands for it, of the same shape and type.
            operator: The only operator whose nodes are moved; all where it is None.
        """
        new.shape, new.type = old.shape, old.type
        for use in list(old.uses()):
            if operator in (None, use.node.op_type):
                use.node.replace_input_with(use.idx, new)
