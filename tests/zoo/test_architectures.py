"""Architectures of other libraries compile for every target, and their attention is recognised.

Attention with a bias of each head (Swin, BEiT, LeViT) stays generic: no operator of the domain has
that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir
import pytest
import torch
from models.architectures import MODELS, Example, build
from torch import Tensor

import tokexport
from tokexport.exporter.build import build as build_artifact
from tokexport.exporter.build import save_onnx
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.outputs import flatten
from tokexport.graph_passes import pipelines
from tokexport.runtimes.base import Runner
from tokexport.runtimes.manifest import BUILT_NOT_RUN, PASSED
from tokexport.runtimes.openvino import OpenVinoRunner
from tokexport.runtimes.ort import OrtRunner

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


@dataclass(frozen=True)
class Compiled:
    """A model and what compiling it for ONNX Runtime left.

    Attributes:
        result: The compile's result.
        emitted: The ONNX model before any target's lowering.
        images: An input that the compile did not see.
        wanted: The answers to it in eager, by name.
    """

    result: CompileResult
    emitted: Path
    images: Tensor
    wanted: dict[str, Tensor]


@pytest.fixture(autouse=True)
def _shortest_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a compile time as little as it can: there are many here."""
    monkeypatch.setattr("tokexport.exporter.speed.SPEED_SECONDS", 0.01)
    monkeypatch.setattr("tokexport.exporter.speed.TRIAL_SECONDS", 0.01)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Compiles each model once: all targets start from the same emitted graph."""

    @functools.cache
    def compile_once(name: str) -> Compiled:
        model, example = build(name)
        folder = tmp_path_factory.mktemp("architecture")
        result = tokexport.compile(model, example, output=folder / "bundle", keep_stages=True)
        generator = torch.Generator().manual_seed(7)
        images = torch.randn(_images(example).shape, generator=generator)
        with torch.no_grad():
            answer = model(images) if isinstance(example, Tensor) else model(pixel_values=images)
        wanted, _ = flatten(answer)
        return Compiled(result, folder / "bundle.stages" / "emitted" / "model.onnx", images, wanted)

    return compile_once


def _images(example: Example) -> Tensor:
    return example if isinstance(example, Tensor) else example["pixel_values"]


def _assert_agrees(runner: Runner, model: Compiled) -> None:
    """Holds a runner to eager on the input that the compile did not see."""
    (spec,) = runner.inputs
    found = runner.run({spec.name: model.images.numpy()})
    assert set(found) == set(model.wanted)
    for output, wanted in model.wanted.items():
        gate = model.result.report.gates[output]
        torch.testing.assert_close(
            torch.from_numpy(found[output]), wanted, rtol=0.0, atol=gate.tolerance * gate.scale
        )


def _lower(model: Compiled, target: str, folder: Path) -> Path:
    """Lowers the emitted graph for a target and returns the file."""
    graph = ir.load(model.emitted)
    for onnx_pass in pipelines.LOWER[target]:
        graph = onnx_pass(graph).model
    lowered = folder / "lowered.onnx"
    save_onnx(graph, lowered)
    return lowered


def test_every_model_is_held_to_a_count() -> None:
    assert set(ATTENTIONS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_it_compiles_within_the_fp32_gate(name: str, compiled: Callable[[str], Compiled]) -> None:
    model = compiled(name)
    report = model.result.report
    assert model.result.status == PASSED
    assert all(hop.passed and hop.ties is None for hop in report.hops)
    assert report.recognised.get("sized_attention", 0) == ATTENTIONS[name]
    for gate in report.gates.values():
        assert gate.tolerance < 1e-4, gate.reason
        assert gate.scale > 0.1
    with OrtRunner.from_file(model.result.bundle / "model.onnx") as runner:
        _assert_agrees(runner, model)


@pytest.mark.parametrize("name", MODELS)
def test_it_agrees_in_openvino(
    name: str, compiled: Callable[[str], Compiled], tmp_path: Path
) -> None:
    model = compiled(name)
    build_artifact("openvino", _lower(model, "openvino", tmp_path), tmp_path)
    with OpenVinoRunner.from_file(tmp_path / "model.xml") as runner:
        _assert_agrees(runner, model)


@pytest.mark.parametrize("name", MODELS)
def test_it_builds_for_tensorrt(
    name: str, compiled: Callable[[str], Compiled], tmp_path: Path
) -> None:
    model = compiled(name)
    lowered = _lower(model, "trt", tmp_path)
    with OrtRunner.from_file(lowered) as runner:
        _assert_agrees(runner, model)
    build_artifact("trt", lowered, tmp_path)
    assert (tmp_path / "model.engine").stat().st_size > 10_000


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("name", "target", "status"),
    [("timm TNT", "openvino", PASSED), ("Super Token attention", "trt", BUILT_NOT_RUN)],
)
def test_a_whole_compile_says_what_ran(name: str, target: str, status: str, tmp_path: Path) -> None:
    result = tokexport.compile(*build(name), target, output=tmp_path / "bundle")
    assert result.status == status
    assert all(hop.passed for hop in result.report.hops)
