"""Prints the results of verify and doctor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tokexport.exporter.errors import GateError
from tokexport.exporter.json_values import plain
from tokexport.runtimes.compatibility import Need, compare_with_machine
from tokexport.runtimes.doctor import Component, summary
from tokexport.runtimes.loading import unknown_flavour
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.verification import OutputResult, VerifyResult

_WIDEST: Final = 500


def unbroken_lines(table: Table, console: Console) -> Iterator[Text]:
    """Yields the lines of a table; where the console is too narrow for it, they run on."""
    needed = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    for segments in console.render_lines(table, console.options.update(width=needed)):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        yield line


class VerifiedOutput(TypedDict):
    """How far one output of a bundle is off.

    Attributes:
        passed: Whether it is within its gate.
        relative_error: The largest difference over the gate's scale, or the fraction of differing
            elements of an output of whole numbers.
        relative_tolerance: What the gate allows for that; None where it is one of the cosine, or of
            every value.
        share_of_allowed: The most that a value uses of what is allowed for it; above 1 it is
            outside. None where the gate has no tolerance for each value.
        least_cosine: The smallest cosine that the gate allows; None where it asks for none.
        spread_error: The root of the mean squared difference, over the gate's spread; None where
            the gate has none.
        spread_tolerance: The largest that the gate allows; None where it has none.
        failure: What the other figures leave unseen, a clause; '' where all is right.
        max_abs: The largest absolute difference.
        mean_abs: The mean absolute difference.
        cosine: The cosine similarity of the flattened outputs, -1 to 1.
        top1_agreement: The fraction of rows with the largest entry at the same place; None for
            outputs of one class or of whole numbers.
    """

    passed: bool
    relative_error: float
    relative_tolerance: float | None
    share_of_allowed: float | None
    least_cosine: float | None
    spread_error: float | None
    spread_tolerance: float | None
    failure: str
    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float | None


@dataclass(frozen=True)
class BundleDiagnosis:
    """Whether a machine can run a bundle, by its manifest alone.

    Attributes:
        bundle: Its folder.
        runs: Whether everything that it needs is here.
        needs: What it needs, and what is here.
    """

    bundle: str
    runs: bool
    needs: tuple[Need, ...]

    def failed(self) -> GateError | None:
        """Returns the error of a machine that lacks something; None where it can run the bundle."""
        lacking = [need for need in self.needs if not need.met]
        if not lacking:
            return None
        return GateError(
            f"This machine cannot run the bundle: {', '.join(need.name for need in lacking)}.",
            where="\n".join(need.problem for need in lacking),
            fix="\n".join(need.fix for need in lacking if need.fix),
        )


@dataclass(frozen=True)
class Diagnosis:
    """What of tokexport works on a machine.

    Attributes:
        components: What compiling, running and verifying need.
        bundle: The bundle that was asked about; None without one.
    """

    components: tuple[Component, ...]
    bundle: BundleDiagnosis | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found


class RuntimeName(TypedDict):
    """Which runtime ran a bundle.

    Attributes:
        flavour: Which build of it: ``onnxruntime-cpu``, ``openvino-cpu``.
        version: Its exact version.
    """

    flavour: str
    version: str


class VerifiedRung(TypedDict):
    """How far one artifact of a bundle is off its reference data.

    Attributes:
        batch: The number of samples that it takes at once.
        batches: The number of batches replayed.
        samples_left_out: How many samples in them were not compared, for a near-tie in each.
        outputs: How far each output is off, by name.
    """

    batch: int
    batches: int
    samples_left_out: int
    outputs: dict[str, VerifiedOutput]


class Verification(TypedDict):
    """How far a bundle is off its reference data, its first artifact before the others.

    Attributes:
        status: ``PASSED`` or ``FAILED``, of all artifacts together.
        runtime: What ran the bundle.
        batch: The number of samples that the first artifact takes at once.
        batches: The number of batches replayed.
        samples_left_out: How many samples in them were not compared, for a near-tie in each.
        outputs: How far each output is off, by name.
        rungs: How far the further artifacts are off.
    """

    status: str
    runtime: RuntimeName
    batch: int
    batches: int
    samples_left_out: int
    outputs: dict[str, VerifiedOutput]
    rungs: list[VerifiedRung]


def verification_json(result: VerifyResult) -> dict[str, Any]:
    """Returns plain values: the status, the runtime, and how far each output is off."""
    data: Verification = {
        "status": "PASSED" if result.passed else "FAILED",
        "runtime": {"flavour": result.runtime.flavour, "version": result.runtime.version},
        "batch": result.batch,
        "batches": result.batches,
        "samples_left_out": result.left_out,
        "outputs": {output.name: _verified(output) for output in result.outputs},
        "rungs": [_rung(one) for one in result.rungs],
    }
    found: dict[str, Any] = plain(data)
    return found


def _rung(result: VerifyResult) -> VerifiedRung:
    return {
        "batch": result.batch,
        "batches": result.batches,
        "samples_left_out": result.left_out,
        "outputs": {output.name: _verified(output) for output in result.outputs},
    }


def _verified(output: OutputResult) -> VerifiedOutput:
    return {
        "passed": output.passed,
        "relative_error": output.relative_error,
        "relative_tolerance": output.relative_tolerance,
        "share_of_allowed": None if output.worst is None else output.worst.share,
        "least_cosine": output.least_cosine,
        "spread_error": output.spread_error,
        "spread_tolerance": output.spread_tolerance,
        "failure": output.failure,
        "max_abs": output.comparison.max_abs,
        "mean_abs": output.comparison.mean_abs,
        "cosine": output.comparison.cosine,
        "top1_agreement": output.comparison.top1_agreement,
    }


def render_verification(result: VerifyResult, console: Console) -> None:
    """Prints a row per output, and the status."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("output", "max abs", "of scale", "allowed", "cosine", "top-1", ""):
        table.add_column(heading, justify="left" if heading == "output" else "right")
    for name, _, output in result.named_outputs():
        top1 = output.comparison.top1_agreement
        table.add_row(
            name,
            f"{output.comparison.max_abs:.2e}",
            _found(output),
            _allowed(output),
            f"{output.comparison.cosine:.7f}",
            "–" if top1 is None else f"{top1:.2%}",
            Text("passed", "green") if output.passed else Text("FAILED", "bold red"),
        )
    console.print(table)
    status = Text("PASSED", "bold green") if result.passed else Text("FAILED", "bold red")
    runtime = f"{result.runtime.flavour} {result.runtime.version}"
    count, left = (
        sum(one.batches for one in result.ladder),
        sum(one.left_out for one in result.ladder),
    )
    batches = "1 batch" if count == 1 else f"{count} batches"
    left_out = f", {left} samples with a near-tie left out" if left else ""
    console.print(Text.assemble(status, f"  {batches} on {runtime}{left_out}"))


