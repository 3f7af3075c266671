"""Writes complex values as pairs of real ones.

Before → after, with a + ib for a complex value::

    view_as_complex(w)              →  w[..., 0], w[..., 1]
    rfft2(x), irfft2(y), …          →  products with constants of cosines and sines, axis by axis
    y · view_as_complex(w)          →  a c - b d,  a d + b c
    reshape, cat, index, sum, …     →  the same of a, and of b
    abs(y), view_as_real(y), y.imag →  √(a² + b²),  stack([a, b], -1),  b

An operator without a rule takes, and gives, a complex value as before. ONNX has no complex numbers;
runtimes have the Fourier transform of one axis or none, and OpenVINO gets that of two axes wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch.fx import Node

from tokexport.graph_passes.torch_passes.canonicalize.complex_rules import Context, spelled
from tokexport.graph_passes.torch_passes.graph.calls import is_call, is_tensor, shape_of
from tokexport.graph_passes.torch_passes.graph.complex_pairs import Pair, is_complex
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass
from tokexport.graph_passes.torch_passes.match.constant_values import ConstantValues


class SplitComplex(TorchPass):
    """Turns complex values into pairs of real ones, and Fourier transforms into products."""

    name: ClassVar[str] = "split complex values"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many calls it spelled out."""
        pairs: dict[Node, Pair] = {}
        context = Context(edit, pairs, ConstantValues())
        whole: set[Node] = set()
        changed = 0
        for node in list(edit.graph.nodes):
            takes = [part for part in node.all_input_nodes if is_complex(part)]
            if node.op == "placeholder" and is_complex(node):
                pairs[node] = _given(edit, node)
                whole.add(node)
            if node.op in ("placeholder", "output") or not (takes or _gives(node)):
                _join(edit, node, takes, pairs, whole)
                continue
            with edit.before(node):
                pair = _spelled(context, node, takes)
            if pair is None:
                _join(edit, node, takes, pairs, whole)
                if is_complex(node) and is_tensor(node):
                    pairs[node] = _given(edit, node)
                    whole.add(node)
                continue
            changed += 1
            if is_complex(node):
                pairs[node] = pair
            else:
                edit.replace(node, pair.real)
        return changed


def _gives(node: Node) -> bool:
    """Returns whether a call gives a complex value, or moves a real one as only they are."""
    return is_complex(node) or is_call(node, aten.fft_fftshift.default, aten.fft_ifftshift.default)


def _spelled(context: Context, node: Node, takes: Sequence[Node]) -> Pair | None:
    """Inserts the replacement of a call; None without a rule."""
    value = context.constants.of(node)
    if value is not None and value.is_complex():
        return Pair(context.edit.constant(value.real), context.edit.constant(value.imag))
    if any(part not in context.pairs for part in takes):
        return None
    return spelled(context, node)


def _join(
    edit: Editor, node: Node, takes: Sequence[Node], pairs: Mapping[Node, Pair], whole: set[Node]
) -> None:
    """Makes a node without a rule read complex values."""
    for part in takes:
        if part in whole or part not in pairs:
            continue
        pair = pairs[part]
        with edit.before(node):
            both = edit.call(aten.stack.default, [pair.real, pair.filled(edit)], -1)
            node.replace_input_with(part, edit.call(aten.view_as_complex.default, both))


def _given(edit: Editor, node: Node) -> Pair:
    """Inserts the pair of a complex value that stays."""
    with edit.after(node, origin=node):
        both = edit.call(aten.view_as_real.default, node)
        last = len(shape_of(both)) - 1
        return Pair(*(edit.call(aten.select.int, both, last, place) for place in (0, 1)))
