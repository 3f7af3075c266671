"""Finds which patches of a picture each token holds, at every attention of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokexport.graph_passes.analysis.blocks import Blocks, attention_blocks
from tokexport.graph_passes.analysis.follow_tokens import FollowTokens
from tokexport.graph_passes.analysis.macs import count_macs
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.graph_passes.torch_passes.kinds.token_schedule import attentions

#: The step behind the last block.
END: Final = ""
_NO_GRID: Final = "no picture was found that is cut into a grid of patches"
_LOST: Final = "what becomes of the patches could not be followed through the model's operators"


@dataclass(frozen=True)
class TokenStep:
    """The tokens that one attention sees.

    Attributes:
        block: The block of the attention: ``blocks.3``; '' behind the last one.
        tokens: How many there are, of an image.
        special: How many of them hold no patch: class tokens, registers, padding.
        holders: For each image, and each patch row by row, the position of the token that holds
            it; -1 where it was dropped. Empty where it is not known.
    """

    block: str
    tokens: int
    special: int
    holders: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TokenOrigins:
    """What becomes of the patches of some pictures.

    Attributes:
        grid: Rows and columns of patches; None where none was found.
        steps: The tokens at each attention, in order, and at the end.
        why_not: Why no patch can be drawn, or not at every step, a clause; '' where all can.
    """

    grid: tuple[int, int] | None
    steps: tuple[TokenStep, ...]
    why_not: str = ""

    def of_first(self, images: int) -> TokenOrigins:
        """Returns the same of the first pictures alone."""
        steps = tuple(replace(step, holders=step.holders[:images]) for step in self.steps)
        return replace(self, steps=steps)


def token_origins(
    program: ExportedProgram, batches: Iterable[Sequence[Tensor]], images: int
) -> TokenOrigins:
    """Runs a rewritten program, and finds which patches each token holds.

    Args:
        program: The program, with operators of domain ``tokexport``.
        batches: The inputs, a batch each.
        images: How many pictures are wanted.
    """
    blocks = Blocks(program, attention_blocks(program, count_macs(program)))
    places = _places(program, blocks)
    within = [node.name for node in blocks.members(len(blocks.paths) - 1)]
    module = as_graph_module(program)
    runs: list[FollowTokens] = []
    seen = 0
    for batch in batches:
        if seen >= images:
            break
        run = FollowTokens(module, [values for _, values in places], within)
        run.run(*batch)
        runs.append(run)
        seen += int(batch[0].shape[0]) if batch and batch[0].ndim else 1
    grids = {run.ids.grid for run in runs}
    grid = grids.pop() if len(grids) == 1 else None
    if grid is None:
        return TokenOrigins(None, (), _NO_GRID)
    steps = [
        _step(block, [_rows(run, name) for run in runs], runs, images) for block, name in places
    ]
    end = _step(END, [run.last for run in runs], runs, images)
    if steps and end is not None and steps[-1] is not None and end.holders != steps[-1].holders:
        steps.append(end)
    known = tuple(step for step in steps if step is not None)
    if not known:
        return TokenOrigins(grid, (), _LOST)
    return TokenOrigins(grid, known, _LOST if len(known) < len(steps) else "")


def _places(program: ExportedProgram, blocks: Blocks) -> list[tuple[str, str]]:
    """Returns the block of each attention, and the name of the values that it weighs."""
    found: list[tuple[str, str]] = []
    for node, values in attentions(program):
        position = blocks.block_of(node)
        path = "" if position is None else blocks.paths[position].removeprefix("model.")
        found.append((path or f"attention {len(found)}", values.name))
    return found


def _rows(run: FollowTokens, name: str) -> Tensor | None:
    """Returns the tokens of (B, H, N, C) or (B · H, N, C) values, (B, N); None if unknown."""
    found = run.kept.get(name)
    if found is None or not torch.equal(found, found[..., :1].expand(found.shape)):
        return None
    rows = found[..., 0]
    return rows[:, 0] if rows.ndim == 3 else rows


def _step(
    block: str, rows: Sequence[Tensor | None], runs: Sequence[FollowTokens], images: int
) -> TokenStep | None:
    """Returns a step of all runs; None where it is not known in one of them."""
    holders: list[tuple[int, ...]] = []
    special = tokens = 0
    for run, found in zip(runs, rows, strict=True):
        if found is None:
            return None
        tokens = int(found.shape[1])
        for row in found.tolist():
            holders.append(run.ids.holders(row))
            special = sum(not run.ids.patches(number) for number in row)
    return TokenStep(block, tokens, special, tuple(holders[:images]))
