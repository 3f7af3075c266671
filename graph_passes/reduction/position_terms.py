"""Position terms that enter a block beside its tokens, such as rotary embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

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
        """Returns the rows of the tokens there are, where they come from known.

        Args:
            term: (…, N0 - skipped, D).
            tokens: N of them.

        Returns:
            The term itself where nothing says that tokens moved, else (B, 1, N - skipped, D).
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
        batch, kept = rows.shape
        whole = term if term.dim() > 2 else term[None]
        whole = whole.expand(batch, *whole.shape[-2:]) if whole.dim() == 3 else whole[:, 0]
        whole = whole.expand(batch, -1, -1)
        return whole.gather(1, rows[..., None].expand(batch, kept, whole.shape[-1]))[:, None]


def position_terms(program: ExportedProgram) -> tuple[PositionTerm | None, ...]:
    """Reads which of a block's tensors behind its tokens hold a row for each of them.

    Args:
        program: The traced block, its sizes symbols.

    Raises:
        SurgeryError: A tensor has rows for the tokens in a way that cannot be followed.
    """
    given = [s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    x, *extras = (by_name[name] for name in given)
    tokens = x.meta["val"].shape[1]
    return tuple(_term(extra, tokens) for extra in extras)


def _term(extra: Node, tokens: Any) -> PositionTerm | None:
    shape = extra.meta["val"].shape
    found = {
        axis - len(shape): difference
        for axis, size in enumerate(shape)
        if (difference := _less(size, tokens)) is not None
    }
    if not found:
        return None
    if list(found) != [-2] or len(shape) > 4 or found[-2] < 0:
        raise SurgeryError(
            f"The block takes a tensor {tuple(shape)} with the number of tokens among its sizes, "
            "and which row belongs to which token is not known.",
            fix="Only terms of one row for each token, such as rotary positions, can be followed.",
        )
    return PositionTerm(found[-2])


def _less(size: object, tokens: Any) -> int | None:
    """Returns by how much a size is below the number of tokens, where it follows that number.

    Where the block's code allows both to vary apart, the sizes of the example decide.
    """
    if not isinstance(size, torch.SymInt):
        return None
    difference = tokens.node.expr - size.node.expr
    if difference.is_number:
        return int(difference)
    shown = int(tokens.node.hint) - int(size.node.hint)
    return shown if 0 <= shown <= MOST_SPECIAL else None
