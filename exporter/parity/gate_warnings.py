"""Warns what makes a proof weaker than it looks; advises where a precision costs too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.errors import listed
from tokexport.exporter.parity.gates import UNSTABLE, Gate
from tokexport.exporter.rounding.local_rounding import LocalRounding
from tokexport.runtimes.arrays import Array

if TYPE_CHECKING:
    from tokexport.exporter.config import CompileConfig


_FP32: Final = "compile with --precision fp32."


def advice_for(config: CompileConfig) -> str:
    """Returns the advice where the precision of a compile fails its gate; '' in fp32."""
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


def gate_warnings(gates: Mapping[str, Gate], cap: TokenCapReport | None) -> tuple[str, ...]:
    """Returns warnings on what makes the proof weaker than it looks."""
    found = [*cap.warnings()] if cap is not None else []
    for name, gate in gates.items():
        if gate.scale == 0:
            found.append(
                f"Output '{name}' holds no finite number but zero on these inputs, so its parity "
                "proves nothing: give trained weights, or real inputs."
            )
        elif gate.unstable:
            found.append(
                f"Rounding alone moves output '{name}' of the model itself far: {gate.unstable}. "
                "A smaller error of the artifact does not show."
            )
    return tuple(found)


def weak_kinds(
    kinds: Sequence[str],
    outputs: Mapping[str, Array],
    rounding: Mapping[str, LocalRounding],
    most: float,
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the kinds of inputs on which nothing is proven, and those on which little is.

    Args:
        kinds: The kind of every batch.
        outputs: What eager answers, (batches, …) by name.
        rounding: What it does to the floating ones.
        most: By what share of its scale it may move an output that something is proven of.
    """
    nothing: dict[str, str] = {}
    little: dict[str, str] = {}
    for row, kind in enumerate(kinds):
        said, moved = [], {}
        for name, of_all in rounding.items():
            own = of_all.of_kind(row)
            moves = max(own.typical, own.typical_half)
            if moves > most:
                moved[name] = moves
                said.append(f"rounding alone moves '{name}' by {moves:.1e} of its scale")
            elif unstable := own.unstable(UNSTABLE):
                said.append(f"rounding alone moves '{name}' far: {unstable}")
            elif not _finite(outputs[name][row]).any():
                said.append(f"'{name}' is zero")
        if len(moved) == len(outputs):
            by = f"by {min(moved.values()):.1e} of its scale"
            nothing[kind] = f"rounding alone moves {'it' if len(moved) == 1 else 'all'} {by}"
        elif said:
            little[kind] = "; ".join(said)
    return nothing, little


def _finite(array: Array) -> Array:
    found: Array = np.where(np.isfinite(array), array, 0)
    return found


def half_warning(lines: Sequence[str]) -> tuple[str, ...]:
    """Returns a warning with the lines of the model that compute in a half type."""
    if not lines:
        return ()
    return (
        f"The model itself computes in {listed(lines, 4)}. The artifact computes that in float32, "
        "and its outputs are compared within what rounding to the half type explains.",
    )


def spread_warnings(gates: Mapping[str, Gate]) -> tuple[str, ...]:
    """Returns warnings on outputs for which no sample shows that int8 reads its inputs."""
    same = tuple(
        f"Output '{name}' is the same for all samples, so no sample shows that int8 reads its "
        "inputs: give several different samples with --inputs."
        for name, gate in gates.items()
        if not gate.varies
    )
    hidden = tuple(
        f"int8 may move {gate.hidden} of output '{name}' by more than they vary between the "
        "samples, so an error of that size does not show: give more samples with --inputs."
        for name, gate in gates.items()
        if gate.hidden and gate.varies
    )
    return same + hidden
