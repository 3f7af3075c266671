"""Follows position terms that enter a block beside its tokens, such as rotary embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.tokens import Tokens

#: No published model has more class, distillation and register tokens.
MOST_SPECIAL: Final = 16


@dataclass(frozen=True)
class PositionTerm:
    """A tensor with a row for each token that the model began with.

    Attributes:
        skipped: How many tokens at the front have no row.
    """

    skipped: int

    def at(self, term: Tensor, tokens: Tokens) -> Tensor:
        """Returns the rows of the current tokens, by their origins.

        Args:
            term: (N0 - skipped, D), with heads or a batch and heads before it where it has them.
            tokens: N of them.

        Returns:
            The term itself where tokens did not move, else (B, 1 or H, N - skipped, D).
        """
        if tokens.trace is None:
            return term
        origins = tokens.trace.origins
        if origins is None:
            raise SurgeryError(
                "A token has no position any more, and the block rotates by positions.",
                fix="Take a method that selects or merges tokens.",
            )
        rows = origins[:, self.skipped :] - self.skipped
        whole = term[(None,) * (4 - term.dim())]  # (1 or B, 1 or H, N0 - skipped, D)
        heads, width = whole.shape[1], whole.shape[3]
        whole = whole.expand(rows.shape[0], -1, -1, -1)
        return whole.gather(2, rows[:, None, :, None].expand(-1, heads, -1, width))


def position_terms(program: ExportedProgram) -> tuple[PositionTerm | None, ...]:
    """Reads which of a block's tensors behind its tokens hold a row for each of them.

    Args:
        program: The traced block, its sizes symbols.

    Raises:
        SurgeryError: A tensor has rows for the tokens that cannot be followed.
    """
    given = [s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    x, *extras = (by_name[name] for name in given)
    batch, tokens, _ = x.meta["val"].shape
    return tuple(_term(extra, batch, tokens) for extra in extras)


def _term(extra: Node, batch: torch.SymInt, tokens: torch.SymInt) -> PositionTerm | None:
    """Reads one tensor: the axis of tokens is the last but one.

    Where the block's code lets its size and the number of tokens vary apart, those of the example
    decide.
    """
    shape = extra.meta["val"].shape
    following = {}
    for axis, size in enumerate(shape):
        if isinstance(size, torch.SymInt):
            difference = tokens.node.expr - size.node.expr
            if difference.is_number:
                following[axis - len(shape)] = int(difference)
    free = len(shape) > 1 and isinstance(shape[-2], torch.SymInt)
    if not following and free and shape[-2].node.expr != batch.node.expr:
        skipped = int(tokens.node.hint) - int(shape[-2].node.hint)
        following = {-2: skipped} if 0 <= skipped <= MOST_SPECIAL else {}
    if not following:
        return None
    if list(following) != [-2] or len(shape) > 4 or following[-2] < 0:
        raise SurgeryError(
            f"The block takes a tensor {tuple(shape)} with the number of tokens among its sizes, "
            "and which row belongs to which token is not known.",
            fix="Only terms of one row for each token, such as rotary positions, can be followed.",
        )
    return PositionTerm(following[-2])
