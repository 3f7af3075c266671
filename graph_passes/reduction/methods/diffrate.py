"""DiffRate: a learned schedule says how many tokens each block prunes and merges."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tokexport.graph_passes.ops.ops import bipartite_match
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.method import Layer, Method, check, normalised, option
from tokexport.graph_passes.reduction.token_maps import Matching, Selection, behind_special, ranking
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class DiffRate(Method):
    """Sorts the patches by the class token's attention, prunes the last, merges those before.

    Of the first ``prune[l]`` tokens of block l those behind the first ``merge[l]`` merge into the
    best of these as plain means; both count the special tokens and are clamped to what is there. A
    merged token's size grows by its sources' sizes times their similarity. Block 0 is untouched.
    """

    name: ClassVar[str] = "diffrate"
    summary: ClassVar[str] = "prune and merge by the class token's attention, as learned"
    source: ClassVar[str] = (
        "Chen et al. 2023, DiffRate: Differentiable Compression Rate for Efficient Vision "
        "Transformers, section 3"
    )
    strength: ClassVar[str] = "merge"
    needs_class_token: ClassVar[bool] = True

    prune: tuple[int, ...] | None = option(None, "tokens left by pruning, one number a block")
    merge: tuple[int, ...] | None = option(None, "tokens left by merging, one number a block")
    schedule: str | None = option(None, 'a JSON file {"prune": […], "merge": […]}')

    def __post_init__(self) -> None:
        """Reads the schedule."""
        if self.schedule is not None:
            check(
                self.prune is None and self.merge is None,
                "Both a schedule file and lists are given.",
                "Leave one of them out.",
            )
            prune, merge = _read_schedule(self.schedule)
            object.__setattr__(self, "prune", prune)
            object.__setattr__(self, "merge", merge)
        for name in ("prune", "merge"):
            check(
                getattr(self, name) is None or min(getattr(self, name), default=1) >= 1,
                f"{name} goes below one token.",
                "Give the numbers of tokens that are left.",
            )
        check(
            self.prune is not None or self.merge is not None,
            "The method needs its learned schedule.",
            "Give schedule=FILE.json, or prune=[…] and merge=[…], one number for each block.",
        )

    def acts_in(self, layer: Layer) -> bool:
        """Leaves block 0 as it is, where no others are named."""
        return layer.index > 0 if self.layers is None else layer.index in self.layers

    def after_attention(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        """Sorts, prunes and merges."""
        special, count = tokens.special, tokens.count
        pruned = max(min(self._left(self.prune, layer, count), count), special + 1)
        kept = max(min(self._left(self.merge, layer, pruned), pruned), special + 1)
        ranked = ranking(attention.of_class_token[:, special:]) + special
        order = behind_special(special, ranked)[:, :pruned]
        sizes = tokens.sizes
        tokens = tokens.with_size(sizes).kept(Selection(order, count))
        return tokens if kept == pruned else _merge_behind(tokens, kept)

    def _left(self, counts: tuple[int, ...] | None, layer: Layer, default: int) -> int:
        if counts is None:
            return default
        check(
            len(counts) == layer.depth,
            f"The schedule holds {len(counts)} numbers, and the model has {layer.depth} blocks.",
            "Give one number for each block.",
        )
        return counts[layer.index]


def _merge_behind(tokens: Tokens, kept: int) -> Tokens:
    """Merges the tokens behind the first ``kept`` into the patches among these."""
    x, special, count = tokens.x, tokens.special, tokens.count
    a, b = slice(kept, count), slice(special, kept)
    metric = normalised(x)
    scores = metric[:, a] @ metric[:, b].transpose(-1, -2)
    matching = Matching(
        count,
        x.shape[0],
        slice(0, special),
        a,
        b,
        *bipartite_match(scores, count - kept, "index"),
    )
    best: Tensor = scores.amax(dim=-1)
    sizes = tokens.sizes
    grown = torch.cat([sizes[:, :kept], sizes[:, a] * best[..., None]], dim=1)
    return tokens.merged(matching, matching(x, "mean"), matching(grown))


#: Characters of a schedule, at most.
_LONGEST = 1 << 16


def _read_schedule(path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reads the two lists of a file."""
    try:
        if (
            Path(path).exists() and not Path(path).is_file()
        ):  # a pipe is waited for, and a device has no end
            raise OSError("it is no file")
        with open(path, encoding="utf-8") as file:
            lists = json.loads(file.read(_LONGEST))
        prune, merge = (tuple(int(one) for one in lists[key]) for key in ("prune", "merge"))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        check(
            False,
            f"The schedule {path} cannot be read: {type(error).__name__}: {error}",
            'Give a JSON file {"prune": [197, …], "merge": [197, …]}, one number for each block.',
        )
        raise
    return prune, merge
