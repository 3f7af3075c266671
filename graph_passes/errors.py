"""Defines the errors of ``graph_passes``: what happened, where, and what to do."""

from __future__ import annotations


class GraphError(Exception):
    """An error that the user can fix; it is shown without a traceback.

    Args:
        what: What happened, one sentence.
        where: The file, node, input or source line it happened at; empty if unknown.
        fix: What the user can do now; empty only when nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        """Returns the parts that are not empty, a line each."""
        return "\n".join(part for part in (self.what, self.where, self.fix) if part)


class OperatorRefusedError(GraphError):
    """The target takes no operator of this kind; names the node, the operator and its line."""


class TokenCountError(GraphError):
    """A number of tokens depends on the data, and cannot be padded to a fixed one."""


class PassError(GraphError):
    """A pass broke its own postcondition: a bug of tokexport."""
