"""What ONNX Runtime is given for a ViT: one call for each thing that a block computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from helpers.graphs import (
    assert_close,
    checked,
    emitted,
    lowered,
    lowered_for_ort,
)
from helpers.thorough import thorough_but
from models.plain_vits import DEPTH, PLAIN, build, image
from models.tome_patched import patched
from torch import Tensor, nn
from torch.nn import functional as F

import tokexport
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.runtimes.ort.runner import OrtRunner

SMALL = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def calls(model: ir.Model) -> Counter[str]:
    """Counts the calls of the domain."""
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def lowered_and_checked(model: nn.Module, x: Tensor, folder: Path) -> Counter[str]:
    """Lowers a model, holds bodies and kernels to eager, and counts its calls."""
    return calls(lowered_for_ort(model, x, folder))


@pytest.mark.parametrize("batch", thorough_but([3], [1, 3]))
def test_the_class_patched_tome_is_one_call_a_step(batch: int, tmp_path: Path) -> None:
    found = lowered_and_checked(patched("vit_tiny_patch16_224", 4, **SMALL), image(batch), tmp_path)
    assert found["cosine_merge_norm"] == 2
    # The last block keeps its class token for certain, and matches and merges nothing else.
    assert found["cosine_match"] == found["merge_by_size"] == found["gather_tokens"] == 0
    assert found["linear_gelu"] == 3
    assert found["rows_attention"] + found["rows_attention_by_size"] == 3
    assert found["linear_add"] == 6
    assert found["layer_norm"] == 7 - 2


#: The models whose attention does not lie in rows, and why.
APART = {
    "timm EVA-02": "its rotary positions change queries and keys head by head",
    "transformers DINOv3": "its rotary positions change queries and keys head by head",
    "torchvision ViT": "nn.MultiheadAttention puts the tokens before the images",
    "open_clip ViT": "nn.MultiheadAttention puts the tokens before the images",
    "timm ViT": "it normalises queries and keys head by head",
}


@pytest.mark.parametrize("name", thorough_but(["transformers ViT"], PLAIN))
def test_a_reduced_plain_vit(name: str, tmp_path: Path) -> None:
    x = image(2)
    model = build(name)
    found = lowered_and_checked(tokexport.reduce(model, "tome:r=4", x), x, tmp_path)
    on_rows = found["rows_attention"] + found["rows_attention_by_size"]
    assert (on_rows == 0) == (name in APART), found
    assert found["layer_norm"] >= DEPTH
    assert found["linear"] + found["linear_gelu"] + found["linear_add"] >= 3 * DEPTH


class Projection(nn.Module):
    """A product with a scale for each channel behind it, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40)
        self.scale = nn.Parameter(torch.randn(40))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.linear(x) * self.scale


def test_a_scale_of_each_channel_goes_into_the_weights() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 7, 24), torch.randn(2, 7, 40)
    rewritten = checked(Projection(), x, y, targets=("ort",))
    found = lowered(emitted(rewritten), "ort")
    assert calls(found) == {"linear_add": 1}
    assert {node.op_type for node in found.graph} == {"linear_add"}


def test_what_is_read_twice_is_not_joined() -> None:
    linear = nn.Linear(24, 40)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        product = linear(x)
        return product, F.gelu(product)

    found = lowered(emitted(checked(both, torch.randn(2, 7, 24), targets=("ort",))), "ort")
    assert calls(found) == {"linear": 1}


def test_tanh_gelu_stays_apart() -> None:
    linear = nn.Linear(24, 40)

    def forward(x: Tensor) -> Tensor:
        return F.gelu(linear(x), approximate="tanh")

    found = lowered(emitted(checked(forward, torch.randn(2, 7, 24), targets=("ort",))), "ort")
    assert calls(found) == {"linear": 1}


