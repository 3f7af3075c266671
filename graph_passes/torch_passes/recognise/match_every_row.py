"""Recognises a match in which every row of one token set merges into its best partner.

Before → after, with scores (B, Na, Nb)::

    partner = scores.argmax(-1)               kept, src, dst = bipartite_match(scores, Na, "score")
    scatter_tokens(b, partner, x, mode)    →  merge_tokens(x, b, kept, src, dst, mode)
    merge_tokens(a, b, rest, rows,         →  merge_tokens(a, b, rest, rows.gather(1, src), dst,
                 partner, mode)                            mode)

where kept is (B, 0); a scatter that leaves out the row that was there stays one, of
``gather_tokens(x, src)``. The pairs are the same in another order, so ``mode`` must not depend on
it, and nothing else may read the partners: other readers, for example of nearest neighbours, need
no match. Sources: the second half of PiToMe (Tran et al. 2024) and the merging of DiffRate (Chen et
al. 2023). Eager ranks nothing here; ``PARTNERS`` notes what it decides. More rows than TensorRT
ranks are left alone: it takes their arg-max.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.onnx_passes.targets.refuse_for_tensorrt import LARGEST_TOP_K
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import PARTNERS, STANDS_FOR, Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import reads_only_shape
from tokexport.graph_passes.torch_passes.match.index_expressions import IndexReader, Partner, Signed
from tokexport.graph_passes.torch_passes.recognise.recognise_matches import make_match


class MatchEveryRow(TorchPass):
    """Finds best partners that are only merged into."""

    name: ClassVar[str] = "match every row"
    comes_before: ClassVar[tuple[str, ...]] = ("sort stably",)

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many matches there are."""
        reader = IndexReader()
        readings: dict[Signed, list[Node]] = defaultdict(list)
        for node in edit.graph.nodes:
            meaning = reader.read(node)
            if isinstance(meaning, Partner) and dtype_of(node) == torch.int64:
                readings[meaning.scores].append(node)
        return sum(_rewrite(edit, scores, partners) for scores, partners in readings.items())


def _rewrite(edit: Editor, scores: Signed, partners: list[Node]) -> bool:
    """Replaces the partners of one score matrix, unless something else reads them."""
    users = dict.fromkeys(u for node in partners for u in node.users if u not in partners)
    alike = [user for user in users if reads_only_shape(user)]
    readers = [user for user in users if user not in alike]
    if not readers or not all(_merges(reader, partners) for reader in readers):
        return False
    rows = shape_of(scores.node)[2 if scores.turned else 1]
    if not dtype_of(scores.node).is_floating_point or rows > LARGEST_TOP_K:
        return False
    with edit.after(scores.node, origin=partners[0]):
        match = make_match(edit, scores, rows, "score")
        results = [edit.item(match, position) for position in range(3)]
    match.meta[PARTNERS] = tuple(
        name for node in partners for name in (node.name, *node.meta.get(STANDS_FOR, ()))
    )
    for reader in readers:
        with edit.before(reader):
            new = _merged(edit, reader, *results)
        edit.replace(reader, new)
    for user in alike:
        source = operand(user)
        with edit.before(user):
            column = edit.view(
                results[2], (*shape_of(source)[:2], *[1] * len(shape_of(source)[2:]))
            )
            user.replace_input_with(source, edit.expand(column, shape_of(source)))
    return True


def _merges(node: Node, partners: list[Node]) -> bool:
    """Returns whether a reader merges rows into these partners in an order that does not matter."""
    domain = torch.ops.tokexport
    if is_call(node, domain.scatter_tokens.default):
        destinations = "index"
    elif is_call(node, domain.merge_tokens.default):
        destinations = "dst"
    else:
        return False
    once = sum(part in partners for part in node.args) == 1
    return once and operand(node, destinations) in partners and argument(node, "mode") != "none"


def _merged(edit: Editor, reader: Node, kept: Node, src: Node, dst: Node) -> Node:
    """Inserts what a scatter or a merge is with its sources ranked."""
    domain, mode = torch.ops.tokexport, argument(reader, "mode")
    if is_call(reader, domain.merge_tokens.default):
        rows = edit.call(aten.gather.default, operand(reader, "src"), 1, src)
        a, b, rest = (operand(reader, name) for name in ("a", "b", "kept"))
        return edit.call(domain.merge_tokens.default, a, b, rest, rows, dst, mode)
    x, b = operand(reader, "src"), operand(reader, "dst")
    if argument(reader, "include_self"):
        return edit.call(domain.merge_tokens.default, x, b, kept, src, dst, mode)
    moved = edit.call(domain.gather_tokens.default, x, src)
    return edit.call(domain.scatter_tokens.default, b, dst, moved, mode, False)
