"""Writes an antialiased resize as two products with constants.

Before → after, for images (B, C, H, W)::

    interpolate(x, (h, w), antialias=True)   →  R x Cᵀ,  R (h, H) and C (w, W)

R and C are what PyTorch gives for unit vectors in float64, whatever the filter, the corners and the
scale. TensorRT does not have this resize; OpenVINO's and ONNX's differ from it, the latter by the
scale and where corners are aligned.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.match.constant_values import multiplied

#: By the operator that takes sizes: the one that takes factors.
_RESIZES: Final = {
    getattr(aten, name).default: getattr(aten, name).vec
    for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa")
    if hasattr(aten, name)
}
_ROWS, _COLUMNS = 2, 3


class SpellOutResizes(NodePass):
    """Turns antialiased resizes into products with constants."""

    name: ClassVar[str] = "spell out resizes"

    targets = (*_RESIZES, *_RESIZES.values())

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches a resize of floats."""
        dtype = dtype_of(operand(node, _source(node)))
        if not dtype.is_floating_point:
            return Reason(f"it is of {dtype}, whose sums are rounded")
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    x = operand(node, _source(node))
    for axis in (_COLUMNS, _ROWS):
        x = multiplied(edit, x, axis, _matrix(node, axis))
    return x


def _source(node: Node) -> str:
    return "self" if is_call(node, *_RESIZES) else "input"


def _matrix(node: Node, axis: int) -> Tensor:
    """Returns the matrix (k, n) of the resize of one axis, in float64."""
    given, wanted = shape_of(operand(node, _source(node)))[axis], shape_of(node)[axis]
    # The other axis stays; torch errs where it is a single row or column.
    shape, size = [given, 1, 2, 2], [2, 2]
    shape[axis], size[axis - _ROWS] = given, wanted
    along = [given, 1, 1, 1]
    along[axis] = given
    units = torch.eye(given, dtype=torch.float64).reshape(along).expand(shape).contiguous()
    target: Any = next(
        one for one, of_factors in _RESIZES.items() if node.target in (one, of_factors)
    )
    scale = _scale(node, axis)
    scales = (scale, None) if axis == _ROWS else (None, scale)
    found: Tensor = target(units, size, argument(node, "align_corners"), *scales)
    return found.select(_ROWS + _COLUMNS - axis, 0).reshape(given, wanted).T


def _scale(node: Node, axis: int) -> float | None:
    """Returns the factor that the call names for an axis; None where sizes alone say it."""
    if is_call(node, *_RESIZES):
        found: float | None = argument(node, "scales_h" if axis == _ROWS else "scales_w")
        return found
    factors = argument(node, "scale_factors")
    return None if factors is None else float(factors[axis - _ROWS])
