"""Col2Im becomes a transposed convolution for TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.graphs import assert_close, checked, emitted, lowered, run_onnx
from helpers.onnx_graphs import answers, assert_tensorrt_builds, operators, parsed
from torch import Tensor
from torch.nn import functional

from tokexport.graph_passes.onnx_passes.targets.fold_by_deconvolution import FoldByDeconvolution

#: Image, block, dilation, padding, stride.
FOLDS = {
    "apart": ((6, 8), (2, 2), 1, 0, 2),
    "overlapping": ((5, 7), (3, 3), 1, 1, 1),
    "uncovered rows": ((8, 7), (3, 2), 1, 0, 2),
    "spread": ((9, 9), (3, 3), 2, 2, 2),
    "oblong": ((4, 9), (1, 3), 1, (0, 1), (1, 3)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_fold_is_a_transposed_convolution(name: str, tmp_path: Path) -> None:
    image, block, dilation, padding, stride = FOLDS[name]
    options = {"dilation": dilation, "padding": padding, "stride": stride}
    windows = functional.unfold(torch.zeros(1, 1, *image), block, **options).shape[2]
    x = torch.randn(2, 3 * block[0] * block[1], windows, generator=torch.Generator().manual_seed(0))

    def function(x: Tensor) -> Tensor:
        return functional.fold(x, image, block, **options)

    rewritten = checked(function, x, targets=("ort", "openvino", "trt"))
    model = emitted(rewritten)
    assert operators(model) == {"Col2Im": 1}
    found = lowered(model, "trt")
    assert operators(found) == {"Reshape": 2, "ConvTranspose": 1}
    assert_close(run_onnx(found, x), [function(x)])
    assert_tensorrt_builds(found, tmp_path)


BODY = """i = Constant <value_ints = [{image}]> () b = Constant <value_ints = [{block}]> ()
    y = Col2Im <{attributes}> (x, i, b)"""


def test_uneven_pads_are_kept() -> None:
    body = BODY.format(image="5, 6", block="2, 3", attributes="pads = [1, 0, 0, 2]")
    model = parsed("float[2,12,30] x", "float[2,2,5,6] y", body)
    x = np.random.default_rng(0).standard_normal((2, 12, 30)).astype(np.float32)
    wanted = functional.fold(torch.from_numpy(x), (6, 8), (2, 3))[..., 1:, :6].numpy()
    assert FoldByDeconvolution()(model).modified
    np.testing.assert_allclose(answers(model, {"x": x})[0], wanted, rtol=0, atol=1e-6)
    assert not FoldByDeconvolution()(model).modified


def test_the_ones_are_of_the_type_of_the_values() -> None:
    body = BODY.format(image="3, 3", block="2, 2", attributes="strides = [1, 1]")
    model = parsed("float16[1,4,4] x", "float16[1,1,3,3] y", body)
    assert FoldByDeconvolution()(model).modified
    (added,) = (node for node in model.graph if node.op_type == "ConvTranspose")
    ones = ir.convenience.get_const_tensor(added.inputs[1])
    assert ones is not None
    assert (ones.dtype, tuple(ones.shape)) == (ir.DataType.FLOAT16, (4, 1, 2, 2))


OTHERS = {
    "one axis": parsed(
        "float[1,4,3] x",
        "float[1,2,4] y",
        BODY.format(image="4", block="2", attributes="strides = [1]"),
    ),
    "three axes": parsed(
        "float[1,8,1] x",
        "float[1,1,2,2,2] y",
        BODY.format(image="2, 2, 2", block="2, 2, 2", attributes="dilations = [1, 1, 1]"),
    ),
    "a size that is not fixed": parsed(
        "float[b,4,1] x",
        "float[b,1,2,2] y",
        BODY.format(image="2, 2", block="2, 2", attributes="pads = [0, 0, 0, 0]"),
    ),
    "a computed image": parsed(
        "float[1,4,1] x, int64[2] i",
        "float[1,1,m,n] y",
        "b = Constant <value_ints = [2, 2]> () y = Col2Im (x, i, b)",
    ),
    "another operator": parsed("float[1,4,1] x", "float[1,4,1] y", "y = Relu (x)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_stays(name: str) -> None:
    before = operators(OTHERS[name])
    assert not FoldByDeconvolution()(OTHERS[name]).modified
    assert operators(OTHERS[name]) == before
