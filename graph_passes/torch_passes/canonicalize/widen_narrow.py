"""Casts whole numbers of fewer than 32 bits to compare, order and choose among them.

Before → after, of uint8, int8, int16 and truth values::

    amax(x), max(x)          →  cast(amax(float(x)))
    max(x, d), sort(x, d)    →  the same of float(x); values cast back, positions as they are
    argmax(x), x < y         →  argmax(float(x)), int32(x) < int32(y)
    any(x), all(x), of bytes →  byte(any(x ≠ 0)), byte(all(x ≠ 0))

Few runtimes have these operators for narrow types, and TensorRT orders floats alone; float32 holds
every number of 16 bits. A cast back is exact, since the result is one of the numbers. What computes
with them is widened by ``promote_types``.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    base_name,
    dtype_of,
    is_tensor,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

_NARROW: Final = (torch.bool, torch.uint8, torch.int8, torch.int16)
#: Operators whose results are some of the numbers that they take, or positions of them.
_CHOOSE: Final = frozenset(
    {
        *("amax", "amin", "max", "min", "aminmax", "argmax", "argmin", "sort", "argsort", "topk"),
        *("kthvalue", "median", "mode", "cummax", "cummin"),
    }
)
_COMPARE: Final = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
_TRUTH: Final = frozenset({"any", "all"})
#: Comparisons that every target has for truth values.
_OF_TRUTHS: Final = frozenset({"eq", "ne"})


class WidenNarrow(TorchPass):
    """Casts what choices among narrow whole numbers take, and casts their results back."""

    name: ClassVar[str] = "widen narrow"
    comes_before: ClassVar[tuple[str, ...]] = ("promote types", "sort stably")

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls it changed."""
        changed = 0
        for node in list(edit.graph.nodes):
            if node.op != "call_function":
                continue
            with edit.before(node):
                if _is_narrow(node):
                    _widen(edit, node)
                elif _is_of_bytes(node):
                    truth = edit.call(aten.ne.Scalar, node.args[0], 0)
                    found = edit.call(node.target, truth, *node.args[1:], **node.kwargs)
                    edit.replace(node, _cast_back(edit, found, node))
                else:
                    continue
            changed += 1
        return changed


def _is_narrow(node: Node) -> bool:
    if getattr(node.target, "namespace", "") != "aten":
        return False
    name = base_name(node.target)
    if name in _COMPARE:
        common = torch.result_type(*map(_value, node.args[:2]))
        return common in _NARROW and (common != torch.bool or name not in _OF_TRUTHS)
    tensors = [part for part in node.args if isinstance(part, Node) and is_tensor(part)]
    return name in _CHOOSE and bool(tensors) and all(dtype_of(one) in _NARROW for one in tensors)


def _is_of_bytes(node: Node) -> bool:
    """Returns whether a call asks bytes for a truth, which PyTorch gives as a byte."""
    named = getattr(node.target, "namespace", "") == "aten" and base_name(node.target) in _TRUTH
    return named and is_tensor(node) and dtype_of(node) == torch.uint8


def _value(part: Any) -> Any:
    return value(part) if isinstance(part, Node) else part


def _widen(edit: Editor, node: Node) -> None:
    wider = torch.int32 if base_name(node.target) in _COMPARE else torch.float32
    args = [
        edit.call(aten._to_copy.default, part, dtype=wider) if is_tensor(part) else part
        for part in node.args
    ]
    target: Any = node.target
    wide = edit.call(target, *args, **node.kwargs)
    if is_tensor(node):
        edit.replace(node, _cast_back(edit, wide, node))
        return
    for part in list(node.users):
        assert part.target is operator.getitem
        position: Any = part.args[1]
        edit.replace(part, _cast_back(edit, edit.item(wide, position), part))


def _cast_back(edit: Editor, wide: Node, old: Node) -> Node:
    if dtype_of(wide) == dtype_of(old):
        return wide
    if dtype_of(old) == torch.bool:  # OpenVINO 2026.4 does not cast a sort's values to it
        return edit.call(aten.ne.Scalar, wide, 0)
    return edit.call(aten._to_copy.default, wide, dtype=dtype_of(old))
