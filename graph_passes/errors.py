"""Defines the errors of ``graph_passes``: what happened, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: What a user can do about a pass that fails.
_WAY_OUT: Final = (
    "Write that line with other operations, or compile with --keep-stages and report it with the "
    "graphs of the stages before it."
)


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
    """A pass raised, or broke a condition that holds around every pass: a bug of tokexport.

    Args:
        what: Which pass, and what happened.
        where: The node and the line of the user's code it came from, where they are known.
        fix: What the user can do.
        before: The passes of the stage that ran before it, in order.
    """

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", before: Sequence[str] = ()
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.before = tuple(before)

    @classmethod
    def of(cls, name: str, error: Exception, *, where: str = "") -> PassError:
        """Returns the error of a pass that raised another one."""
        said = str(error).strip().partition("\n")[0]
        kind = type(error).__name__
        return cls(f"The pass '{name}' failed: {kind}{f': {said}' if said else ''}.", where=where)

    def behind(self, stage: str, before: Sequence[str]) -> PassError:
        """Returns the same error with the passes that ran before it, and a way out.

        Args:
            stage: The stage that the pass runs in.
            before: The passes that ran there already, in order.
        """
        ran = f"Passes of the stage '{stage}' that ran before it: {', '.join(before) or 'none'}."
        where = "\n".join(part for part in (self.where, ran) if part)
        fix = self.fix or _WAY_OUT
        return PassError(self.what, where=where, fix=fix, before=before)
