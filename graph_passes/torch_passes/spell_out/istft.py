"""Writes the signal of a short-time spectrum as inverse transforms of its frames, added up.

Before → after, of a spectrum X (B, F, T) and frames of n numbers, h apart::

    istft(X, n, h, window)   →  add(irfft(Xᵀ) · window) / add(window²),  cut to the signal

    add(frames (B, T, n))    →  col2im to (B, 1, 1, n + h · (T - 1)), kernel (1, n), stride (1, h)

So does aten/src/ATen/native/SpectralOps.cpp. A signal of complex numbers is left alone. What
torch's exporter writes holds a scatter of 32-bit positions, which no runtime loads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokexport.graph_passes.pass_report import Reason
from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    dtype_of,
    operand,
    shape_of,
    value,
)
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.graph.node_pass import NodePass, Spelling


class SpellOutIstft(NodePass):
    """Rewrites ``istft`` of real signals."""

    name: ClassVar[str] = "spell out istft"
    comes_before: ClassVar[tuple[str, ...]] = ("fold transforms", "split complex values")

    targets = (aten.istft.default,)

    def match(self, node: Node) -> Spelling | Reason | None:
        """Matches a signal of real numbers."""
        if argument(node, "return_complex"):
            return Reason("its signal is of complex numbers")
        return _spelled


def _spelled(edit: Editor, node: Node) -> Node:
    spectrum, count = operand(node), int(argument(node, "n_fft"))
    hop = int(argument(node, "hop_length") or count // 4)
    alone = len(shape_of(spectrum)) == 2
    if alone:
        spectrum = edit.call(aten.unsqueeze.default, spectrum, 0)
    frames = edit.call(aten.transpose.int, spectrum, 1, 2)
    frames = edit.cut(frames, 2, 0, count // 2 + 1)
    norm = "ortho" if argument(node, "normalized") else "backward"
    frames = edit.call(aten.fft_irfft.default, frames, count, 2, norm)
    window = _window(edit, node, count, dtype_of(frames))
    signal = _added(edit, edit.call(aten.mul.Tensor, frames, window), hop)
    squares = edit.call(aten.mul.Tensor, window, window)
    squares = edit.expand(squares, (1, shape_of(frames)[1], count))
    envelope = _added(edit, squares, hop)
    size = shape_of(signal)[1]
    start = count // 2 if argument(node, "center") else 0
    length = argument(node, "length")
    end = size - start if length is None else start + int(length)
    parts = (edit.cut(part, 1, start, min(end, size)) for part in (signal, envelope))
    found = edit.call(aten.div.Tensor, *parts)
    if end > size:
        found = edit.call(aten.constant_pad_nd.default, found, [0, end - size], 0)
    return edit.call(aten.squeeze.dim, found, 0) if alone else found


def _window(edit: Editor, node: Node, count: int, dtype: torch.dtype) -> Node:
    """Inserts the window of a frame (1, 1, n), with zeros on both sides of a shorter one."""
    given: Any = argument(node, "window")
    if not isinstance(given, Node):
        given = edit.constant(torch.ones(argument(node, "win_length") or count, dtype=dtype))
    if dtype_of(given) != dtype:
        given = edit.call(aten._to_copy.default, given, dtype=dtype)
    (width,) = value(given).shape
    before = (count - width) // 2
    if width < count:
        sides = [before, count - width - before]
        given = edit.call(aten.constant_pad_nd.default, given, sides, 0)
    return edit.view(given, (1, 1, count))


def _added(edit: Editor, frames: Node, hop: int) -> Node:
    """Inserts the sum of frames (B, T, n), each hop numbers behind the one before: (B, L)."""
    batch, times, count = shape_of(frames)
    size = count + hop * (times - 1)
    columns = edit.call(aten.transpose.int, frames, 1, 2)
    cut = [1, size], [1, count], [1, 1], [0, 0], [1, hop]
    return edit.view(edit.call(aten.col2im.default, columns, *cut), (batch, size))
