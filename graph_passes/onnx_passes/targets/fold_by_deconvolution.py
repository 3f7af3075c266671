"""Adds windows that overlap by a transposed convolution, where a target has no Col2Im.

Before → after::

    Col2Im(x (B, C·K, L), image (H, W), block (h, w))                     K = h·w, L windows
    →  Reshape(ConvTranspose(Reshape(x, (B·C, K, rows, columns)), E), (B, C, H, W))

``E`` (K, 1, h, w) holds a one where channel k is position k of the block, so that each value lands
on its place of the image (operator Col2Im-18, torch.nn.functional.fold). TensorRT has no Col2Im. It
takes no deconvolution with strides and dilation either: the ones of ``E`` stand as far apart.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir

from tokexport.graph_passes.onnx_passes.graph.node_pass import NodePass, Rewrite
from tokexport.graph_passes.onnx_passes.graph.replacement import Replacement
from tokexport.graph_passes.onnx_passes.graph.strided_views import integers_of, shape_of
from tokexport.graph_passes.pass_report import Reason

_NO_PADS: Final = (0, 0, 0, 0)


class FoldByDeconvolution(NodePass):
    """Rewrites Col2Im of two image axes and static shapes."""

    name = "fold by deconvolution"
    op_types = ("Col2Im",)
    in_subgraphs = True

    def match(self, node: ir.Node, shared: ir.Graph) -> Rewrite | Reason | None:
        """Matches windows of known type and shape, added up on an image of known size."""
        columns = node.inputs[0]
        shape = shape_of(columns) if columns is not None else None
        if columns is None or columns.dtype is None or shape is None:
            return Reason("the type or the shape of its columns is not known")
        image, block = integers_of(node.inputs[1]), integers_of(node.inputs[2])
        if image is None or block is None:
            return Reason("the size of its image or of its block is computed")
        if len(image) != 2 or len(block) != 2:
            return Reason(f"its image has {len(image)} axes, not two")
        return partial(_rewrite, node, columns, shape, image, block)


def _rewrite(
    node: ir.Node,
    columns: ir.Value,
    shape: tuple[int, ...],
    image: tuple[int, ...],
    block: tuple[int, ...],
) -> None:
    assert columns.dtype is not None
    batch, channels, _ = shape
    strides = tuple(node.attributes.get_ints("strides", (1, 1)))
    dilations = tuple(node.attributes.get_ints("dilations", (1, 1)))
    pads = tuple(node.attributes.get_ints("pads", _NO_PADS))
    extent = [dilations[i] * (block[i] - 1) + 1 for i in (0, 1)]
    reach = [image[i] + pads[i] + pads[i + 2] - extent[i] for i in (0, 1)]
    windows = [reach[i] // strides[i] + 1 for i in (0, 1)]
    k = prod(block)

    new = Replacement(node)
    apart = new.integers(batch * channels // k, k, *windows)
    places = np.zeros((k, 1, *extent), columns.dtype.numpy())
    places[:, 0, :: dilations[0], :: dilations[1]] = np.eye(k).reshape(k, *block)
    added = new.call(
        "ConvTranspose",
        new.call("Reshape", columns, apart),
        new.constant(places),
        strides=strides,
        pads=pads,
        output_padding=[reach[i] % strides[i] for i in (0, 1)],
    )
    new.put(new.call("Reshape", added, new.integers(batch, channels // k, *image)))
