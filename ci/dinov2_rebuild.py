"""Rebuilds DINOv2 ViT-S/14 as a model of transformers from an ONNX file that its weights are in.

The file is a whole saliency model that torch exported. Biases, norms, scales and the patch
embedding kept the hub's names behind ``backbone.``; what was folded did not::

    MatMul(x, onnx::MatMul_1966 (384, 384)) → Add(backbone.….key.bias, ·)
        the product's weight, transposed, is ….key.weight
    onnx::Concat_1957 (1, 1, 384), onnx::Reshape_1962 (1, 1369, 384)
        the position of the class token, and those of 37 × 37 patches

So each of the 72 products with weights is named by the bias that is added after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "backbone."
PRODUCTS = 72
WIDTH, DEPTH, HEADS, PATCH, GRID = 384, 12, 6, 14, 37
WEIGHTS = "model.safetensors"
#: The tokens behind the last norm, (B, 1 + patches, 384), in the file.
TOKENS = "/backbone/layernorm/Add_1_output_0"
#: How far the rebuilt model may be from the file, as a share of the largest value. On noise it is
#: off by 1.4e-6, on a picture by 6.8e-6, where rounding alone moves the file by 5.1e-6.
TOLERANCE = 1e-5


def write_backbone(file: onnx.ModelProto, folder: Path) -> None:
    """Writes ``Dinov2Model`` with the weights of the file as a folder of transformers."""
    _write(folder, state_of(file), "Dinov2Model")


def write_classifier(
    backbone: Path, weight: Tensor, bias: Tensor, folder: Path, names: Sequence[str] = ()
) -> None:
    """Writes ``Dinov2ForImageClassification`` with a linear head as a folder of transformers.

    Args:
        backbone: The folder of ``Dinov2Model``.
        weight: (classes, 768), of the class token and the mean of the patches.
        bias: (classes,)
        folder: The folder to write.
        names: The names of the classes.
    """
    state = {f"dinov2.{name}": array for name, array in load_file(backbone / WEIGHTS).items()}
    state |= {"classifier.weight": weight.contiguous(), "classifier.bias": bias}
    labels = names or tuple(map(str, range(len(bias))))
    _write(folder, state, "Dinov2ForImageClassification", id2label=dict(enumerate(labels)))


def _write(folder: Path, state: Mapping[str, Tensor], architecture: str, **options: Any) -> None:
    """Writes weights under the names of the hub, which every version of transformers reads."""
    from transformers import Dinov2Config

    configuration = Dinov2Config(
        architectures=[architecture],
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=PATCH * GRID,
        patch_size=PATCH,
        use_mask_token=False,  # of training alone, and not in the file
        **options,
    )
    configuration.save_pretrained(folder)
    save_file(dict(state), folder / WEIGHTS, metadata={"format": "pt"})


def read(folder: Path) -> nn.Module:
    """Returns the model of a folder as the command line reads it, in evaluation mode."""
    from tokexport.exporter.source import SourceOptions, load_source

    return load_source(SourceOptions(source=str(folder))).model


def state_of(file: onnx.ModelProto) -> dict[str, Tensor]:
    """Returns the weights of the file under the names that the hub gives ``Dinov2Model``.

    Raises:
        ValueError: The file holds other products or positions than that model has.
    """
    arrays = {one.name: numpy_helper.to_array(one) for one in file.graph.initializer}
    state = {
        name.removeprefix(PREFIX): array
        for name, array in arrays.items()
        if name.startswith(PREFIX)
    }
    products = _products(file.graph, arrays)
    if len(products) != PRODUCTS:
        raise ValueError(f"{len(products)} products are followed by a bias, not {PRODUCTS}.")
    state |= products
    positions = [_only(arrays, (1, count, WIDTH)) for count in (1, GRID * GRID)]
    state["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return {name: torch.from_numpy(array.copy()) for name, array in state.items()}


def _products(graph: onnx.GraphProto, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weight (out, in) of every linear layer by its name."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in arrays:
            continue
        (adding,) = readers[node.output[0]]
        (bias,) = (name for name in adding.input if name in arrays)
        if adding.op_type != "Add" or not bias.startswith(PREFIX):
            raise ValueError(f"{node.name} is followed by {adding.op_type} with {bias}.")
        name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
        found[name] = arrays[node.input[1]].T
    return found


def _only(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the only array of a shape that has no name of the model."""
    found = [
        array
        for name, array in arrays.items()
        if array.shape == shape and not name.startswith(PREFIX)
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} constants are of shape {shape}.")
    return found[0]


def distance(file: onnx.ModelProto, model: nn.Module, images: np.ndarray) -> float:
    """Returns how far the model's tokens are from those of the file in ONNX Runtime.

    Args:
        file: The file; it stays as it is.
        model: ``Dinov2Model``.
        images: (B, 3, H, W), H and W multiples of 14.

    Returns:
        The largest difference, as a share of the largest value.
    """
    wanted = tokens_of_file(file, images)
    with torch.no_grad():
        found = model(torch.from_numpy(images)).last_hidden_state.numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def tokens_of_file(file: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Returns the tokens (B, 1 + patches, 384) that the file computes for images of any size."""
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(file)
    # The graph reads height and width from its input, so it takes other sizes than it declares.
    for axis, size in enumerate(images.shape):
        shown.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del shown.graph.output[:]
    shown.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, 1, None))
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run([TOKENS], {shown.graph.input[0].name: images})
    result: np.ndarray = found
    return result


def load(path: Path) -> onnx.ModelProto:
    """Reads the ONNX file."""
    return onnx.load(path)
