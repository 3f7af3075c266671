"""The loop that rewrites the nodes of some operators, each where it matches.

A pass names its operators and says of one node what is to be done::

    match(node)  →  a function that rewrites it
                    Reason("its axis is 0")     the node is of its kind, and does not fit
                    None                        the node is not of its kind
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeAlias, TypeVar

import onnx_ir as ir

from tokexport.graph_passes.errors import GraphError, PassError
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_line, node_name, node_place
from tokexport.graph_passes.pass_report import NonMatch, Reason

#: Puts what was matched into its new form; before the call nothing is changed.
Rewrite: TypeAlias = Callable[[], None]
Shared = TypeVar("Shared")


class OnnxPass(ir.passes.InPlacePass):
    """One rewrite of an ONNX graph, in place.

    Attributes:
        name: The verb phrase it is reported under.
        comes_before: Passes that rely on this one and so must come later in a pipeline.
        forbidden: Operators, as domain and type, of which no node is left when it is through.
    """

    name: ClassVar[str]
    comes_before: ClassVar[tuple[str, ...]] = ()
    forbidden: ClassVar[frozenset[tuple[str, str]]] = frozenset()


@dataclass
class Counted(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        fired: How many places it changed.
        non_matches: The nodes that it is for and left.
        rewritten: The names of the nodes that it rewrote.
    """

    fired: int = 0
    non_matches: tuple[NonMatch, ...] = ()
    rewritten: frozenset[str] = frozenset()


class SharingNodePass(OnnxPass, Generic[Shared]):
    """Rewrites the nodes of some operators, whose matches share something.

    Attributes:
        domain: The domain of its operators.
        op_types: Their names.
        in_subgraphs: Whether it also looks into the branches and bodies of nodes.
        sorts: Whether a reader may come to stand ahead of what it reads; the graph is then sorted.
    """

    domain: ClassVar[str] = ""
    op_types: ClassVar[Collection[str]]
    in_subgraphs: ClassVar[bool] = False
    sorts: ClassVar[bool] = False

    @abstractmethod
    def shared(self, graph: ir.Graph) -> Shared:
        """Returns what the matches of one run share, before the first of them."""

    @abstractmethod
    def match(self, node: ir.Node, shared: Shared) -> Rewrite | Reason | None:
        """Returns what rewrites a node, why it does not fit, or None of one of another kind."""

    def call(self, model: ir.Model) -> Counted:
        """Rewrites in place, in the order of the graph."""
        nodes = model.graph.all_nodes() if self.in_subgraphs else model.graph
        asked = [n for n in nodes if n.domain == self.domain and n.op_type in self.op_types]
        shared = self.shared(model.graph) if asked else None
        rewritten: list[str] = []
        non_matches: list[NonMatch] = []
        for node in asked:
            if node.graph is None:  # another rewrite took it out
                continue
            try:
                found = self.match(node, shared)  # type: ignore[arg-type]
                if isinstance(found, Reason):
                    non_matches.append(_non_match(node, found))
                elif found is not None:
                    found()
                    rewritten.append(node_name(node))
            except GraphError:
                raise
            except Exception as error:
                raise PassError.of(self.name, error, where=node_place(node)) from error
        if rewritten and self.sorts:
            model.graph.sort()
        fired = len(rewritten)
        return Counted(model, fired > 0, fired, tuple(non_matches), frozenset(rewritten))


class NodePass(SharingNodePass[ir.Graph]):
    """Rewrites the nodes of some operators, each by itself."""

    def shared(self, graph: ir.Graph) -> ir.Graph:
        """Returns the graph."""
        return graph


def _non_match(node: ir.Node, reason: Reason) -> NonMatch:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return NonMatch(node_name(node), operator, reason.why, node_line(node))
