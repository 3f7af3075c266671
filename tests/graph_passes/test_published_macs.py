"""The counter on published models and schedules, held to the figures of the papers.

Models are built at their real size on torch's meta device, without values, and traced, never run.
Papers count patches·C·3p² + Σ (4·N·C² + 2·N²·C + 8·N'·C²) + C·classes, N tokens at the attention
and N' at the MLP; some add 5 operations for every element that a LayerNorm normalises, and some the
product by which tokens are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.graphs import trace
from models.tome_patched import patched
from models.zoo.diffrate import DiffRateAttention, DiffRateBlock, DiffRateVit
from models.zoo.dynamicvit import DynamicVit
from models.zoo.evit import apply_evit
from models.zoo.mctf import MCTFAttention, MCTFBlock, MCTFVit
from models.zoo.pitome import PiToMeBlock, PiToMeVit
from models.zoo.vit import Vit, images, patch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.graph_passes.blocks import Blocks, find_blocks, tokens_through
from tokexport.graph_passes.macs import NodeMacs, count_macs
from tokexport.graph_passes.product_kinds import Kind, ProductKinds
from tokexport.graph_passes.unreduced import unreduced_macs

#: Published figures are rounded or truncated.
WITHIN: Final = 0.005


@dataclass(frozen=True)
class Size:
    """A plain ViT: C channels, in patches of p × p pixels."""

    width: int
    heads: int
    depth: int = 12
    image: int = 224
    patch: int = 16

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the zoo's ViT."""
        return {
            "depth": self.depth,
            "dim": self.width,
            "num_heads": self.heads,
            "mlp_ratio": 4,
            "image": self.image,
            "patch": self.patch,
            "classes": 1000,
        }


TINY, SMALL, BASE = Size(192, 3), Size(384, 6), Size(768, 12)
LARGE, LARGE_384 = Size(1024, 16, 24), Size(1024, 16, 24, image=384)
HUGE = Size(1280, 16, 32, patch=14)


def formula(size: Size, attended: Sequence[int], at_mlp: Sequence[int]) -> int:
    """The papers' count for the tokens of every layer."""
    C = size.width
    layers = zip(attended, at_mlp, strict=True)
    embedding = size.patches * C * 3 * size.patch**2
    return embedding + sum(4 * n * C**2 + 2 * n**2 * C + 8 * m * C**2 for n, m in layers) + 1000 * C


def captured(model: nn.Module, size: Size) -> ExportedProgram:
    with torch.device("meta"):
        return trace(model.eval(), images(1, size.image))


def total(counted: Sequence[NodeMacs], *without: Kind) -> int:
    return sum(one.macs for one in counted if one.kind not in without)


def assert_unreduced(program: ExportedProgram, counted: Sequence[NodeMacs], size: Size) -> None:
    """Asserts that the reduced model's own graph tells what it would cost unreduced."""
    blocks = Blocks(program, find_blocks(program, counted))
    kinds = ProductKinds(program)
    tokens = [tokens_through(blocks.members(i), counted, kinds, 1) for i in range(size.depth)]
    found = unreduced_macs(counted, blocks, tokens, batch=1)
    everywhere = [size.patches + 1] * size.depth
    assert sum(found.values()) - found[Kind.NORMALISATION] == formula(size, everywhere, everywhere)


# None, and ToMe.


