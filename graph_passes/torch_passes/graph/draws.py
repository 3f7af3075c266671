"""Finds the calls of a traced graph that draw random numbers."""

from __future__ import annotations

from typing import Final

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from tokexport.graph_passes.torch_passes.graph.calls import argument

#: Arguments under which an operator that could draw draws nothing, and the values that say so.
_SILENT: Final = {
    "dropout_p": (0.0,),
    "dropout": (0.0,),
    "p": (0.0,),
    "train": (False,),
    "training": (False,),
}


def draws(node: Node) -> bool:
    """Tells whether a call draws random numbers; a dropout that is switched off does not."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = {formal.name for formal in target._schema.arguments}
    return not any(
        argument(node, name) in silent for name, silent in _SILENT.items() if name in names
    )


def drop_unread_draws(graph: Graph) -> None:
    """Takes out what no output reads, draws included; to torch a draw is never dead code."""
    graph.eliminate_dead_code(lambda node: node.is_impure() and not draws(node))


def find_draws(graph: Graph) -> list[Node]:
    """Returns the calls that draw random numbers, in order."""
    return [node for node in graph.nodes if draws(node)]
