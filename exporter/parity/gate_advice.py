"""Says what to do where a reduced precision costs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig

_FP32: Final = "compile with --precision fp32."
#: By target; OpenVINO falls back where the processor has no fp16, an engine does not.
_FP16: Final = {
    "openvino": "Where the processor has no fp16, OpenVINO computes in bf16: try --precision bf16, "
    "whose gate is wider",
    "trt": "Numbers beyond 65504 are infinite in fp16: try --precision bf16, which holds them and "
    "has a wider gate",
}


def advice_for(config: CompileConfig) -> str:
    """Returns what to do where the precision of a compile leaves its gate; '' in fp32."""
    if config.precision == "fp32":
        return ""
    if config.precision == "fp16":
        return f"{_FP16[config.target]}; or {_FP32}"
    ways = []
    if config.inputs is None:
        ways.append("give real samples with --inputs")
    elif config.quantization_used == "static":
        ways.append("give --inputs that are like real ones, and more of them")
    if (config.target, config.precision) == ("ort", "int8"):
        other = "dynamic" if config.quantization_used == "static" else "static"
        ways.append(f"try --quantization {other}")
    said = "; ".join([*ways, f"or {_FP32}" if ways else _FP32])
    return said[0].upper() + said[1:]
