"""The loop that spells the calls of some operators out, each where it matches.

A pass names its operators and says of one call what it becomes::

    match(node)  →  a function that inserts what stands for the call
                    Reason("it returns complex numbers")     the call is of its kind, and stays
                    None                                     there is nothing to do
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import ClassVar, TypeAlias

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import is_call
from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

#: Inserts what stands for a call: its result, or one for each of several, None of which nothing
#: reads.
Spelling: TypeAlias = Callable[[Editor, Node], Node | tuple[Node | None, ...]]


class NodePass(TorchPass):
    """Rewrites the calls of some operators, each by itself.

    Attributes:
        targets: The operators.
    """

    targets: ClassVar[Collection[object]]

    @abstractmethod
    def match(self, node: Node) -> Spelling | Reason | None:
        """Returns what inserts the new form of a call, why it stays, or None where it is fine."""

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if not is_call(node, *self.targets):
                continue
            edit.look_at(node)
            found = self.match(node)
            if isinstance(found, Reason):
                edit.leave(node, found.why)
            elif found is not None:
                with edit.before(node):
                    new = found(edit, node)
                _put(edit, node, new)
                changed += 1
        return changed


def _put(edit: Editor, node: Node, new: Node | tuple[Node | None, ...]) -> None:
    """Lets what reads a call, or the results of it, read its new form."""
    if isinstance(new, Node):
        edit.replace(node, new)
        return
    for user in list(node.users):
        position = user.args[1] if user.target is operator.getitem else None
        result = new[position] if isinstance(position, int) else None
        assert result is not None, f"{node} gives a result that is read, and its new form none"
        edit.replace(user, result)
