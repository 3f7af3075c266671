"""Builds a TensorRT engine from an ONNX file, with RTX also without a GPU.

The network is strongly typed: the types stand in the ONNX graph, and TensorRT follows them. An
attention layer may be decomposed where no fused kernel takes it; in fp32 none does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.errors import BuildError, OperatorRefusedError
from tokexport.runtimes.trt.cuda_driver import CudaDriver
from tokexport.runtimes.trt.libraries import RTX, TensorRt, find_tensorrt

# The GPUs that an RTX engine built ahead of time is compiled for: compute capability, and its name
# in the API. 7.5 is left out: it takes no fp32 matrix multiplication, and only alone.
RTX_CAPABILITIES = {"8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}

# Parser errors that are about an operator, and not about the file; by the name of their code.
_OPERATOR_CODES = (
    "UNSUPPORTED_NODE",
    "UNSUPPORTED_NODE_ATTR",
    "UNSUPPORTED_NODE_INPUT",
    "UNSUPPORTED_NODE_DATATYPE",
    "UNSUPPORTED_NODE_DYNAMIC",
    "UNSUPPORTED_NODE_SHAPE",
    "INVALID_NODE",
)
_LAYER = re.compile(r"\(I(?P<operator>\w+?)Layer (?P<node>[^:()]+): ")


def build_engine(onnx_path: Path, engine_path: Path) -> RuntimeInfo:
    """Builds the engine of a model with static shapes.

    Args:
        onnx_path: The model; its external data lies beside it. Model-local functions are inlined.
        engine_path: Where to write the engine, plain, with nothing put before it.

    Returns:
        What built it; ``details["compute_capabilities"]`` are the GPUs that it runs on.

    Raises:
        RuntimeMissingError: No flavour of TensorRT is installed.
        OperatorRefusedError: TensorRT does not take an operator; names it and its node.
        BuildError: The file is not a model, a shape in it is not static, or building failed.
        OSError: The engine cannot be written.
    """
    if not onnx_path.is_file():
        raise BuildError("The model file does not exist.", where=str(onnx_path))
    tensorrt = find_tensorrt()
    api = tensorrt.api
    with tensorrt.log.collecting():
        builder = api.Builder(tensorrt.logger)
        network = builder.create_network(_network_flags(api))
        # The parser owns the weights that the network refers to: it must outlive the build.
        parser = api.OnnxParser(network, tensorrt.logger)
        if not parser.parse_from_file(str(onnx_path)):
            raise _parse_error(parser, tensorrt, onnx_path)
        _check_static(network, onnx_path)
        _allow_decomposed_attention(api, network)
        config = builder.create_builder_config()
        # On by default, it would round the products of an fp32 network to 10 bits of mantissa.
        config.clear_flag(api.BuilderFlag.TF32)
        capabilities = _set_capabilities(tensorrt, config)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise _build_error(tensorrt, onnx_path)
        with engine_path.open("wb") as file:
            file.write(memoryview(engine))
    return RuntimeInfo(
        "trt", tensorrt.flavour, tensorrt.version, {"compute_capabilities": capabilities}
    )


def _network_flags(api: Any) -> int:
    """Strongly typed; from TensorRT 11 on networks are so without the flag."""
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _check_static(network: Any, onnx_path: Path) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if any(size < 0 for size in tensor.shape):
            raise BuildError(
                f"Input {tensor.name} has a size that is not fixed: {tuple(tensor.shape)}.",
                where=str(onnx_path),
                fix="Export the model with static shapes.",
            )


def _allow_decomposed_attention(api: Any, network: Any) -> None:
    """Allows every attention to fall back on plain layers; a fused kernel still comes first."""
    kind = getattr(api.LayerType, "ATTENTION_INPUT", None)
    if kind is None:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            # The API hands out every layer as its base class, and lets the class be set.
            layer.__class__ = api.IAttentionInputLayer
            layer.attention.decomposable = True


def _set_capabilities(tensorrt: TensorRt, config: Any) -> list[str]:
    """Sets the GPUs to compile for: all of RTX, or the one of this machine."""
    if tensorrt.flavour != RTX:
        return [CudaDriver().gpu().compute_capability]
    names = tensorrt.api.ComputeCapability.__members__
    chosen = {number: names[name] for number, name in RTX_CAPABILITIES.items() if name in names}
    config.num_compute_capabilities = len(chosen)
    for index, capability in enumerate(chosen.values()):
        config.set_compute_capability(capability, index)
    return list(chosen)


def _parse_error(parser: Any, tensorrt: TensorRt, onnx_path: Path) -> BuildError:
    """Returns the error of a file that the ONNX parser refuses."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return BuildError(
            f"TensorRT cannot read the model: {'; '.join(tensorrt.log.errors)}",
            where=str(onnx_path),
        )
    error = errors[0]
    said = error.desc().strip()
    # Some errors come without their node; the log then says which one was being parsed.
    node, operator = tensorrt.log.parsing
    if error.node_operator():
        node, operator = error.node_name(), error.node_operator()
    if error.code().name not in _OPERATOR_CODES or not operator:
        return BuildError(
            f"TensorRT cannot read the model: {said}",
            where="; ".join([str(onnx_path), *tensorrt.log.errors]),
        )
    within = [f"inside function {function}" for function in error.local_function_stack()]
    named = f"node {node or '(without a name)'}, operator {operator}"
    return OperatorRefusedError(
        f"TensorRT does not take operator {operator}"
        + (f": {said}" if said not in ("", "false") else "."),
        where=f"In {onnx_path}: {', '.join([named, *within])}",
        fix="Lower it to operators that TensorRT takes.",
        node=node,
        operator=operator,
    )


def _build_error(tensorrt: TensorRt, onnx_path: Path) -> BuildError:
    """Returns the error of a network that was parsed but not built."""
    said = "; ".join(tensorrt.log.errors) or "it does not say why"
    found = _LAYER.search(said)
    node, operator = (found["node"], found["operator"]) if found else ("", "")
    named = f", node {node}, operator {operator}" if found else ""
    return BuildError(
        f"TensorRT could not build the engine: {said}",
        where=f"In {onnx_path}{named}",
        node=node,
        operator=operator,
    )
