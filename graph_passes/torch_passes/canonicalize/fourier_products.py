"""Writes Fourier transforms as products with constants, one for each axis.

With A + iB the matrix of a transform of n numbers, for a + ib along its axis::

    fft, ifft       [A -B; B A] [a; b]
    rfft, ihfft     [A; B] a
    irfft, hfft     [A -B] [a; b], of half of the numbers
    fft2, rfftn, …  one axis after the other; the halved one first, or last in inverses
    stft            the frames, by their positions, times [A; B] of one frame times the window

The matrix is what ``torch.fft`` gives for unit vectors in float64, whatever the length and the
norm: a transform that cuts its input has columns of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from tokexport.graph_passes.torch_passes.graph.calls import (
    argument,
    normal_axis,
    operator_name,
    shape_of,
)
from tokexport.graph_passes.torch_passes.graph.complex_pairs import Pair
from tokexport.graph_passes.torch_passes.graph.editor import Editor, aten
from tokexport.graph_passes.torch_passes.match.constant_values import multiplied

#: The largest matrix that is made, in elements.
LARGEST: Final = 1 << 24

_ALONG: Final[dict[str, Callable[..., Tensor]]] = {
    "fft": torch.fft.fft,
    "ifft": torch.fft.ifft,
    "rfft": torch.fft.rfft,
    "irfft": torch.fft.irfft,
    "hfft": torch.fft.hfft,
    "ihfft": torch.fft.ihfft,
}
#: What each transform of several axes is along the last of them, along the others, and whether the
#: last comes first.
_SEVERAL: Final = {
    "fft": ("fft", "fft", True),
    "ifft": ("ifft", "ifft", True),
    "rfft": ("rfft", "fft", True),
    "irfft": ("irfft", "ifft", False),
    "hfft": ("hfft", "fft", False),
    "ihfft": ("ihfft", "ifft", True),
}
#: From the real parts alone, and to real numbers.
_FROM_REAL: Final = ("rfft", "ihfft")
_TO_REAL: Final = ("irfft", "hfft")


@dataclass(frozen=True)
class Step:
    """The transform of one axis.

    Attributes:
        kind: A key of ``_ALONG``.
        axis: The axis.
        n: How many numbers it takes, or gives where it gives real ones; None takes all.
        norm: ``backward``, ``ortho`` or ``forward``.
    """

    kind: str
    axis: int
    n: int | None
    norm: str

    def matrix(self, size: int) -> Tensor:
        """Returns the complex matrix (K, size) of the transform of ``size`` numbers, in float64."""
        transform = _ALONG[self.kind]
        units = torch.eye(size, dtype=torch.float64)
        if self.kind in _FROM_REAL:
            return transform(units, n=self.n, dim=0, norm=self.norm)
        units = units.to(torch.complex128)
        found = transform(units, n=self.n, dim=0, norm=self.norm)
        if self.kind in _TO_REAL:  # of a + ib it is A a - B b
            return torch.complex(found, -transform(1j * units, n=self.n, dim=0, norm=self.norm))
        return found


def steps(node: Node, shape: Sequence[int]) -> list[Step] | None:
    """Returns the transforms of one axis that a call consists of, in order; None for no transform.

    Args:
        node: The call.
        shape: The shape of what it transforms.
    """
    name = operator_name(node).removeprefix("aten.")
    rank = len(shape)
    if name.startswith("_fft_"):
        return _of_primitive(node, name.removeprefix("_fft_"), rank)
    kind = name.removeprefix("fft_")
    if not name.startswith("fft_") or kind.rstrip("2n") not in _ALONG:
        return None
    norm = argument(node, "norm") or "backward"
    if kind in _ALONG:
        axis = normal_axis(argument(node, "dim"), rank)
        return [Step(kind, axis, argument(node, "n"), norm)]
    axes, sizes = argument(node, "dim"), argument(node, "s")
    if axes is None:
        axes = range(rank) if sizes is None else range(rank - len(sizes), rank)
    given = [None if n == -1 else n for n in sizes or [None] * len(axes)]
    pairs = [(normal_axis(axis, rank), n) for axis, n in zip(axes, given, strict=True)]
    of_last, of_others, last_first = _SEVERAL[kind.rstrip("2n")]
    last, others = Step(of_last, *pairs[-1], norm), [Step(of_others, *p, norm) for p in pairs[:-1]]
    return [last, *others] if last_first else [*others, last]


def _of_primitive(node: Node, kind: str, rank: int) -> list[Step] | None:
    """Reads the transforms of one axis in a call of torch.fft."""
    axes = [normal_axis(axis, rank) for axis in argument(node, "dim")]
    scaled = argument(node, "normalization")
    forward = ("backward", "ortho", "forward")[scaled]
    back = ("forward", "ortho", "backward")[scaled]
    if kind == "r2c":
        first = "rfft" if argument(node, "onesided") else "fft"
        *others, last = axes
        return [Step(first, last, None, forward), *(Step("fft", a, None, forward) for a in others)]
    if kind == "c2c":
        ahead = argument(node, "forward")
        return [Step("fft" if ahead else "ifft", a, None, forward if ahead else back) for a in axes]
    if kind == "c2r":
        *others, last = axes
        size = argument(node, "last_dim_size")
        return [*(Step("ifft", a, None, back) for a in others), Step("irfft", last, size, back)]
    return None


def transformed(edit: Editor, pair: Pair, along: Sequence[Step]) -> Pair | None:
    """Inserts the transforms of a pair; None where a matrix would be too large."""
    matrices = []
    shape = [*shape_of(pair.real)]
    for step in along:
        size = shape[step.axis]
        wanted = step.n or (2 * (size - 1) if step.kind in _TO_REAL else size)
        if size * wanted > LARGEST:
            return None
        matrices.append(step.matrix(size))
        shape[step.axis] = matrices[-1].shape[0]
    for step, matrix in zip(along, matrices, strict=True):
        pair = _along(edit, pair, step, matrix)
    return pair


def _along(edit: Editor, pair: Pair, step: Step, matrix: Tensor) -> Pair:
    """Inserts the product of a pair and a complex matrix (K, N) along an axis."""
    real, imaginary = matrix.real, matrix.imag
    count, given = matrix.shape[0], pair.real
    rows = [[real], [imaginary]]
    if pair.imaginary is not None and step.kind not in _FROM_REAL:
        given = edit.call(aten.cat.default, [pair.real, pair.imaginary], step.axis)
        rows = [[real, -imaginary], [imaginary, real]]
    if step.kind in _TO_REAL:
        rows = rows[:1]
    whole = torch.cat([torch.cat(row, 1) for row in rows])
    found = multiplied(edit, given, step.axis, whole)
    if step.kind in _TO_REAL:
        return Pair(found)
    return Pair(edit.cut(found, step.axis, 0, count), edit.cut(found, step.axis, count, 2 * count))


def framed(edit: Editor, node: Node, window: Tensor | None) -> Pair | None:
    """Inserts the transforms of the frames of a signal, as ``stft`` gives them.

    Args:
        edit: The graph.
        node: The call of ``stft`` on a real signal.
        window: The numbers that a frame is multiplied by; None for ones.

    Returns:
        The pair (…, K, frames); None for a form that it does not have.
    """
    x, size = argument(node, "self"), int(argument(node, "n_fft"))
    hop = argument(node, "hop_length") or size // 4
    width = argument(node, "win_length") or size
    if argument(node, "align_to_window") or len(shape_of(x)) > 2:
        return None
    weights = torch.ones(width, dtype=torch.float64) if window is None else window.double()
    if weights.shape != (width,) or width > size:
        return None
    before = (size - width) // 2
    weights = torch.nn.functional.pad(weights, (before, size - width - before))
    halved = argument(node, "onesided") is not False
    norm = "ortho" if argument(node, "normalized") else "backward"
    matrix = Step("rfft" if halved else "fft", 0, None, norm).matrix(size) * weights
    starts = torch.arange(0, shape_of(x)[-1] - size + 1, hop)
    places = (starts[:, None] + torch.arange(size)).reshape(-1)
    taken = edit.call(aten.index_select.default, x, len(shape_of(x)) - 1, edit.constant(places))
    frames = edit.view(taken, (*shape_of(x)[:-1], len(starts), size))
    rank = len(shape_of(frames))
    found = multiplied(edit, frames, rank - 1, torch.cat([matrix.real, matrix.imag]))
    found = edit.call(aten.transpose.int, found, rank - 2, rank - 1)
    count = matrix.shape[0]
    return Pair(edit.cut(found, rank - 2, 0, count), edit.cut(found, rank - 2, count, 2 * count))