def _found(output: OutputResult) -> str:
    """Returns the error as a share of the scale, and below it of the spread where that is gated."""
    if output.spread_error is None:
        return f"{output.relative_error:.2e}"
    return f"{output.relative_error:.2e}\n{output.spread_error:.2e} of spread"


def _allowed(output: OutputResult) -> str:
    if output.worst is not None:
        return f"{output.worst.share:.0%} of it used"
    if output.relative_tolerance is not None:
        return f"{output.relative_tolerance:.2e}"
    if output.spread_tolerance is None:
        return f"cosine {output.least_cosine:g}"
    return f"cosine {output.least_cosine:g}\n{output.spread_tolerance:g} of spread"


def failed_gate(result: VerifyResult) -> GateError | None:
    """Returns the error that names the outputs outside their gates; None where all passed."""
    failed = [
        f"{name} {output.why_not}"
        for name, _, output in result.named_outputs()
        if not output.passed
    ]
    if not failed:
        return None
    return GateError(
        f"The bundle differs from its reference: {', '.join(failed)}.",
        where=f"Run on {result.runtime.flavour} {result.runtime.version}.",
        fix="Compile it anew on this machine, or with the runtime version in its manifest.",
    )


def diagnosis_of(bundle: Path) -> BundleDiagnosis:
    """Holds this machine to the manifest of a bundle; its other files are not opened.

    Args:
        bundle: The folder that compile wrote.

    Raises:
        SignatureError: The environment names a key that did not sign it as it is.
        BundleError: It is no bundle, its manifest is not valid, or it is for a runtime that this
            tokexport does not know.
    """
    manifest = trusted_manifest(bundle)
    needs = compare_with_machine(manifest)
    if not needs:
        raise unknown_flavour(bundle, manifest)
    return BundleDiagnosis(str(bundle), all(need.met for need in needs), needs)


def render_bundle_diagnosis(found: BundleDiagnosis, console: Console) -> None:
    """Prints what a bundle needs, a row each, and whether this machine can run it."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("", "", "needed", "here"):
        table.add_column(heading, overflow="fold")
    for need in found.needs:
        mark = Text("ok", "green") if need.met else Text("no", "red")
        table.add_row(mark, need.name, Text(need.needed), Text(need.here or "–"))
    console.print(table)
    if found.runs:
        console.print(Text(f"This machine can run {found.bundle}."), soft_wrap=True)


def render_components(components: Sequence[Component], console: Console) -> None:
    """Prints what the machine can do, a row per component, and how to install what is missing."""
    console.print(summary(components), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("", "component", "version", "used for"):
        table.add_column(heading, overflow="fold")
    for component in components:
        mark = Text("ok", "green") if component.works else Text("no", "red")
        table.add_row(mark, component.name, component.version or "–", component.used_for)
    console.print(table)
    for component in components:
        if not component.works:
            said = Text.assemble((component.name, "bold"), f": {component.missing}")
            console.print(said, soft_wrap=True)
            console.print(Text(f"    {component.install}"), soft_wrap=True)
