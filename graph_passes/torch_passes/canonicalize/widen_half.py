"""Computes in float32 what the model computes in a half type, for example under autocast.

Before → after::

    _to_copy(x, dtype=bfloat16) → linear (bfloat16) → …  →  linear (float32) → …
    an input or output in a half type keeps it: it is cast behind the input, before the output

No CPU runtime has operators for bfloat16, and float32 is more exact than a half type on every
target. This changes rounding only, which the tolerances account for.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tokexport.graph_passes.stack_traces import own_frames
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

_HALVES: Final = (torch.float16, torch.bfloat16)
#: The most lines that are named; beyond it, their callers are named.
_FEW_LINES: Final = 4


class WidenHalf(TorchPass):
    """Turns values of half types into float32."""

    name: ClassVar[str] = "widen half types"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many values were widened."""
        changed = 0
        (output,) = edit.graph.find_nodes(op="output")
        halves = [_half_of(node) if isinstance(node, Node) else None for node in output.args[0]]
        for node in list(edit.graph.nodes):
            if node.op == "placeholder" and _half_of(node) is not None:
                with edit.after(node, origin=node):
                    wide = edit.call(aten._to_copy.default, node, dtype=torch.float32)
                for user in [user for user in node.users if user is not wide]:
                    user.replace_input_with(node, wide)
                changed += 1
            elif node.op == "call_function":
                node.args = tuple(map(_wider, node.args))
                node.kwargs = {name: _wider(value) for name, value in node.kwargs.items()}
                changed += _half_of(node) is not None
                node.meta["val"] = _widened(node.meta.get("val"))
        results = list(output.args[0])
        for place, half in enumerate(halves):
            if half is not None:
                with edit.before(output):
                    results[place] = edit.call(aten._to_copy.default, results[place], dtype=half)
        output.args = (tuple(results),)
        return changed


def half_lines(graph: Graph) -> tuple[str, ...]:
    """Returns where the user's code computes in a half type or rounds to one, with the type.

    They are the innermost lines if those are few, and otherwise their callers.
    """
    found = {
        (str(half).removeprefix("torch."), *_frames(node)): None
        for node in graph.nodes
        if node.op == "call_function"
        and (half := _half_of(node)) is not None
        and not _only_leaves(node)
    }
    for depth in range(max(map(len, found), default=0), 1, -1):
        places = dict.fromkeys((half, frames[: depth - 1][-1]) for half, *frames in found)
        if len(places) <= _FEW_LINES:
            break
    return tuple(f"{half} {place}" for half, place in places) if found else ()


def _frames(node: Node) -> list[str]:
    """Returns the lines of a node, from the outside in, or its module without a line.

    Lines of packages count only without others.
    """
    every = [f"at {frame}" for frame in own_frames(node)]
    frames = [frame for frame in every if "site-packages" not in frame] or every
    _, kind = next(reversed(node.meta.get("nn_module_stack", {"": ("", "the model")}).values()))
    return frames or [f"in a region of {kind}"]


def _only_leaves(node: Node) -> bool:
    """Returns whether a value is cast only to be an output, which stays so, or is of that type."""
    if node.target is not aten._to_copy.default:
        return False
    (given, *_) = node.all_input_nodes
    return all(user.op == "output" for user in node.users) or _half_of(given) is _half_of(node)


def _half_of(node: Node) -> torch.dtype | None:
    """Returns the half type of a value, or of the first of several; None for other types."""
    values = node.meta.get("val")
    for value in values if isinstance(values, tuple | list) else (values,):
        if isinstance(value, Tensor) and value.dtype in _HALVES:
            return value.dtype
    return None


def _widened(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_widened, value))
    if isinstance(value, Tensor) and value.dtype in _HALVES:
        return value.to(torch.float32)
    return value


def _wider(value: Any) -> Any:
    return torch.float32 if value in _HALVES else value
