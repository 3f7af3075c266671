"""Estimates the cost of a token-reducing model without its reduction.

The same graph is counted with every token axis of a block at the number of tokens that enter the
first block of the same width: linear layers, convolutions and normalisations by their rows,
attention by its queries and its keys. What only chooses the rows to move costs nothing then, since
there is nothing to choose. A hierarchical model keeps the sizes its stages begin with: where tokens
leave a block wider than they entered it, that their number falls is no reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tokexport.graph_passes.analysis.blocks import Blocks, Tokens
from tokexport.graph_passes.analysis.macs import NodeMacs
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind


@dataclass(frozen=True)
class _Scale:
    """Turns the sizes lowest…highest of a block into the size without reduction."""

    lowest: int
    highest: int
    full: int

    def tokens(self, size: int) -> int:
        """Returns the size of an axis of tokens; one that is something else stays."""
        return self.full if self.lowest <= size <= self.highest else size


def unreduced_macs(
    counted: Sequence[NodeMacs], blocks: Blocks, tokens: Sequence[Tokens | None], batch: int
) -> dict[Kind, int]:
    """Returns the cost by kind, with as many tokens everywhere as enter the first block.

    Args:
        counted: The nodes that cost something, in order.
        blocks: Which block each is in.
        tokens: What passes through each block.
        batch: Images in a run.
    """
    scales = [None if one is None else _scale(one, tokens) for one in tokens]
    last = tokens[-1] if tokens else None
    behind = None
    if last is not None and last.width == last.width_out:
        behind = _Scale(last.leaving, last.leaving, _full(last, tokens))
    total = dict.fromkeys(Kind, 0)
    passed = False
    for one in counted:
        if one.kind is Kind.MATCHING:
            continue
        block = blocks.block_of(one.node)
        passed = passed or block == len(tokens) - 1
        scale = scales[block] if block is not None else behind if passed else None
        total[one.kind] += one.macs if scale is None else _scaled(one, scale, batch)
    return total


def _scale(own: Tokens, tokens: Sequence[Tokens | None]) -> _Scale:
    leaving = own.leaving if own.width == own.width_out else own.entering
    low, high = sorted((own.entering, leaving))
    return _Scale(low, high, _full(own, tokens))


def _full(own: Tokens, tokens: Sequence[Tokens | None]) -> int:
    """Returns the tokens that enter the first block of the same width."""
    return next(one.entering for one in tokens if one is not None and one.width == own.width)


def _scaled(one: NodeMacs, scale: _Scale, batch: int) -> int:
    sizes = list(one.sizes)
    for axis in one.token_axes:
        sizes[axis] = scale.tokens(sizes[axis])
    if one.rows_axis is not None and sizes[one.rows_axis] % batch == 0:
        sizes[one.rows_axis] = batch * scale.tokens(sizes[one.rows_axis] // batch)
    if one.kind is Kind.OTHER:  # of unknown roles: only exactly the tokens in or out
        known = (scale.lowest, scale.highest)
        sizes = [scale.full if size in known else size for size in sizes]
    return prod(sizes)
