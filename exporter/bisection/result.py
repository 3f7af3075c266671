"""Holds what a bisection found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokexport.exporter.errors import GateError
from tokexport.exporter.json_values import plain


@dataclass(frozen=True)
class Fault:
    """Where a stage goes wrong.

    Attributes:
        stage: The stage that differs first: ``captured``, ``rewritten``, ``onnx``, ``lowered``,
            ``without kernels``, ``artifact``.
        meaning: What a difference first seen there means.
        detail: How far the outputs are off, a clause.
        node: The node whose inputs do not explain its error; '' where none was found.
        value: The value that it gives.
        operator: Its operator.
        nodes: It and the nodes before it, as far as no value before them is known.
        block: The block that it is in, ``blocks.3``; '' outside of all.
        made_by: The pass that made the node, or after which the graph is wrong first; '' where
            that is not known.
        line: The user's innermost line that it came from; '' where that is not known.
        why: What singles it out, a sentence.
        difference: How far it is off, a clause.
        error: Its largest error; of whole numbers, how many differ.
        allowed: How much of that rounding explains.
    """

    stage: str
    meaning: str
    detail: str
    node: str = ""
    value: str = ""
    operator: str = ""
    nodes: tuple[str, ...] = ()
    block: str = ""
    made_by: str = ""
    line: str = ""
    why: str = ""
    difference: str = ""
    error: float = 0.0
    allowed: float = 0.0


@dataclass(frozen=True)
class Bisection:
    """Where a bundle, or a compile, first differs from its source.

    Attributes:
        source: Where the model was read from.
        bundle: The bundle's folder; None where the stages of a compile were run.
        target: What it is built for.
        precision: What it computes in.
        inputs: Where the inputs come from, a clause.
        samples: How many samples were compared.
        altered: Whether a file of the bundle is not the one that was written.
        other_batches: How many samples the bundle's other artifacts take at once, which were not
            looked at.
        fault: Where it goes wrong; None where no stage differs by more than near-ties.
        ties: How many samples a near-tie excuses.
        passed: The stages that agree.
        output: The folder of the reproduction; None without one.
        reproduces: Whether what it holds shows the fault by itself.
        seconds: How long it took, by part.
    """

    source: str
    bundle: Path | None
    target: str
    precision: str
    inputs: str
    samples: int
    altered: bool
    other_batches: tuple[int, ...]
    fault: Fault | None
    ties: int
    passed: tuple[str, ...]
    output: Path | None
    reproduces: bool
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        data: dict[str, Any] = plain(self)
        return data

    def failed(self) -> GateError | None:
        """Returns the error that says where it goes wrong; None where it does not."""
        fault = self.fault
        if fault is None:
            return None
        if not fault.node:
            return GateError(
                f"It first differs at '{fault.stage}': {fault.detail}; no node was singled out.",
                where=fault.meaning,
                fix="Give other samples with --inputs, or look at the stages: compile with "
                "--keep-stages.",
            )
        place = f" of {fault.block}" if fault.block else ""
        made = f" Made by {fault.made_by}." if fault.made_by else ""
        return GateError(
            f"It first differs at '{fault.stage}', at node {fault.node} ({fault.operator}){place}.",
            where=f"{fault.line or 'The line is not known.'}{made}",
            fix=f"{self.output}/README.md shows how to see it." if self.output else "",
        )