def falling(tokens: int, r: int, depth: int) -> list[int]:
    """Tokens at the first attention and behind every merge of at most half of the others."""
    found = [tokens]
    for _ in range(depth):
        found.append(found[-1] - min(r, (found[-1] - 1) // 2))
    return found


TOME: Final[dict[tuple[str, int], tuple[Size, float]]] = {
    ("deit_small_patch16_224", 8): (SMALL, 3.416),
    ("deit_small_patch16_224", 13): (SMALL, 2.703),
    ("deit_small_patch16_224", 16): (SMALL, 2.291),
    ("deit_tiny_patch16_224", 8): (TINY, 0.924),
    ("deit_tiny_patch16_224", 12): (TINY, 0.769),
    ("deit_tiny_patch16_224", 16): (TINY, 0.622),
    ("vit_base_patch16_224", 0): (BASE, 17.56),
    ("vit_base_patch16_224", 13): (BASE, 10.37),
    ("vit_large_patch16_224", 0): (LARGE, 61.55),
    ("vit_large_patch16_224", 7): (LARGE, 34.71),
    ("vit_large_patch16_224", 8): (LARGE, 30.96),
    ("vit_large_patch16_384", 0): (LARGE_384, 191.1),
    ("vit_large_patch16_384", 23): (LARGE_384, 96.2),
    ("vit_huge_patch14_224", 0): (HUGE, 167.3),
    ("vit_huge_patch14_224", 7): (HUGE, 92.8),
}


@pytest.mark.parametrize(("name", "r"), TOME)
def test_tome(name: str, r: int) -> None:
    size, published = TOME[name, r]
    with torch.device("meta"):
        model = patched(name, r, num_classes=1000)
    program = captured(model, size)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION, Kind.MATCHING)
    tokens = falling(size.patches + 1, r, size.depth)
    assert found == formula(size, tokens[:-1], tokens[1:])
    assert found == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, size)


@pytest.mark.parametrize(
    ("name", "published"), [("deit_tiny_patch16_224", 1.258), ("deit_small_patch16_224", 4.608)]
)
def test_nothing_reduced_with_normalisation(name: str, published: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = total(count_macs(captured(model, TINY)))
    assert found == pytest.approx(published * 1e9, rel=WITHIN)


def test_the_exact_number_of_a_tiny_model_with_two_classes() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    assert total(count_macs(captured(model, TINY))) == 1_258_219_584


# MCTF: with normalisation and with matching; a block that merges normalises three times.


class ProjectsWhatItReads(MCTFAttention):
    """Computes q and k before the merge and v behind it, as rows of the one projection."""

    def probabilities(self, x: Tensor, size: Tensor | None) -> Tensor:
        q, k = self._heads(x, 0, 2)
        attn = q @ k.transpose(-2, -1) * self.scale
        if size is not None:
            attn = attn + size.log()[:, None, None, :, 0]
        result: Tensor = attn.softmax(dim=-1)
        return result

    def forward(self, x: Tensor, attn: Tensor | None = None, size: Tensor | None = None) -> Tensor:
        if attn is None:
            attn = self.probabilities(x, size)
        (v,) = self._heads(x, 2, 3)
        return self.join(attn @ v)

    def _heads(self, x: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        B, N, C = x.shape
        rows = slice(first * C, end * C)
        projected = F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows])
        return (
            projected.reshape(B, N, end - first, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        )


MCTF: Final[list[tuple[Size, dict[int, float], float]]] = [
    (TINY, dict.fromkeys(range(1, 12), 16), 0.709),
    (SMALL, dict.fromkeys(range(1, 12), 16), 2.602),
    (SMALL, dict.fromkeys(range(1, 12), 18), 2.377),
    (SMALL, dict.fromkeys(range(1, 12), 20), 2.194),
    (TINY, dict.fromkeys((3, 6, 9), 0.35), 0.748),
    (SMALL, dict.fromkeys((3, 6, 9), 0.35), 2.756),
]


def mctf(size: Size, r: dict[int, float]) -> nn.Module:
    schedule = [r.get(layer, 0) for layer in range(size.depth)]
    with torch.device("meta"):
        model = Vit(**size.options)
    patch(model, {"schedule": schedule, "bidirection": True}, MCTFBlock, ProjectsWhatItReads)
    model.__class__ = MCTFVit
    return model


@pytest.mark.parametrize(("size", "r", "published"), MCTF)
def test_mctf(size: Size, r: dict[int, float], published: float) -> None:
    program = captured(mctf(size, r), size)
    counted = count_macs(program)
    assert total(counted) == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, size)


# Methods that select.

