"""Verifies a bundle with numpy and its runtime alone, and prints the verdict as a line of JSON."""

from __future__ import annotations

import json
import platform
import sys
from typing import TYPE_CHECKING, Any

from tokexport.runtimes.errors import RuntimesError
from tokexport.runtimes.processor import instruction_set
from tokexport.runtimes.verification import verify_bundle

if TYPE_CHECKING:
    from tokexport.runtimes.verification import OutputResult


def shares(output: OutputResult) -> list[float]:
    """Returns how much of what each gate allows an output takes; 1 is all of it."""
    found = [] if output.worst is None else [output.worst.share]
    if output.relative_tolerance:
        found.append(output.relative_error / output.relative_tolerance)
    if output.least_cosine is not None:
        found.append((1 - output.comparison.cosine) / (1 - output.least_cosine))
    if output.spread_error is not None and output.spread_tolerance:
        found.append(output.spread_error / output.spread_tolerance)
    return found


def verified(bundle: str) -> dict[str, Any]:
    """Returns the verdict on a bundle, or the error that it is refused with."""
    machine = {"machine": platform.machine(), "instruction_set": instruction_set()}
    try:
        found = verify_bundle(bundle, threads=1)
    except RuntimesError as error:
        return {**machine, "passed": False, "error": str(error)}
    details = found.runtime.details
    return {
        **machine,
        "runtime": f"{found.runtime.flavour} {found.runtime.version}",
        "kernels": details["kernels"],
        "kernel_calls": details.get("kernel_calls"),
        "passed": found.passed,
        "share": max(max(shares(output), default=0.0) for output in found.outputs),
        "max_abs": max(output.comparison.max_abs for output in found.outputs),
        "samples_left_out": found.left_out,
    }


if __name__ == "__main__":
    print(json.dumps(verified(sys.argv[1])))
