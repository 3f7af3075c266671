"""Takes functions through capture, passes, emission and a runtime, for the tests of passes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.pass_runner import (
    PassResult,
    TorchPass,
    run_passes,
)
from tokexport.runtimes.ort.runner import OrtRunner

Outputs = Tensor | tuple[Tensor, ...]
#: The targets that run here; what is lowered for ``trt`` runs in ONNX Runtime.
TARGETS = ("ort", "openvino")


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Outputs]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Outputs:
        """Calls the function."""
        return self.function(*tensors)


def trace(function: Callable[..., Outputs], *inputs: Tensor) -> ExportedProgram:
    """Returns the functional graph of a function or module on inputs like these."""
    model = function if isinstance(function, nn.Module) else Function(function)
    return capture(FlatModel(model, call_spec(model, inputs, {})), inputs)


def rewrite(
    function: Callable[..., Outputs],
    *inputs: Tensor,
    passes: Sequence[TorchPass] | None = None,
) -> PassResult:
    """Traces a function and runs the passes over its graph, those of every compile without any."""
    ops.register()
    program = trace(function, *inputs)
    return pipelines.rewrite(program) if passes is None else run_passes(program, passes)


def calls(rewritten: PassResult) -> Counter[str]:
    """Counts the calls of a rewritten graph by operator: ``aten.cat``, ``tokexport.gather_tokens``.

    The selection of one of several results is not counted.
    """
    nodes = [node for node in rewritten.program.graph.nodes if node.op == "call_function"]
    return Counter(_operator(node) for node in nodes if node.target is not operator.getitem)


def makers(rewritten: PassResult) -> list[str]:
    """Returns the operator that makes each output, called as in ``calls``."""
    (output,) = (node for node in rewritten.program.graph.nodes if node.op == "output")
    return [_operator(node) for node in output.args[0]]


def _operator(node: Node) -> str:
    return str(node.target).rpartition(".")[0]


def run_eager(function: Callable[..., Outputs], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Runs the function as it is."""
    with torch.no_grad():
        found = function(*inputs)
    return found if isinstance(found, tuple) else (found,)


def run_rewritten(rewritten: PassResult, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Runs a rewritten program in torch."""
    with torch.no_grad():
        found: tuple[Tensor, ...] = rewritten.program.module()(*inputs)
    return found


def emitted(rewritten: PassResult) -> ir.Model:
    """Emits a rewritten program as ONNX: ``in0, in1, …`` to ``out0, out1, …``."""
    signature = rewritten.program.graph_signature
    return emit(
        rewritten.program,
        [f"in{i}" for i in range(len(signature.user_inputs))],
        [f"out{i}" for i in range(len(signature.user_outputs))],
    )


def lowered(
    model: ir.Model, target: str, arithmetic: pipelines.Arithmetic = pipelines.FP32
) -> ir.Model:
    """Lowers a copy of a model for a target."""
    return pipelines.lower(model.clone(), pipelines.lowering(target, arithmetic)).model


def run_onnx(model: ir.Model, *inputs: Tensor, target: str = "ort") -> tuple[Tensor, ...]:
    """Runs a lowered model on the CPU: in OpenVINO for that target, else in ONNX Runtime."""
    feeds = {f"in{i}": tensor.numpy() for i, tensor in enumerate(inputs)}
    data = ir.to_proto(model).SerializeToString()
    arrays = (_run_openvino if target == "openvino" else _run_ort)(data, feeds)
    return tuple(torch.from_numpy(np.array(array)) for array in arrays)


def checked(
    function: Callable[..., Outputs],
    *inputs: Tensor,
    passes: Sequence[TorchPass] | None = None,
    targets: Sequence[str] = (),
    tolerance: float = 1e-6,
) -> PassResult:
    """Rewrites a function and asserts that what comes out computes what the function does.

    Args:
        function: A function or module.
        inputs: What it is traced and run on.
        passes: The passes; those of every compile without any.
        targets: The targets whose lowered model must agree as well.
        tolerance: How far values may lie apart, relative to the largest of an output.
    """
    rewritten = rewrite(function, *inputs, passes=passes)
    wanted = run_eager(function, *inputs)
    assert_close(run_rewritten(rewritten, *inputs), wanted, tolerance)
    model = emitted(rewritten) if targets else None
    for target in targets:
        assert model is not None
        assert_close(run_onnx(lowered(model, target), *inputs, target=target), wanted, tolerance)
    return rewritten


def _run_ort(data: bytes, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    arrays: list[Any] = session.run(None, feeds)
    return arrays


def _run_openvino(data: bytes, feeds: dict[str, Any]) -> list[Any]:
    core = openvino.Core()
    model = core.read_model(data)
    for node in model.get_ops():
        if node.get_type_name() == "TopK":  # stable by ONNX's definition, here only on demand
            node.set_attribute("stable", True)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(model, "CPU", hints)
    # Inputs that nothing reads are no longer there.
    names = {name for port in compiled.inputs for name in port.get_names()}
    found = compiled({name: array for name, array in feeds.items() if name in names})
    return [found[port] for port in compiled.outputs]


def assert_close(
    found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-6
) -> None:
    """Asserts equal shapes and dtypes, and values within a tolerance of the largest finite one."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        finite = other.double().nan_to_num(0.0, 0.0, 0.0).abs()
        scale = max([1.0, *finite.flatten().tolist()])
        torch.testing.assert_close(one, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def lowered_for_ort(model: nn.Module, x: Tensor, folder: Path) -> ir.Model:
    """Lowers a model for ONNX Runtime, and holds its bodies and its kernels to eager."""
    found = lowered(emitted(rewrite(model, x)), "ort")
    with torch.no_grad():
        answer = model(x)
    if isinstance(answer, Tensor):
        answer = (answer,)
    wanted = tuple(answer.values() if isinstance(answer, dict) else answer)
    assert_close(run_onnx(found, x), wanted, 1e-5)
    save_onnx(found, folder / "model.onnx")
    with OrtRunner.from_file(folder / "model.onnx") as runner:
        assert runner.runtime.details["kernels"] != "none"
        arrays = runner.run({"in0": x.numpy()}).values()
    assert_close(tuple(map(torch.from_numpy, arrays)), wanted, 1e-5)
    return found
