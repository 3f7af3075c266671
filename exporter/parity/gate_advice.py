"""Says what to do where a reduced precision costs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig

_FP32: Final = "compile with --precision fp32."


def advice_for(config: CompileConfig) -> str:
    """Returns what to do where the precision of a compile leaves its gate; '' in fp32."""
    if config.precision == "fp32":
        return ""
    if config.precision == "fp16":
        return f"{config.backend.fp16_advice}; or {_FP32}"
    ways = []
    if config.inputs is None:
        ways.append("give real samples with --inputs")
    elif config.quantization_used == "static":
        ways.append("give --inputs that are like real ones, and more of them")
    if config.precision == "int8":
        others = [one for one in config.backend.quantizations if one != config.quantization_used]
        ways += [f"try --quantization {one}" for one in others]
    said = "; ".join([*ways, f"or {_FP32}" if ways else _FP32])
    return said[0].upper() + said[1:]
