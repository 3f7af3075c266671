"""Sets the gates of the steps in fp32 by how far the model itself is from float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch.fx import GraphModule

from tokexport.exporter import float64_error
from tokexport.exporter.errors import GateError
from tokexport.exporter.float64_error import Float64Error
from tokexport.exporter.gates import FP32_FLOOR, Gate, set_gates
from tokexport.exporter.inputs import Batches
from tokexport.runtimes.base import Array

#: A gate this wide lets any answer pass.
PROVES_NOTHING: Final = 0.1


def fp32_gates(
    eager: Float64Error,
    captured: GraphModule,
    batches: Batches,
    outputs: Mapping[str, Array],
    atol: float | None,
) -> tuple[dict[str, Gate], Float64Error]:
    """Sets the gates of the steps in fp32, and returns the distance from float64 they come from.

    What a decision that falls differently in float64 adds to them is left out; a gate at its floor
    has nothing to leave out.

    Raises:
        GateError: The model itself moves so far that nothing can be proven equal to it.
    """
    gates = set_gates(outputs, eager, "fp32", atol)
    if eager.by_output is None or all(gate.tolerance <= FP32_FLOOR for gate in gates.values()):
        return gates, eager
    eager = float64_error.with_decisions_kept(captured, batches, outputs) or eager
    gates = set_gates(outputs, eager, "fp32", atol)
    for name, gate in gates.items():
        if gate.from_eager and gate.tolerance > PROVES_NOTHING:
            raise GateError(
                f"Output '{name}' of the model itself moves by {gate.eager_error:.1e} of its scale "
                "between fp32 and float64, so nothing can be proven equal to it.",
                fix="Give trained weights and real inputs, or say with --atol what is allowed.",
            )
    return gates, eager
