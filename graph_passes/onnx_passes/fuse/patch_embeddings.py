"""Fuses the patch embedding of images.

Before → after, w and b of a convolution whose patches lie side by side, p (1, K + N, C) constant::

    t = Transpose(Reshape(Conv(images, w, b)))     N tokens, (B, N, C)
    Concat(class, t) + p              →  patch_embed(images, panels, b, rows; first=K)
    Concat(class, t + p)              →  the same

and the same without the K constant tokens in front, or without positions. ``rows`` (1, K + N, C)
are what does not depend on the image: the constant tokens with their positions, and the positions
of the patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.fuse.pack_linears import packed_panels
from tokexport.graph_passes.onnx_passes.graph.epilogues import Floats, floats_of
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.producers import made_by, only_reader
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import shape_of
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.pass_report import Reason

#: Pixels of the lines of a patch below which copying them costs more than the convolution.
_NARROWEST: Final = 4


class PatchEmbeddings(NodePass):
    """Rewrites convolutions of patches, up to the sum with positions."""

    name = "patch embeddings"
    op_types = ("Conv",)

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches a convolution of an image whose patches lie side by side and become tokens."""
        weight = node.inputs[1]
        kernel = floats_of(weight) if weight is not None else None
        if kernel is None:
            return Reason("its weights are computed, or not of float32")
        if reason := _no_patches(node, kernel):
            return reason
        tokens = _tokens_behind(node, kernel.shape[0])
        if tokens is None:
            return Reason("its result does not become tokens (B, N, C)")
        return partial(_rewrite, node, kernel, tokens, shared)


@dataclass
class _Tokens:
    """The constant rows of an embedding, which are added to those of patches.

    Attributes:
        last: The node.
        rows: (1, K + N, C).
        first: K.
    """

    last: ir.Node
    rows: Floats
    first: int


def _rewrite(conv: ir.Node, kernel: Floats, tokens: _Tokens, graph: ir.Graph) -> None:
    images, _, bias = (*conv.inputs, None)[:3]
    name = conv.outputs[0].name or "patches"
    if bias is None:
        bias = add_initializer(graph, f"{name}.bias", np.zeros(kernel.shape[0], np.float32))
    weights = kernel.reshape(len(kernel), -1).T
    new = Replacement(tokens.last)
    new.put(
        new.call(
            "patch_embed",
            images,
            add_initializer(graph, f"{name}.panels", packed_panels(weights)),
            bias,
            add_initializer(graph, f"{name}.rows", tokens.rows),
            domain=DOMAIN,
            patch=list(kernel.shape[2:]),
            kernel=[-1, *kernel.shape[1:]],
            first=[tokens.first],
        )
    )


def _no_patches(conv: ir.Node, kernel: Floats) -> Reason | None:
    """Returns why a convolution reads a pixel more than once; None if it does not."""
    ones = [1] * (kernel.ndim - 2)
    strides = list(conv.attributes.get_ints("strides", ones))
    if kernel.ndim != 4:
        return Reason(f"its kernel has {kernel.ndim - 2} axes, not the two of an image")
    if strides != list(kernel.shape[2:]):
        return Reason(f"its kernel {list(kernel.shape[2:])} and its strides {strides} differ")
    if kernel.shape[3] < _NARROWEST:
        return Reason(f"its patches are {kernel.shape[3]} pixels wide, less than {_NARROWEST}")
    automatic = conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if automatic or any(conv.attributes.get_ints("pads", ())):
        return Reason("it pads the image")
    if list(conv.attributes.get_ints("dilations", ones)) != ones:
        return Reason("it leaves pixels out")
    if (groups := conv.attributes.get_int("group", 1)) != 1:
        return Reason(f"it has {groups} groups of channels")
    return None


def _tokens_behind(conv: ir.Node, channels: int) -> _Tokens | None:
    grid = shape_of(conv.outputs[0])
    flat = only_reader(conv.outputs[0])
    if grid is None or flat is None or flat.op_type != "Reshape":
        return None
    batch, count = grid[0], grid[2] * grid[3]
    turned = only_reader(flat.outputs[0])
    if shape_of(flat.outputs[0]) != (batch, channels, count) or turned is None:
        return None
    if turned.op_type != "Transpose" or tuple(turned.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    found = _Tokens(turned, np.zeros((1, count, channels), np.float32), 0)
    found = _with_positions(found)
    found = _with_constant_tokens(found, batch)
    return _with_positions(found)


def _with_positions(tokens: _Tokens) -> _Tokens:
    """Includes a constant that the only reader adds to each image."""
    add = only_reader(tokens.last.outputs[0])
    if add is None or add.op_type != "Add":
        return tokens
    added = [value for value in add.inputs if value not in (tokens.last.outputs[0], None)]
    constant = floats_of(added[0]) if len(added) == 1 and added[0] is not None else None
    if constant is None or constant.ndim > 3:
        return tokens
    wide = constant.reshape((1,) * (3 - constant.ndim) + constant.shape)
    sizes = zip(wide.shape, tokens.rows.shape, strict=True)
    if any(size not in (1, whole) for size, whole in sizes):
        return tokens
    return _Tokens(add, tokens.rows + wide, tokens.first)


def _with_constant_tokens(tokens: _Tokens, batch: int) -> _Tokens:
    """Includes constant tokens, the same in each image, that the only reader puts in front."""
    join = only_reader(tokens.last.outputs[0])
    if join is None or join.op_type != "Concat" or join.attributes.get_int("axis", 0) % 3 != 1:
        return tokens
    *front, last = join.inputs
    rows = [_of_each_image(value, batch) for value in front]
    if last is not tokens.last.outputs[0] or any(row is None for row in rows):
        return tokens
    joined = np.concatenate([*(row for row in rows if row is not None), tokens.rows], axis=1)
    return _Tokens(join, joined, tokens.first + joined.shape[1] - tokens.rows.shape[1])


def _of_each_image(value: ir.Value | None, batch: int) -> Floats | None:
    """Returns constant tokens (1, K, C) that a value (B, K, C) repeats for each image."""
    spread = made_by(value, "Expand")
    constant = floats_of(value) if value is not None and spread is None else None
    if spread is not None and spread.inputs[0] is not None:
        constant = floats_of(spread.inputs[0])
    if constant is None or constant.ndim != 3 or constant.shape[0] not in (1, batch):
        return None
    if value is None or shape_of(value) != (batch, *constant.shape[1:]):
        return None
    same = np.array_equal(constant, np.broadcast_to(constant[:1], constant.shape))
    return constant[:1] if same else None
