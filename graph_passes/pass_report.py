"""What passes report, how often each fired and what it left, and the order that they need."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from tokexport.graph_passes.errors import PassError


@dataclass(frozen=True)
class Reason:
    """Why a node that a pass is for does not match.

    Attributes:
        why: The precondition that fails, a clause about the node: ``its axis is 0``.
    """

    why: str


@dataclass(frozen=True)
class NonMatch:
    """A node that a pass is for, and left as it was.

    Attributes:
        node: Its name in the graph that the pass ran over.
        operator: Its operator: ``MatMul`` or ``aten.gather``.
        why: The precondition that failed, a clause.
        line: The line of the user's code it came from, ``file:line, in function: code``; '' where
            that is not known.
    """

    node: str
    operator: str
    why: str
    line: str = ""


@dataclass(frozen=True)
class PassReport:
    """What one pass did in one stage.

    Attributes:
        stage: ``capture``, ``rewrite`` or ``trim``, of the traced graph; ``emit`` or ``lower``,
            of the ONNX graph.
        name: What the pass is called: ``match by cosine``.
        fired: How many places it changed; of a pass that does not count them, 1 where it changed
            the graph.
        non_matches: The nodes that it is for and left, in the order of the graph; those that
            another pass took are left out.
    """

    stage: str
    name: str
    fired: int
    non_matches: tuple[NonMatch, ...] = ()

    def without(self, taken: Collection[str]) -> PassReport:
        """Returns the report without the nodes of these names, which other passes took."""
        left = tuple(one for one in self.non_matches if one.node not in taken)
        return replace(self, non_matches=left)


def joined(reports: Iterable[PassReport]) -> tuple[PassReport, ...]:
    """Adds up the reports of a pass that ran several times in a stage; its last reasons stay."""
    found: dict[tuple[str, str], PassReport] = {}
    for one in reports:
        key = one.stage, one.name
        before = found[key].fired if key in found else 0
        found[key] = PassReport(one.stage, one.name, before + one.fired, one.non_matches)
    return tuple(found.values())


def check_order(order: Iterable[tuple[str, Collection[str]]]) -> None:
    """Refuses an order in which a pass first runs after one that relies on it.

    Args:
        order: The names of the passes as they run, each with those that it must come before.

    Raises:
        PassError: A pass stands too late.
    """
    earlier: set[str] = set()
    for name, comes_before in order:
        late = sorted(earlier.intersection(comes_before))
        if late and name not in earlier:
            raise PassError(f"'{name}' must come before '{late[0]}'.")
        earlier.add(name)