def test_shared_weights_are_packed_once() -> None:
    linear = nn.Linear(24, 24)

    def twice(x: Tensor) -> Tensor:
        return linear(linear(x))

    found = lowered(emitted(checked(twice, torch.randn(2, 7, 24), targets=("ort",))), "ort")
    assert calls(found) == {"linear": 2}
    assert len([name for name in found.graph.initializers if "panels" in name]) == 1


def test_doubles_stay_standard_operators() -> None:
    linear = nn.Linear(24, 40).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    found = lowered(emitted(checked(linear, x, targets=("ort",), tolerance=1e-12)), "ort")
    assert not calls(found)


def test_heads_that_do_not_lie_side_by_side_stay_apart() -> None:
    def attend(x: Tensor) -> Tensor:
        # (B, N, D, H): the heads are interleaved, channel by channel.
        q, k, v = x.view(2, 9, 3, 8, 4).permute(2, 0, 4, 1, 3)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 9, 32)

    rewritten = checked(attend, torch.randn(2, 9, 96), targets=("ort",))
    assert calls(lowered(emitted(rewritten), "ort")) == {"attention": 1}


@pytest.mark.parametrize("chosen", [slice(None), slice(0, 1), slice(2, 7)])
def test_queries_of_some_rows_lie_in_rows_too(chosen: slice) -> None:
    def attend(x: Tensor) -> Tensor:
        q, k, v = x.view(2, 9, 3, 4, 8).permute(2, 0, 3, 1, 4)
        q = q[:, :, chosen]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    rewritten = checked(attend, torch.randn(2, 9, 96), targets=("ort",))
    found = calls(lowered(emitted(rewritten), "ort"))
    assert found == ({"rows_attention": 1} if chosen == slice(None) else {"attention": 1})


#: What is added to the logits of each key, of which sizes, and whether the call takes these.
BIASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], bool]] = {
    "the logarithm, then without its last axis": (
        lambda size: size.log()[:, None, None, :, 0],
        (2, 9, 1),
        True,
    ),
    "the last axis goes first": (
        lambda size: size[..., 0].log()[:, None, None],
        (2, 9, 1),
        True,
    ),
    "turned, so that the tokens come last": (
        lambda size: size.transpose(1, 2).log()[:, None],
        (2, 9, 1),
        True,
    ),
    "another order of tokens": (
        lambda size: size.flip(1)[..., 0].log()[:, None, None],
        (2, 9, 1),
        True,
    ),
    "sizes of more images": (
        lambda size: size[:2, :, 0].log()[:, None, None],
        (3, 9, 1),
        False,
    ),
    "sizes without a last axis": (lambda size: size.log()[:, None, None], (2, 9), False),
    "twice the logarithm": (lambda size: 2 * size[..., 0].log()[:, None, None], (2, 9, 1), False),
    "no logarithm": (lambda size: size[:, None, None, :, 0], (2, 9, 1), False),
}


@pytest.mark.parametrize("spelling", BIASES)
def test_attention_takes_the_sizes_themselves(spelling: str, tmp_path: Path) -> None:
    bias, shape, taken = BIASES[spelling]

    class Attend(nn.Module):
        def forward(self, x: Tensor, size: Tensor) -> Tensor:
            q, k, v = x.view(2, 9, 3, 4, 8).permute(2, 0, 3, 1, 4)
            logits = q @ k.transpose(-2, -1) * 8**-0.5 + bias(size)
            attended: Tensor = logits.softmax(-1) @ v
            return attended.transpose(1, 2).flatten(2)

    x, size = torch.randn(2, 9, 96), torch.randint(1, 5, shape).float()
    found = lowered(emitted(checked(Attend(), x, size, targets=("ort",))), "ort")
    assert calls(found) == {"rows_attention_by_size" if taken else "rows_sized_attention": 1}
    save_onnx(found, tmp_path / "model.onnx")
    with OrtRunner.from_file(tmp_path / "model.onnx") as runner:
        arrays = runner.run({"in0": x.numpy(), "in1": size.numpy()})
    assert_close(tuple(map(torch.from_numpy, arrays.values())), (Attend()(x, size),), 1e-5)
