"""Says what makes a proof weaker than it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokexport.exporter.errors import listed
from tokexport.exporter.gates import Gate
from tokexport.exporter.token_cap_use import TokenCapUse


def gate_warnings(gates: Mapping[str, Gate], cap: TokenCapUse | None) -> tuple[str, ...]:
    """Says what makes the proof weaker than it looks."""
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
                "An error below that cannot be told from it."
            )
    return tuple(found)


def half_warning(lines: Sequence[str]) -> tuple[str, ...]:
    """Says where the model itself computes in a half type, by its lines."""
    if not lines:
        return ()
    return (
        f"The model itself computes in {listed(lines, 4)}. The artifact computes that in float32, "
        "and its outputs are held to what rounding to the half type explains.",
    )


def spread_warnings(gates: Mapping[str, Gate]) -> tuple[str, ...]:
    """Says of which outputs no sample shows that an artifact reads its inputs."""
    return tuple(
        f"Output '{name}' is the same for all samples, so nothing shows that int8 reads its "
        "inputs: give several different samples with --inputs."
        for name, gate in gates.items()
        if not gate.varies
    )