EVIT: Final = {
    (0.9, True): 4.022,
    (0.8, True): 3.477,
    (0.7, True): 3.029,
    (0.6, True): 2.635,
    (0.5, True): 2.309,
    (0.9, False): 3.988,
    (0.8, False): 3.444,
    (0.7, False): 2.997,
    (0.6, False): 2.608,
    (0.5, False): 2.282,
}


def evit(keep: float, fused: bool) -> nn.Module:
    with torch.device("meta"):
        model = Vit(**SMALL.options)
    apply_evit(model, keep, (3, 6, 9), fused)
    return model


@pytest.mark.parametrize(("keep", "fused"), EVIT)
def test_evit(keep: float, fused: bool) -> None:
    program = captured(evit(keep, fused), SMALL)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION)
    assert found == pytest.approx(EVIT[keep, fused] * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, SMALL)


def dynamic_vit(keep: float) -> nn.Module:
    with torch.device("meta"):
        return DynamicVit((3, 6, 9), (keep, keep**2, keep**3), **SMALL.options)


@pytest.mark.parametrize(("keep", "published"), [(0.7, 2.981), (0.8, 3.463), (0.9, 4.041)])
def test_dynamic_vit_with_its_predictors(keep: float, published: float) -> None:
    program = captured(dynamic_vit(keep), SMALL)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION)
    assert found == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, SMALL)


# DiffRate, with the schedules that its authors learned: prune to, then merge to.

DIFFRATE: Final[list[tuple[Size, list[int], list[int], float]]] = [
    (
        SMALL,
        [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
        [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
        2.905,
    ),
    (
        BASE,
        [197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3],
        [197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3],
        11.517,
    ),
    (
        LARGE,
        [197, 197, 197, 195, 194, 193, 191, 187, 182, 180, 173, 149]
        + [142, 134, 125, 121, 111, 106, 91, 87, 77, 39, 38, 32],
        [197, 197, 196, 194, 193, 192, 187, 183, 181, 173, 154, 146]
        + [137, 127, 123, 114, 105, 98, 87, 75, 43, 45, 32, 32],
        42.290,
    ),
]


def diffrate(size: Size, prune: list[int], merge: list[int]) -> nn.Module:
    with torch.device("meta"):
        model = Vit(**size.options)
    info = {"prune_kept": prune, "merge_kept": merge}
    patch(model, info, DiffRateBlock, DiffRateAttention)
    model.__class__ = DiffRateVit
    return model


@pytest.mark.parametrize(("size", "prune", "merge", "published"), DIFFRATE)
def test_diffrate(size: Size, prune: list[int], merge: list[int], published: float) -> None:
    program = captured(diffrate(size, prune, merge), size)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION, Kind.MATCHING)
    assert found == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, size)


# PiToMe: its figure counts the blocks only, and the MLP at the tokens that enter the block.


def pitome(keep: float) -> nn.Module:
    with torch.device("meta"):
        model = Vit(**SMALL.options)
    patch(model, {"keep": keep, "depth": SMALL.depth}, PiToMeBlock)
    model.__class__ = PiToMeVit
    return model


@pytest.mark.parametrize(
    ("keep", "published"), [(0.9, 2.70), (0.925, 3.07), (0.95, 3.48), (0.975, 4.00), (1.0, 4.54)]
)
def test_pitome(keep: float, published: float) -> None:
    program = captured(pitome(keep), SMALL)
    counted = count_macs(program)
    blocks = Blocks(program, find_blocks(program, counted))
    assert len(blocks.paths) == SMALL.depth
    found = 0
    for position in range(SMALL.depth):
        through = tokens_through(blocks.members(position), counted, ProductKinds(program), batch=1)
        assert through is not None
        for one in counted:
            if blocks.block_of(one.node) != position:
                continue
            if one.kind is Kind.LINEAR:
                rows, *others = one.sizes
                assert rows in (through.entering, through.leaving)
                assert (rows == through.leaving) or ".mlp" not in one.module
                found += through.entering * others[0] * others[1]
            elif one.kind is Kind.ATTENTION:
                found += one.macs
    assert found == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, SMALL)
