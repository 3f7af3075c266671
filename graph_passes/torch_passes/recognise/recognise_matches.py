"""Recognises bipartite soft matching and makes it one ``bipartite_match``.

Before → after::

    best, partner = scores.max(-1)                  kept, src, dst =
    ranked = best.argsort(descending=True)     →        bipartite_match(scores, r, order)
    src, kept = ranked[:, :r], ranked[:, r:]
    dst = partner.gather(1, src)
    kept = kept.sort(1)[0]                          # order "index"; without it "score"

Source of the algorithm: Bolya et al. 2023 (ToMe), section 3. The meaning that ``index_expressions``
reads decides, not the spelling: argsort, sort or topk, any axes of size 1 between. Where the best
is the smallest, as of distances, the match is that of the negated scores; where it is the best of
each column, that of the transposed ones. The partners of the r best rows must be read; without them
it is a ranking, not a match.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, shape_of
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.index_expressions import (
    Ascending,
    IndexReader,
    Meaning,
    PartnerOf,
    Ranked,
    Signed,
    best_of,
)

_Readings = list[tuple[Node, Meaning]]


class RecogniseMatches(TorchPass):
    """Finds the r best pairs between two token sets, in whatever order they are then used."""

    name: ClassVar[str] = "recognise matches"
    comes_before: ClassVar[tuple[str, ...]] = ("gather rows", "scatter rows", "sort stably")

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many matches there are."""
        reader = IndexReader()
        readings: dict[Signed, _Readings] = defaultdict(list)
        for node in edit.graph.nodes:
            meaning = reader.read(node)
            scores = _scores(meaning)
            if meaning is not None and scores is not None and dtype_of(node) == torch.int64:
                readings[scores].append((node, meaning))
        return sum(_rewrite(edit, scores, found) for scores, found in readings.items())


def _scores(meaning: Meaning | None) -> Signed | None:
    """Returns the score matrix that a meaning speaks of."""
    if isinstance(meaning, PartnerOf):
        return meaning.scores if best_of(meaning.at.values) == meaning.scores else None
    ranked = meaning.of if isinstance(meaning, Ascending) else meaning
    return best_of(ranked.values) if isinstance(ranked, Ranked) else None


def _rewrite(edit: Editor, scores: Signed, found: _Readings) -> int:
    """Replaces the indices of one score matrix; returns the number of matches made."""
    rows = shape_of(scores.node)[2 if scores.turned else 1]
    known = {node for node, _ in found}
    counts = {m.at.stop for _, m in found if isinstance(m, PartnerOf) and m.at.start == 0}
    matches = 0
    for r in sorted(counts - {0}):
        src = [n for n, m in found if isinstance(m, Ranked) and _span(m) == (0, r)]
        dst = [n for n, m in found if isinstance(m, PartnerOf) and _span(m.at) == (0, r)]
        kept = {
            "index": [n for n, m in found if isinstance(m, Ascending) and _span(m.of) == (r, rows)],
            "score": [n for n, m in found if isinstance(m, Ranked) and _span(m) == (r, rows)],
        }
        orders = [order for order, group in kept.items() if any(_is_read(n, known) for n in group)]
        for number, order in enumerate(orders or ["score"]):
            with edit.after(scores.node, origin=dst[0]):
                match = make_match(edit, scores, r, order)
                results = [edit.item(match, position) for position in range(3)]
            groups = (kept[order], src, dst) if number == 0 else (kept[order], [], [])
            for group, result in zip(groups, results, strict=True):
                _replace_all(edit, group, result)
            matches += 1
    return matches


def make_match(edit: Editor, scores: Signed, r: int, order: str) -> Node:
    """Inserts the match of scores as they are meant."""
    best = scores.node
    if scores.negative:
        best = edit.derived(edit.call(aten.neg.default, best))
    if scores.turned:
        best = edit.derived(edit.call(aten.transpose.int, best, 1, 2))
    return edit.call(torch.ops.tokexport.bipartite_match.default, best, r, order)


def _replace_all(edit: Editor, nodes: list[Node], rows: Node) -> None:
    """Makes the users of (B, K, 1, …) or broadcast indices read (B, K) in that shape."""
    for node in nodes:
        shape = shape_of(node)
        with edit.before(node):
            column = edit.view(rows, (*shape[:2], *(1 for _ in shape[2:])))
            spread = edit.expand(column, shape)
        edit.stand_for(rows, node)
        edit.replace(node, spread)


def _span(ranked: Ranked) -> tuple[int, int]:
    return ranked.start, ranked.stop


def _is_read(node: Node, known: set[Node]) -> bool:
    """Returns whether a call of unknown meaning reads an index."""
    return any(
        user not in known and not (user.users and all(u in known for u in user.users))
        for user in node.users
    )
