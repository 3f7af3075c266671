"""Makes attention read queries, keys and values where the projections wrote them.

Before → after, for q, k and v that are only moved between a projection and the attention::

    Reshape(Transpose(attention(q, k, v)))      q, k, v (B, H, N, D), views of (B, N, ·)
    →  rows_attention(qkv, qkv, qkv; q_start=0, k_start=H·D, v_start=2·H·D)

The heads lie side by side in the rows, as every projection of a ViT writes them, packed in one
product or in three. The kernel of ``rows_attention`` reads them by strides and writes rows again,
so that neither the split into heads nor the way back is a copy. Its body in standard operators
slices and transposes as the model did.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.heads_in_rows import HeadsInRows, heads_in_rows
from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import only_reader
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason

_NAMES: Final = {"attention": "rows_attention", "sized_attention": "rows_sized_attention"}


class AttentionOnRows(NodePass):
    """Rewrites attention whose heads lie side by side in rows."""

    name = "attention on rows"
    comes_before = ("attention by size",)
    domain = DOMAIN
    op_types = tuple(_NAMES)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches heads that are views of rows, joined to rows again behind the attention."""
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            return Reason("it is not of float32")
        last = _joined_heads(node.outputs[0])
        if last is None:
            return Reason("its heads are not joined to rows right behind it")
        heads = [heads_in_rows(value) for value in node.inputs[:3]]
        for name, found in zip(("queries", "keys", "values"), heads, strict=True):
            if found is None:
                return Reason(f"its {name} are not heads side by side in rows")
        q, k, v = (found for found in heads if found is not None)
        if len({(found.heads, found.depth) for found in (q, k, v)}) != 1:
            return Reason("its queries, keys and values have heads of different numbers or widths")
        return partial(_rewrite, node, last, q, k, v)


def _rewrite(node: ir.Node, last: ir.Node, q: HeadsInRows, k: HeadsInRows, v: HeadsInRows) -> None:
    new = Replacement(last)
    rows = new.call(
        _NAMES[node.op_type],
        q.rows,
        k.rows,
        v.rows,
        *node.inputs[3:],
        domain=DOMAIN,
        scale=node.attributes.get_float("scale"),
        heads=[q.heads],
        depth=[q.depth],
        q_start=[q.start],
        k_start=[k.start],
        v_start=[v.start],
    )
    new.put(rows)


def _joined_heads(value: ir.Value) -> ir.Node | None:
    """Returns the Reshape that joins the heads (B, H, N, D) to rows, their only reader."""
    shape = shape_of(value)
    turned = only_reader(value)
    if shape is None or turned is None or turned.op_type != "Transpose":
        return None
    if tuple(turned.attributes.get_ints("perm", ())) != (0, 2, 1, 3):
        return None
    joined = only_reader(turned.outputs[0])
    if joined is None or joined.op_type != "Reshape":
        return None
    wanted = (shape[0], shape[2], shape[1] * shape[3])
    return joined if shape_of(joined.outputs[0]) == wanted else None
