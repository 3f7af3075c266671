"""Fuses the means of merged tokens, weighted with their sizes.

Before → after, s (B, N, 1) the sizes::

    t = merged(x · s);  n = merged(s);  t / n       →  merge_by_size(x, s, kept, src, dst)

where ``merged(v)`` is ``merge_tokens(v[:, i::k], v[:, j::k], …, sum)``, behind the first tokens of
v where some are protected. Both results are used: the tokens and their sizes. Source: ToMe (Bolya
et al. 2023), section 3.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import comes_from, made_by, maker_of
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.onnx_passes.graph.token_sets import Merged, merged
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason


class MergeBySize(NodePass):
    """Rewrites quotients of merged weighted tokens and merged sizes."""

    name = "merge by size"
    comes_before = ("cosine merge norm",)
    op_types = ("Div",)
    sorts = True  # some readers of the sizes come before what gives them now

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches the sum of weighted tokens, divided by the sum of the weights."""
        total, count = node.inputs
        found = merged(total) if total is not None else None
        if total is None or count is None or found is None:
            return None
        if total.dtype != ir.DataType.FLOAT:
            return Reason("it is not of float32")
        weighted = made_by(found.tokens, "Mul")
        if weighted is None:
            return Reason(f"what it merges comes from {maker_of(found.tokens)}, and has no weights")
        shape = shape_of(found.tokens)
        factors = [value for value in weighted.inputs if value is not None]
        assert shape is not None
        for x, size in (factors, factors[::-1]):
            if (
                shape_of(x) == shape
                and shape_of(size) == (*shape[:2], 1)
                and _counts(count, size, found)
            ):
                if count.is_graph_output() or comes_from(x, count):
                    return Reason("the merged sizes are an output, or decide what is merged")
                return partial(_rewrite, node, count, x, size, found)
        return Reason("it is divided by something else than the sum of the weights")


def _rewrite(node: ir.Node, count: ir.Value, x: ir.Value, size: ir.Value, found: Merged) -> None:
    new = Replacement(node)
    tokens = new.call(
        "merge_by_size",
        x,
        size,
        *found.indices,
        domain=DOMAIN,
        outputs=2,
        protected=[found.protected],
        a_start=[found.a_start],
        b_start=[found.b_start],
        step=[found.step],
    )
    call = tokens.producer()
    assert call is not None
    new.put(tokens)
    new.move_readers(count, call.outputs[1])


def _counts(count: ir.Value, size: ir.Value, found: Merged) -> bool:
    """Returns whether a value is the sizes merged the same way."""
    if ir.convenience.get_const_tensor(size) is None:
        same = merged(count)
        return same is not None and same == Merged(
            size, found.protected, found.a_start, found.b_start, found.step, found.indices
        )
    return _counts_constant(count, size, found)


def _counts_constant(count: ir.Value, size: ir.Value, found: Merged) -> bool:
    """The same where the sizes are a constant: its slices are constants by now."""
    parts = [count]
    joined = count.producer()
    if found.protected and joined is not None and joined.op_type == "Concat":
        parts = [value for value in joined.inputs if value is not None]
    merge = made_by(parts[-1], "merge_tokens_sum", DOMAIN)
    if merge is None:
        return False
    if tuple(merge.inputs[2:]) != found.indices or len(parts) != 1 + (found.protected > 0):
        return False
    sizes = _array(size)
    wanted = [
        sizes[:, found.a_start :: found.step],
        sizes[:, found.b_start :: found.step],
        sizes[:, : found.protected],
    ]
    given = [merge.inputs[0], merge.inputs[1], *parts[:-1]]
    return all(
        value is not None and np.array_equal(_array(value), right)
        for value, right in zip(given, wanted, strict=False)
    )


def _array(value: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    constant = ir.convenience.get_const_tensor(value)
    return np.zeros(0, np.float32) if constant is None else constant.numpy()
