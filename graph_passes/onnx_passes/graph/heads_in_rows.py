"""Finds where the heads of queries, keys or values lie in the rows that a projection wrote."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of, view_of


@dataclass(frozen=True)
class HeadsInRows:
    """Heads (B, H, N, D) that lie side by side in rows (B, N, ·).

    Attributes:
        rows: The rows.
        start: The channel of a row where the first head begins.
        heads: H.
        depth: D.
    """

    rows: ir.Value
    start: int
    heads: int
    depth: int


def heads_in_rows(value: ir.Value | None) -> HeadsInRows | None:
    """Returns the place of heads (B, H, N, D); None where they are not a view of rows."""
    view = view_of(value) if value is not None else None
    base = shape_of(view.base) if view is not None else None
    if view is None or base is None or len(base) != 3 or len(view.shape) != 4:
        return None
    images, heads, rows, depth = view.shape
    if base[:2] != (images, rows) or view.offset + heads * depth > base[2]:
        return None
    wanted = (rows * base[2], depth, base[2], 1)
    return HeadsInRows(view.base, view.offset, heads, depth) if view.steps_by(wanted) else None
