"""The counter on published models and schedules, held to the figures of the papers.

Models are built at their real size on torch's meta device, without values, and traced, never run.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.graphs import trace
from helpers.published_macs import (
    DIFFRATE,
    DYNAMIC_VIT,
    EVIT,
    MCTF,
    PITOME,
    SMALL,
    TINY,
    TOME,
    TOME_TRACED,
    WITHIN,
    Size,
    falling,
    formula,
    of_blocks_at_their_inputs,
    total,
)
from helpers.thorough import thorough_but
from models.tome_patched import patched
from models.zoo.diffrate import DiffRateAttention, DiffRateBlock, DiffRateVit
from models.zoo.dynamicvit import DynamicVit
from models.zoo.evit import apply_evit
from models.zoo.mctf import MCTFAttention, MCTFBlock, MCTFVit
from models.zoo.pitome import PiToMeBlock, PiToMeVit
from models.zoo.vit import Vit, images, patch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.graph_passes.analysis.blocks import Blocks, attention_blocks, tokens_through
from tokexport.graph_passes.analysis.macs import NodeMacs, count_macs
from tokexport.graph_passes.analysis.unreduced import unreduced_macs
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind, ProductKinds


def captured(model: nn.Module, size: Size) -> ExportedProgram:
    with torch.device("meta"):
        return trace(model.eval(), images(1, size.image))


def assert_unreduced(program: ExportedProgram, counted: Sequence[NodeMacs], size: Size) -> None:
    """Asserts that the reduced model's own graph tells what it would cost unreduced."""
    blocks = Blocks(program, attention_blocks(program, counted))
    kinds = ProductKinds(program)
    tokens = [tokens_through(blocks.members(i), counted, kinds, 1) for i in range(size.depth)]
    found = unreduced_macs(counted, blocks, tokens, batch=1)
    everywhere = [size.patches + 1] * size.depth
    assert sum(found.values()) - found[Kind.NORMALISATION] == formula(size, everywhere, everywhere)


# None, and ToMe.


@pytest.mark.parametrize(("name", "r"), TOME)
def test_the_formula_gives_the_published_figures_of_tome(name: str, r: int) -> None:
    size, published = TOME[name, r]
    tokens = falling(size.patches + 1, r, size.depth)
    assert formula(size, tokens[:-1], tokens[1:]) == pytest.approx(published * 1e9, rel=WITHIN)


@pytest.mark.parametrize(("name", "r"), thorough_but([], TOME_TRACED))  # --reduce's is counted
def test_tome(name: str, r: int) -> None:
    size, _ = TOME[name, r]
    with torch.device("meta"):
        model = patched(name, r, num_classes=1000)
    program = captured(model, size)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION, Kind.MATCHING)
    tokens = falling(size.patches + 1, r, size.depth)
    assert found == formula(size, tokens[:-1], tokens[1:])
    assert_unreduced(program, counted, size)


@pytest.mark.parametrize(
    ("name", "published"),
    thorough_but(
        [("deit_tiny_patch16_224", 1.258)],
        [("deit_tiny_patch16_224", 1.258), ("deit_small_patch16_224", 4.608)],
    ),
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


def mctf(size: Size, r: dict[int, float]) -> nn.Module:
    schedule = [r.get(layer, 0) for layer in range(size.depth)]
    with torch.device("meta"):
        model = Vit(**size.options)
    patch(model, {"schedule": schedule, "bidirection": True}, MCTFBlock, ProjectsWhatItReads)
    model.__class__ = MCTFVit
    return model


@pytest.mark.parametrize(("size", "r", "published"), thorough_but([], MCTF))
def test_mctf(size: Size, r: dict[int, float], published: float) -> None:
    program = captured(mctf(size, r), size)
    counted = count_macs(program)
    assert total(counted) == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, size)


# Methods that select.


def evit(keep: float, fused: bool) -> nn.Module:
    with torch.device("meta"):
        model = Vit(**SMALL.options)
    apply_evit(model, keep, (3, 6, 9), fused)
    return model


@pytest.mark.parametrize(("keep", "fused"), thorough_but([(0.7, True)], EVIT))
def test_evit(keep: float, fused: bool) -> None:
    program = captured(evit(keep, fused), SMALL)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION)
    assert found == pytest.approx(EVIT[keep, fused] * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, SMALL)


def dynamic_vit(keep: float) -> nn.Module:
    with torch.device("meta"):
        return DynamicVit((3, 6, 9), (keep, keep**2, keep**3), **SMALL.options)


@pytest.mark.parametrize(("keep", "published"), thorough_but([], DYNAMIC_VIT.items()))
def test_dynamic_vit_with_its_predictors(keep: float, published: float) -> None:
    program = captured(dynamic_vit(keep), SMALL)
    counted = count_macs(program)
    found = total(counted, Kind.NORMALISATION)
    assert found == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, SMALL)


# DiffRate, with the schedules that its authors learned: prune to, then merge to.


def diffrate(size: Size, prune: list[int], merge: list[int]) -> nn.Module:
    with torch.device("meta"):
        model = Vit(**size.options)
    info = {"prune_kept": prune, "merge_kept": merge}
    patch(model, info, DiffRateBlock, DiffRateAttention)
    model.__class__ = DiffRateVit
    return model


@pytest.mark.parametrize(("size", "prune", "merge", "published"), thorough_but([], DIFFRATE))
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


@pytest.mark.thorough
@pytest.mark.parametrize(("keep", "published"), PITOME.items())
def test_pitome(keep: float, published: float) -> None:
    program = captured(pitome(keep), SMALL)
    counted = count_macs(program)
    found = of_blocks_at_their_inputs(program, counted, SMALL.depth)
    assert found == pytest.approx(published * 1e9, rel=WITHIN)
    assert_unreduced(program, counted, SMALL)
