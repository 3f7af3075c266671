"""An error planted in each stage is blamed on that stage, by name, and leaves no bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.thorough import thorough_but
from models.outputs import SeesTracing
from models.tiny_vit import image, tiny_tome

import tokexport
import tokexport.exporter.stages.artifact_stages as artifact_stages
from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.parity.proof import ParityError
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import KERNEL_CALLS
from tokexport.graph_passes.ops import onnx_functions
from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

aten = torch.ops.aten


def blamed(tmp_path: Path, target: str, model: Any = None, example: Any = None) -> ParityError:
    """Compiles, expects a failure, and returns it."""
    with pytest.raises(ParityError) as caught:
        tokexport.compile(
            model or tiny_tome(),
            image() if example is None else example,
            target,
            output=tmp_path / "bundle",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]
    assert caught.value.report is not None
    assert caught.value.report.first_failure == caught.value.stages[-1].name
    return caught.value


def test_capture_is_blamed_where_tracing_changes_the_answer(tmp_path: Path) -> None:
    error = blamed(tmp_path, "ort", SeesTracing().eval(), torch.zeros(2, 6))
    assert "Parity failed at 'captured'" in error.what
    assert "output 'output' is off by" in error.what


class MinusForPlus(TorchPass):
    """A wrong pass: the last residual is subtracted."""

    name: ClassVar[str] = "minus for plus"

    def call(self, edit: Editor) -> int:
        """Swaps the operator of the last addition."""
        last = [node for node in edit.graph.nodes if node.target is aten.add.Tensor][-1]
        last.target = aten.sub.Tensor
        return 1


def test_a_wrong_torch_pass_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "REWRITE", (*pipelines.REWRITE, MinusForPlus()))
    error = blamed(tmp_path, "ort")
    assert [stage.name for stage in error.stages] == ["captured", "rewritten"]
    assert "Parity failed at 'rewritten'" in error.what


@pytest.mark.thorough
def test_a_wrong_function_body_is_blamed_on_the_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_functions.function

    def overwriting(name: str) -> onnx.FunctionProto:
        """The body that a stock exporter would write: the sum forgets the destination."""
        proto = right(name)
        if name != "scatter_tokens_sum":
            return proto
        wrong = onnx.FunctionProto()
        wrong.CopyFrom(proto)
        (add,) = (node for node in wrong.node if node.op_type == "Add")
        add.op_type = "Max"
        return wrong

    monkeypatch.setattr(onnx_functions, "function", overwriting)
    error = blamed(tmp_path, "ort")
    assert "Parity failed at 'onnx'" in error.what
    assert "Passed before it: captured, rewritten." in error.where


class ForgetOneWeight(ir.passes.InPlacePass):
    """A wrong pass: the first large weight becomes zero."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Zeroes the weight."""
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.size > 1000:
                zeros = np.zeros_like(value.const_value.numpy())
                value.const_value = ir.tensor(zeros, name=value.name)
                return ir.passes.PassResult(model, modified=True)
        raise AssertionError("no weight to forget")


@pytest.mark.parametrize("target", thorough_but(["trt"], ["openvino", "trt"]))
def test_a_wrong_lowering_is_blamed(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**pipelines.LOWER, target: (*pipelines.LOWER[target], ForgetOneWeight())}
    monkeypatch.setattr(pipelines, "LOWER", wrong)
    assert "Parity failed at 'lowered'" in blamed(tmp_path, target).what


@pytest.mark.parametrize("target", thorough_but(["ort"], ["ort", "openvino"]))
def test_a_wrong_artifact_is_blamed(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = artifact_stages.artifact_of

    def from_another_graph(backend: Backend, lowered: Path, *others: Any) -> Any:
        """Builds, with the real runtime, from a file with one weight changed."""
        model = ir.load(lowered)
        ForgetOneWeight()(model)
        ir.save(model, lowered)
        return right(backend, lowered, *others)

    monkeypatch.setattr(artifact_stages, "artifact_of", from_another_graph)
    error = blamed(tmp_path, target)
    stage = {"ort": "artifact", "openvino": "without kernels"}[target]
    assert f"Parity failed at '{stage}'" in error.what
    # for ort no step shows the lowered graph by itself
    lowered = "The artifact differs from the emitted ONNX: an ONNX pass, a kernel or the runtime"
    built = "OpenVINO's own operators differ from the ONNX they were built from."
    assert error.where.startswith(lowered if target == "ort" else built)


class ReadOtherChannels(ir.passes.InPlacePass):
    """A wrong pass: the kernels are told to read other channels than the calls do."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Writes another start beside every match."""
        calls = json.loads(model.metadata_props[KERNEL_CALLS])
        matches = [call for call in calls if call["operator"] == "cosine_match"]
        for call in matches:
            call["attributes"]["start"] = 0
        model.metadata_props[KERNEL_CALLS] = json.dumps(calls)
        return ir.passes.PassResult(model, modified=bool(matches))


def test_a_wrong_kernel_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (*pipelines.LOWER["openvino"], ReadOtherChannels())
    monkeypatch.setattr(pipelines, "LOWER", {**pipelines.LOWER, "openvino": wrong})
    error = blamed(tmp_path, "openvino")
    assert "Parity failed at 'artifact'" in error.what
    assert "a kernel or the runtime is off" in error.where
