"""What a reduction put into a plain ViT costs, held to the figures of the papers.

Models are built at their real size on torch's meta device, without values, and traced, never run.
A few schedules of each method are: ``test_published_macs.py`` of ``graph_passes/analysis`` has all
of them. Columns that nothing reads are left out, as on every target; rows are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from helpers.graphs import trace
from helpers.published_macs import (
    BASE,
    DIFFRATE,
    DYNAMIC_VIT,
    EVIT,
    LARGE,
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
from models.zoo.vit import images
from torch.export import ExportedProgram

from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.recipe import parse_recipe
from tokexport.exporter.reduction.reduce import reduce_flat
from tokexport.graph_passes.analysis.macs import NodeMacs, count_macs
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind

NAMES = {
    TINY: "deit_tiny_patch16_224",
    SMALL: "deit_small_patch16_224",
    BASE: "vit_base_patch16_224",
    LARGE: "vit_large_patch16_224",
}


def counted(name: str, recipe: str, size: Size) -> tuple[ExportedProgram, Sequence[NodeMacs]]:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000).eval()
        x = images(1, size.image)
        flat = FlatModel(model, call_spec(model, (x,), {}))
        reduced = reduce_flat(flat, (x,), parse_recipe(f"{recipe},protect=1")).model
        program = trace(reduced, x)
    return program, count_macs(program)


@pytest.mark.parametrize(("name", "r"), thorough_but([("deit_tiny_patch16_224", 16)], TOME_TRACED))
def test_tome(name: str, r: int) -> None:
    size, published = TOME[name, r]
    _, nodes = counted(name, f"tome:r={r}", size)
    found = total(nodes, Kind.NORMALISATION, Kind.MATCHING)
    tokens = falling(size.patches + 1, r, size.depth)
    assert found == formula(size, tokens[:-1], tokens[1:])
    assert found == pytest.approx(published * 1e9, rel=WITHIN)


@pytest.mark.parametrize(("size", "r", "published"), thorough_but([], MCTF[3:5]))
def test_mctf(size: Size, r: dict[int, float], published: float) -> None:
    schedule = ",".join(str(r.get(layer, 0)) for layer in range(size.depth))
    _, nodes = counted(NAMES[size], f"mctf:r=[{schedule}]", size)
    # The figures multiply the merged attention, ours the whole one: N² products a channel, not M².
    tokens = [size.patches + 1]
    for layer in range(size.depth):
        amount = r.get(layer, 0)
        tokens.append(tokens[-1] - int(amount if amount >= 1 else amount * (tokens[-1] - 1)))
    more = size.width * sum(n**2 - m**2 for n, m in zip(tokens, tokens[1:], strict=False))
    assert total(nodes) - more == pytest.approx(published * 1e9, rel=WITHIN)
    assert more < 0.01 * total(nodes)


@pytest.mark.thorough
@pytest.mark.parametrize(("keep", "fused"), [(0.9, True), (0.5, True), (0.7, False)])
def test_evit(keep: float, fused: bool) -> None:
    _, nodes = counted(NAMES[SMALL], f"evit:keep={keep},fuse={str(fused).lower()}", SMALL)
    found = total(nodes, Kind.NORMALISATION)
    assert found == pytest.approx(EVIT[keep, fused] * 1e9, rel=WITHIN)


@pytest.mark.thorough
@pytest.mark.parametrize("keep", [0.7])
def test_dynamic_vit_with_its_predictors(keep: float) -> None:
    _, nodes = counted(NAMES[SMALL], f"dynamicvit:keep={keep}", SMALL)
    found = total(nodes, Kind.NORMALISATION)
    assert found == pytest.approx(DYNAMIC_VIT[keep] * 1e9, rel=WITHIN)


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "prune", "merge", "published"), DIFFRATE[:1])
def test_diffrate(size: Size, prune: list[int], merge: list[int], published: float) -> None:
    _, nodes = counted(NAMES[size], f"diffrate:prune={prune},merge={merge}", size)
    found = total(nodes, Kind.NORMALISATION, Kind.MATCHING)
    assert found == pytest.approx(published * 1e9, rel=WITHIN)


@pytest.mark.thorough
@pytest.mark.parametrize("keep", [0.9, 0.975])
def test_pitome(keep: float) -> None:
    program, nodes = counted(NAMES[SMALL], f"pitome:keep={keep}", SMALL)
    found = of_blocks_at_their_inputs(program, nodes, SMALL.depth)
    assert found == pytest.approx(PITOME[keep] * 1e9, rel=WITHIN)
