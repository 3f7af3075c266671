"""Casts operands of different types to the type that PyTorch computes in.

Before → after::

    1.0 - mask, of integers        →  1.0 - float(mask)
    ids * scale, of two types      →  float(ids) * scale
    sqrt(count), of an integer     →  sqrt(float(count))
    cat([a, b]), of two types      →  both in the type of the result
    a + b, of bytes or truths      →  byte(int32(a) + int32(b))

ONNX has no type promotion: an operator takes one type. What is computed in comes from
``torch.result_type`` for comparisons, and is the type of the result elsewhere (PyTorch, "Type
promotion attributes"). Whole numbers of fewer than 32 bits have arithmetic in few runtimes, and one
that saturates in some where PyTorch's wraps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    is_call,
    is_tensor,
    operator_name,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

#: Operators that compute in the type of their result.
_BY_RESULT: Final = frozenset(
    f"aten.{name}"
    for line in (
        "add sub rsub mul div pow remainder fmod minimum maximum fmin fmax atan2 hypot",
        "floor_divide abs neg lerp addcmul addcdiv clamp clamp_min clamp_max bitwise_and",
        "bitwise_or bitwise_xor cat stack sqrt rsqrt exp exp2 expm1 log log2 log10 log1p",
        "sin cos tan sinh cosh asin acos atan asinh acosh atanh tanh sigmoid erf reciprocal",
        "softmax log_softmax gelu silu softplus sum mean prod cumsum cumprod logaddexp xlogy",
    )
    for name in line.split()
)
#: Of those, the ones that have a form for narrow types everywhere.
_NARROW_TOO: Final = frozenset(
    f"aten.{name}" for name in ("cat", "stack", "bitwise_and", "bitwise_or", "bitwise_xor")
)
_NARROW: Final = (torch.bool, torch.uint8, torch.int8, torch.int16)
#: Operators that take positions, in int64 in ONNX.
_BY_POSITION: Final = (aten.index.Tensor, aten.index_put.default)
#: Operators that compare in the type that both have in common.
_BY_COMMON: Final = frozenset(f"aten.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge"))


class PromoteTypes(TorchPass):
    """Inserts the casts of PyTorch's type promotion."""

    name: ClassVar[str] = "promote types"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many operands it cast."""
        changed = 0
        for node in list(edit.graph.nodes):
            if is_call(node, *_BY_POSITION):
                changed += _widen_positions(edit, node)
            wanted = _computed_in(node)
            if wanted is None:
                continue
            own = dtype_of(node)
            narrow = own in _NARROW and operator_name(node) not in {*_BY_COMMON, *_NARROW_TOO}
            with edit.before(node):
                args, kwargs, count = _cast(edit, node, torch.int32 if narrow else wanted)
                if narrow:
                    wide = edit.call(node.target, *args, **kwargs)
                    edit.replace(node, edit.call(aten._to_copy.default, wide, dtype=own))
                    count += 1
                elif count:
                    node.args, node.kwargs = args, kwargs
            changed += count
        return changed


def _widen_positions(edit: Editor, node: Node) -> int:
    """Casts positions in int32 to int64."""
    indices = list(argument(node, "indices"))
    narrow = [i for i, one in enumerate(indices) if is_tensor(one) and dtype_of(one) == torch.int32]
    with edit.before(node):
        for i in narrow:
            indices[i] = edit.call(aten._to_copy.default, indices[i], dtype=torch.int64)
    if narrow:
        node.args = (node.args[0], indices, *node.args[2:])
    return len(narrow)


def _computed_in(node: Node) -> torch.dtype | None:
    """Returns the type that a call computes in; None where its operands are left as they are."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = operator_name(node)
    if name in _BY_COMMON:
        first, second = node.args[:2]
        return torch.result_type(_number(first), _number(second))
    if name in _BY_RESULT or (name == "aten.where" and len(node.args) == 3):
        found = node.meta.get("val")
        return found.dtype if isinstance(found, torch.Tensor) else None
    return None


def _number(part: Any) -> Any:
    return value(part) if isinstance(part, Node) else part


def _cast(
    edit: Editor, node: Node, wanted: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Returns what a call takes with its tensors cast, and how many were.

    The condition of a ``where`` is left as it is.
    """
    count = 0

    def cast(part: Any) -> Any:
        nonlocal count
        if isinstance(part, list | tuple):
            return type(part)(map(cast, part))
        if not is_tensor(part) or dtype_of(part) == wanted:
            return part
        if dtype_of(part).is_complex and not wanted.is_complex:  # an absolute value is real
            return part
        count += 1
        return edit.call(aten._to_copy.default, part, dtype=wanted)

    first = 1 if operator_name(node) == "aten.where" else 0
    args = (*node.args[:first], *map(cast, node.args[first:]))
    return args, {name: cast(part) for name, part in node.kwargs.items()}, count
