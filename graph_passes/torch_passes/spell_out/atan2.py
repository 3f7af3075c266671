"""Writes the angle of a point as one of the first quadrant, turned by the signs of the point.

Before → after::

    atan2(y, x)   →   ±(π - a if x is negative else a),  a = atan(|y| / |x|)

The sign is that of y, and a zero has a sign too: as in C, the angle of (0, -1) is π and that of
(-0, -1) is -π. What torch's exporter writes has -π for both, and forgets the sign of x = -0.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import dtype_of, operand
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling
from tokexport.graph_passes.torch_passes.spell_out.sign_bits import as_type, has_minus


class SpellOutAtan2(NodePass):
    """Rewrites angles of points by arc tangents of quotients."""

    name: ClassVar[str] = "spell out atan2"

    targets = (aten.atan2.default,)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches every angle."""
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    wanted = dtype_of(node)
    y, x = (as_type(edit, operand(node, name), wanted) for name in ("self", "other"))
    above, beside = (edit.call(aten.abs.default, part) for part in (y, x))
    # of the point (0, 0) the quotient is 0 / 1
    both = edit.call(aten.add.Tensor, above, beside)
    one = edit.call(aten.ones_like.default, both)
    nowhere = edit.call(aten.eq.Scalar, both, 0)
    angle = edit.call(aten.div.Tensor, above, edit.call(aten.where.self, nowhere, one, beside))
    angle = edit.call(aten.atan.default, angle)
    behind = edit.call(aten.rsub.Scalar, angle, math.pi)
    angle = edit.call(aten.where.self, has_minus(edit, x), behind, angle)
    return edit.call(aten.where.self, has_minus(edit, y), edit.call(aten.neg.default, angle), angle)
