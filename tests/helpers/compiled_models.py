"""Models compiled once for ONNX Runtime, from whose emitted graph tests build for other targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

import tokexport
from tokexport.exporter.build import build, save_onnx
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.outputs import flatten
from tokexport.graph_passes import pipelines
from tokexport.runtimes.base import Runner
from tokexport.runtimes.openvino import OpenVinoRunner
from tokexport.runtimes.ort import OrtRunner


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


def compile_for_ort(
    model: nn.Module, example: Tensor | dict[str, Tensor], folder: Path
) -> Compiled:
    """Compiles a model of one input."""
    result = tokexport.compile(model, example, output=folder / "bundle", keep_stages=True)
    ((name, shown),) = example.items() if isinstance(example, dict) else (("", example),)
    images = torch.randn(shown.shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        answer = model(**{name: images}) if name else model(images)
    wanted, _ = flatten(answer)
    return Compiled(result, folder / "bundle.stages" / "emitted" / "model.onnx", images, wanted)


def assert_agrees(runner: Runner, model: Compiled) -> None:
    """Holds a runner to eager on the input that the compile did not see."""
    (spec,) = runner.inputs
    found = runner.run({spec.name: model.images.numpy()})
    assert set(found) == set(model.wanted)
    for output, wanted in model.wanted.items():
        gate = model.result.report.gates[output]
        assert gate.tolerance < 1e-4, gate.reason
        torch.testing.assert_close(
            torch.from_numpy(found[output]), wanted, rtol=0.0, atol=gate.tolerance * gate.scale
        )


def assert_builds(model: Compiled, target: str, folder: Path) -> None:
    """Lowers and builds a model for another target; what can run here must agree with eager."""
    lowered = folder / "lowered.onnx"
    save_onnx(pipelines.lower(ir.load(model.emitted), target), lowered)
    with OrtRunner.from_file(lowered) as runner:
        assert_agrees(runner, model)
    build(target, lowered, folder)
    if target == "openvino":
        with OpenVinoRunner.from_file(folder / "model.xml") as runner:
            assert_agrees(runner, model)
    else:
        assert (folder / "model.engine").stat().st_size > 10_000
