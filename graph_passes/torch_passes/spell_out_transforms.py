"""Writes a Fourier transform that is read as real numbers with real products.

Before → after, with C = cos and S = sin of 2π j k / n::

    view_as_real(fft(x, dim))   →  stack([C x, -S x], -1)
    fft2(x).abs()               →  √(a² + b²), a and b of one axis after the other:
                                   a' = C a + S b,  b' = C b - S a

What is read of the result must be its real or imaginary part, both, or its absolute value; a
transform of complex numbers, one that cuts or pads its input, and a result that goes elsewhere
stay. At a static size C and S are constants. TensorRT has no Fourier transform, and OpenVINO gets
that of two axes wrong. Source: torch.fft, whose transform goes with e^(-2πi j k / n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch.fx import Node

from tokexport.graph_passes.torch_passes.calls import (
    argument,
    dtype_of,
    is_call,
    normal_axis,
    operand,
    shape_of,
)
from tokexport.graph_passes.torch_passes.editor import Editor, aten
from tokexport.graph_passes.torch_passes.infrastructure import TorchPass

_OF_ONE_AXIS: Final = (aten.fft_fft.default, aten.fft_rfft.default)
_OF_AXES: Final = (
    aten.fft_fft2.default,
    aten.fft_fftn.default,
    aten.fft_rfft2.default,
    aten.fft_rfftn.default,
)
#: Those that leave out the second half of the last axis, which repeats the first.
_HALVED: Final = (aten.fft_rfft.default, aten.fft_rfft2.default, aten.fft_rfftn.default)
_READERS: Final = (
    aten.view_as_real.default,
    aten.real.default,
    aten.imag.default,
    aten.abs.default,
)


class SpellOutTransforms(TorchPass):
    """Turns Fourier transforms of real numbers into products with cosines and sines."""

    name: ClassVar[str] = "spell out transforms"

    def call(self, edit: Editor) -> int:
        """Rewrites the graph in place and returns how many transforms it spelled out."""
        changed = 0
        for node in list(edit.graph.nodes):
            axes = _axes(node)
            if axes and node.users and all(is_call(user, *_READERS) for user in node.users):
                _spell_out(edit, node, axes)
                changed += 1
        return changed


def _axes(node: Node) -> list[int]:
    """Returns the axes of a transform of real numbers at their own size; none for another call."""
    if not is_call(node, *_OF_ONE_AXIS, *_OF_AXES):
        return []
    source = operand(node)
    if not dtype_of(source).is_floating_point:
        return []
    sizes, rank = shape_of(source), len(shape_of(source))
    if is_call(node, *_OF_ONE_AXIS):
        axes, given = [argument(node, "dim")], [argument(node, "n")]
    else:
        named = argument(node, "dim")
        axes = [*range(rank)] if named is None else [*named]
        given = argument(node, "s") or [None] * len(axes)
    axes = [normal_axis(axis, rank) for axis in axes]
    fits = all(n in (None, sizes[axis]) for n, axis in zip(given, axes, strict=True))
    return axes if fits and len(set(axes)) == len(axes) else []


def _spell_out(edit: Editor, node: Node, axes: Sequence[int]) -> None:
    source = operand(node)
    scale = _scale(argument(node, "norm"), math.prod(shape_of(source)[axis] for axis in axes))
    with edit.before(node):
        real, imaginary = source, None
        for position, axis in enumerate(reversed(axes)):
            # the axis that is halved comes first, while its input is real
            kept = shape_of(node)[axis] if is_call(node, *_HALVED) else shape_of(source)[axis]
            factor = scale if position == 0 else 1.0
            real, imaginary = _of_axis(edit, real, imaginary, axis, kept, factor)
        assert imaginary is not None
        for reader in list(node.users):
            edit.replace(reader, _read(edit, reader, real, imaginary))


def _scale(norm: str | None, count: int) -> float:
    if norm == "ortho":
        return 1.0 / math.sqrt(count)
    return 1.0 / count if norm == "forward" else 1.0


def _of_axis(
    edit: Editor, real: Node, imaginary: Node | None, axis: int, kept: int, factor: float
) -> tuple[Node, Node]:
    """Inserts the transform of one axis of a pair; no second of it stands for zeros."""
    size = shape_of(real)[axis]
    turns = torch.outer(torch.arange(kept), torch.arange(size)).remainder(size)
    angles = turns.double() * (2 * math.pi / size)
    cosines, sines = (
        edit.constant((part * factor).to(dtype_of(real))) for part in (angles.cos(), angles.sin())
    )

    def product(matrix: Node, x: Node) -> Node:
        rank = len(shape_of(x))
        order = [a for a in range(rank) if a != axis] + [axis]
        turned = edit.call(aten.transpose.int, matrix, 0, 1)
        moved = edit.call(aten.matmul.default, edit.permute(x, order), turned)
        return edit.permute(moved, [order.index(a) for a in range(rank)])

    def call(target: Any, *parts: Node) -> Node:
        return edit.call(target, *parts)

    first, second = product(cosines, real), call(aten.neg.default, product(sines, real))
    if imaginary is None:
        return first, second
    return (
        call(aten.add.Tensor, first, product(sines, imaginary)),
        call(aten.add.Tensor, second, product(cosines, imaginary)),
    )


def _read(edit: Editor, reader: Node, real: Node, imaginary: Node) -> Node:
    """Inserts what a reader takes of a pair."""
    if is_call(reader, aten.real.default):
        return real
    if is_call(reader, aten.imag.default):
        return imaginary
    if is_call(reader, aten.view_as_real.default):
        return edit.call(aten.stack.default, [real, imaginary], -1)
    squares = [edit.call(aten.mul.Tensor, part, part) for part in (real, imaginary)]
    return edit.call(aten.sqrt.default, edit.call(aten.add.Tensor, *squares))
