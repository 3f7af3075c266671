"""Architectures of other libraries compile for every target, and their attention is recognised.

Attention with a bias of each head (Swin, BEiT, LeViT) stays generic: no operator of the domain has
that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from helpers.compiled_models import Compiled, assert_agrees, assert_builds, compile_for_ort
from helpers.thorough import thorough_but
from models.architectures import MODELS, build

import tokexport
import tokexport.runtimes
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED

#: How many attentions the rewritten graph holds as one operator.
ATTENTIONS: Final[dict[str, int]] = {
    "timm ViT, three images": 2,
    "timm DeiT, distilled": 2,
    "timm DINOv2 with registers": 2,
    "timm SigLIP": 3,
    "timm EVA-02": 2,
    "timm BEiT": 0,
    "timm CrossViT": 4,
    "timm CAFormer": 2,
    "timm Swin": 0,
    "timm Swin V2": 0,
    "timm PVT v2": 4,
    "timm Hiera": 4,
    "timm LeViT": 0,
    "timm MobileViT": 9,
    "timm Twins": 8,
    "timm VOLO": 5,
    "timm TNT": 2,
    "timm NesT": 2,
    "transformers CLIP vision": 2,
    "transformers SigLIP vision": 3,
    "transformers DINOv2 with registers": 2,
    "transformers DINOv3": 2,
    "transformers PVT": 4,
    "transformers Hiera": 0,
    "transformers LeViT": 0,
    "vit-pytorch CrossViT": 4,
    "vit-pytorch LeViT": 0,
    "vit-pytorch T2T": 2,
    "vit-pytorch patch merger": 3,
    "vit-pytorch PiT": 2,
    "vit-pytorch Fourier": 1,
    "torch TransformerEncoder": 2,
    "torch MultiheadAttention": 1,
    "Super Token attention": 0,
}


#: Those that say most: what is left are relatives of one of these.
FIRST: Final = (
    *("timm ViT, three images", "timm Swin V2", "timm Hiera"),
    *("transformers DINOv3", "vit-pytorch T2T"),
)
SOME: Final = thorough_but(FIRST, MODELS)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Compiles each model once: all targets start from the same emitted graph."""

    @functools.cache
    def compile_once(name: str) -> Compiled:
        return compile_for_ort(*build(name), tmp_path_factory.mktemp("architecture"))

    return compile_once


def test_every_model_is_held_to_a_count() -> None:
    assert set(ATTENTIONS) == set(MODELS)


@pytest.mark.parametrize("name", SOME)
def test_it_compiles_within_the_fp32_gate(name: str, compiled: Callable[[str], Compiled]) -> None:
    model = compiled(name)
    report = model.result.report
    assert model.result.status == PASSED
    assert all(stage.passed and stage.ties is None for stage in report.stages)
    assert report.recognised.get("sized_attention", 0) == ATTENTIONS[name]
    for gate in report.gates.values():
        assert gate.tolerance < 1e-4, gate.reason
        assert gate.scale > 0.1
    with tokexport.runtimes.load(model.result.bundle) as runner:
        assert_agrees(runner, model)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("target", ["openvino", "trt"])
def test_it_builds_for_the_other_targets(
    name: str, target: str, compiled: Callable[[str], Compiled], tmp_path: Path
) -> None:
    assert_builds(compiled(name), target, tmp_path)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("name", "target", "status"),
    [("timm TNT", "openvino", PASSED), ("Super Token attention", "trt", BUILT_NOT_RUN)],
)
def test_a_whole_compile_says_what_ran(name: str, target: str, status: str, tmp_path: Path) -> None:
    result = tokexport.compile(*build(name), target, output=tmp_path / "bundle")
    assert result.status == status
    assert all(stage.passed for stage in result.report.stages)
