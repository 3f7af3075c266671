"""The errors of the rewriting room: what happened, where, and what to do about it."""

from __future__ import annotations


class GraphError(Exception):
    """Something the user can mend; it is shown without a traceback.

    Args:
        what: What happened, one sentence.
        where: The file, node, input or source line it happened at; empty when there is none.
        fix: What the user can do now; empty only when nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        """Returns the parts that are there, a line each."""
        return "\n".join(part for part in (self.what, self.where, self.fix) if part)


class OperatorRefusedError(GraphError):
    """The target takes no operator of this kind; names the node, the operator and its line."""


class TokenCountError(GraphError):
    """A number of tokens depends on the data, and cannot be padded to a fixed one."""


class PassError(GraphError):
    """A pass broke its own postcondition: a bug of ours."""
