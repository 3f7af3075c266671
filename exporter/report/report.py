"""Holds the results of a compile, for ``report.json`` and for the printed summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.capture.fingerprint import Fingerprint
from tokexport.exporter.capture.random_ops_report import RandomOpsReport
from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.edges.edge_report import EdgeReport
from tokexport.exporter.json_values import plain
from tokexport.exporter.parity.accuracy import Accuracy
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.proof import StageResult
from tokexport.exporter.reduction.reduction_report import ReductionReport
from tokexport.exporter.report.ladder_report import RungReport, fill_ladder
from tokexport.exporter.source.options import ReportedSource
from tokexport.exporter.speed.interleaved import Speed
from tokexport.exporter.speed.start_up import StartUp
from tokexport.exporter.system.machine import Machine
from tokexport.exporter.tuning.choices import Tuning
from tokexport.graph_passes.pass_report import PassReport
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED, RuntimeInfo
from tokexport.runtimes.notebook import as_html, one_line
from tokexport.runtimes.tolerances.neighbourhoods import Worst

SCHEMA_VERSION = 2
#: The report in a bundle.
FAILED = "FAILED"
_STYLES = {PASSED: "bold green", BUILT_NOT_RUN: "bold yellow", FAILED: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one compile.

    Attributes:
        target: ``ort``, ``openvino`` or ``trt``.
        status: ``PASSED``, ``BUILT, NOT RUN`` or ``FAILED``.
        precision: The precision asked for.
        source: Where the model came from: ``kind``, ``location``, ``sha256``, ``notes``.
        fingerprint: The hashes of the traced model, its reduction in it; None where a compile ends
            before the trace.
        inputs: Where the inputs came from, a clause.
        constant_inputs: The inputs that are fixed, with their values.
        samples: How many real samples were compared.
        batches: In how many batches.
        stages: The stages, in order, each compared with the reference.
        gates: The gate of every output of the artifact.
        first_failure: The name of the first stage that failed; None when none did.
        not_run_reason: Why the artifact did not run here; None when it ran.
        accuracy: Before and after; None without labels.
        random_ops: What dropping the model's random operators changed; None where it has none.
        token_cap: How the samples fit under a cap; None without one, or where none was needed.
        edges: The comparison on inputs beside the samples; None if a stage failed before it.
        reduction: The reduction, and its cost; None without one.
        tuning: Which forms of the token operators were chosen by measurement; None without tuning.
        speed: The measurement; None when nothing could be timed.
        speed_over_unreduced: The same rounds held against the eager model without its reduction.
        start_up: What loading and the first run took, and the memory that they left held; None when
            nothing was timed.
        token_schedule: The number of tokens at each attention.
        recognised: How many of each operation the rewriting found, by its name.
        passes: What each pass over a graph did, in order: its ``stage``, its ``name``, how often it
            ``fired``, and in ``non_matches`` each node that it is for and left, with the reason and
            the line of the model's code.
        stage_seconds: What every stage took, in the order they ran.
        machine: The description of the machine; None where nothing was run.
        runtime: What the artifact was built by; None when it was not built.
        artifact_bytes: The size of the artifact with its weights; None when it was not built.
        bundle: The bundle's folder; None when none was written.
        warnings: What the user should know, a sentence each.
        ladder: Each artifact of a bundle that has several; the rest is of the first.
    """

    target: str
    status: str
    precision: str
    source: ReportedSource
    inputs: str
    samples: int
    fingerprint: Fingerprint | None = None
    constant_inputs: tuple[ConstantInput, ...] = ()
    batches: int = 0
    stages: tuple[StageResult, ...] = ()
    gates: Mapping[str, Gate] = field(default_factory=dict)
    first_failure: str | None = None
    not_run_reason: str | None = None
    accuracy: Accuracy | None = None
    random_ops: RandomOpsReport | None = None
    token_cap: TokenCapReport | None = None
    edges: EdgeReport | None = None
    reduction: ReductionReport | None = None
    tuning: Tuning | None = None
    speed: Speed | None = None
    speed_over_unreduced: Speed | None = None
    start_up: StartUp | None = None
    token_schedule: tuple[int, ...] = ()
    recognised: Mapping[str, int] = field(default_factory=dict)
    passes: tuple[PassReport, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    machine: Machine | None = None
    runtime: RuntimeInfo | None = None
    artifact_bytes: int | None = None
    bundle: str | None = None
    warnings: tuple[str, ...] = ()
    ladder: tuple[RungReport, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, with ``schema_version`` before them.

        Numbers that are not finite become the texts ``NaN``, ``Infinity`` and ``-Infinity``, as
        JSON has no form for them.
        """
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def __repr__(self) -> str:
        """Returns the verdict, what was compiled, how it agrees and how fast it is, in a line."""
        place = f"bundle {self.bundle}" if self.bundle is not None else ""
        return one_line(self.status, _compiled(self), _agreement(self), *_speeds(self), place)

    def _repr_html_(self) -> str:
        """Returns what ``render`` prints as HTML, for a notebook."""
        facts = [*_fact_rows(self), *(("warning", text) for text in self.warnings)]
        if self.bundle is not None:
            facts.append(("bundle", self.bundle))
        headings = ("stage", "output", "largest error", "cosine", "")
        sentence = "; ".join((_compiled(self), _agreement(self), *_speeds(self)))
        return as_html(self.status, sentence, facts, (headings, _stage_rows(self)))

    def write(self, path: Path) -> None:
        """Writes ``to_json`` into a file."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def render(report: Report, console: Console) -> None:
    """Prints the summary: what was compiled, parity stage by stage, speed, where the bundle is."""

    def show(part: Text | Table) -> None:
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text))

    show(_headline(report))
    show(_facts(report))
    if report.stages:
        show(_parity_table(report))
        for line in (*_spread_lines(report), *_tie_lines(report)):
            show(line)
    for line in report.random_ops.lines() if report.random_ops is not None else ():
        show(line)
    if report.first_failure is not None:
        console.print()
        show(_failure(report))
    if report.tuning is not None:
        tuned = _titled_table(f"Token operators: {report.tuning.sentence()}")
        report.tuning.fill(tuned)
        show(tuned)
    for speed in (report.speed, report.speed_over_unreduced):
        if speed is not None:
            show(_speed_table(speed))
    if report.ladder:
        ladder = _titled_table("Artifacts, one for each batch")
        fill_ladder(ladder, report.ladder)
        show(ladder)
    if report.warnings or report.bundle is not None:
        console.print()
    for warning in report.warnings:
        show(Text.assemble(("warning  ", "yellow"), warning))
    if report.bundle is not None:
        show(Text.assemble(("bundle   ", "bold"), report.bundle, _size_note(report)))


def _headline(report: Report) -> Text:
    line = Text.assemble(
        (report.status, _STYLES.get(report.status, "bold")), f"  {_compiled(report)}"
    )
    if report.status == BUILT_NOT_RUN:
        reason = (report.not_run_reason or "nothing here can run it").splitlines()[0].rstrip(".")
        line.append(
            f"\n{reason}. It did not run here; in its place the lowered ONNX passed the gate in "
            "ONNX Runtime."
        )
    return line


def _compiled(report: Report) -> str:
    """Returns the headline: the model, the target and the precision."""
    location = str(report.source.get("location", "the model"))
    return f"{location} → {report.target}, {report.precision}{_ranges(report)}"


def _agreement(report: Report) -> str:
    """Returns how many stages agree with eager, or the first that does not."""
    if report.first_failure is not None:
        return f"{report.first_failure} is the first stage that differs from eager"
    return f"{len(report.stages)} stages agree with eager" if report.stages else ""


def _speeds(report: Report) -> Iterator[str]:
    """Yields how many times as fast as eager it runs."""
    if (speed := report.speed) is None:
        return
    for name, ratio in speed.ratios.items():
        noisy = " (noisy)" if ratio.noisy else ""
        yield f"{name} {ratio.of_medians:.2f} times as fast as {speed.baseline}{noisy}"


def _stage_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Yields how each output of each stage compares with eager."""
    for stage in report.stages:
        verdict = "passed" if stage.passed else "failed"
        for output, found in stage.comparisons.items():
            yield stage.name, output, f"{found.max_abs:.1e}", f"{found.cosine:.6f}", verdict


def _ranges(report: Report) -> str:
    """Returns how int8 found its ranges."""
    found = report.runtime.details.get("quantization") if report.runtime is not None else None
    return f" with {found} ranges" if found else ""


def _facts(report: Report) -> Table:
    """Lists what the numbers below were made from, a row each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _fact_rows(report):
        table.add_row(name, Text(value))
    return table


def _fact_rows(report: Report) -> Iterator[tuple[str, str]]:
    if notes := report.source.get("notes"):
        yield "source", "; ".join(notes)
    yield "inputs", report.inputs
    if report.token_schedule:
        yield "tokens", " ".join(map(str, report.token_schedule))
    if report.recognised:
        yield "found", ", ".join(f"{name} × {n}" for name, n in report.recognised.items())
    if report.reduction is not None:
        yield from report.reduction.rows()
    for line in report.token_cap.lines() if report.token_cap is not None else ():
        yield "token cap", line
    for line in report.edges.lines() if report.edges is not None else ():
        yield "edges", line
    if report.accuracy is not None:
        before, after = report.accuracy.before, report.accuracy.after
        yield (
            "accuracy",
            f"{before:.2%} before, {after:.2%} after ({report.accuracy.samples} labelled samples)",
        )
    if report.runtime is not None:
        yield "runtime", f"{report.runtime.flavour} {report.runtime.version}"
    if report.start_up is not None:
        yield "start", report.start_up.sentence()
    if report.machine is not None:
        yield "machine", _machine_line(report.machine)
    if report.stage_seconds:
        total = sum(report.stage_seconds.values())
        slowest = max(report.stage_seconds, key=lambda name: report.stage_seconds[name])
        share = report.stage_seconds[slowest]
        yield "time", f"{total:.1f} s, of which {slowest} {share:.1f} s"


def _machine_line(machine: Machine) -> str:
    cores = machine["cores"]
    parts = [machine["processor"], f"{cores['usable']} of {cores['logical']} cores"]
    parts += [
        f"{name}: {count} thread{'s' * (count != 1)}" for name, count in machine["threads"].items()
    ]
    return ", ".join(parts)


def _parity_table(report: Report) -> Table:
    noun = "sample" if report.samples == 1 else "samples"
    which = "as it was given" if report.reduction is None else "with its reduction"
    which = which if report.random_ops is None else "without its random numbers"
    title = f"Parity with the model {which}, fp32 eager, {report.samples} {noun}"
    table = _titled_table(title)
    table.add_column("stage", no_wrap=True)
    table.add_column("output", overflow="fold")
    for name in ("max abs", "gate", "of it", "cosine", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for stage in report.stages:
        verdict = Text("passed", "green") if stage.passed else Text("failed", "red")
        if stage.ties is not None:
            verdict.append(", but for ties", "yellow")
        for index, (output, found) in enumerate(stage.comparisons.items()):
            gate = _gates(report, stage).get(output)
            top1 = found.top1_agreement
            most = stage.worst.get(output)
            table.add_row(
                Text("" if index else stage.name),
                Text(output),
                f"{found.max_abs:.1e}",
                "" if gate is None else gate.text.replace(", ", "\n"),
                Text("" if most is None else f"{most.share:.0%}", _outside(most)),
                f"{found.cosine:.6f}",
                "" if top1 is None else f"{top1:.1%}",
                Text("") if index else verdict,
            )
        if not stage.comparisons:
            table.add_row(Text(stage.name), *[""] * 6, verdict)
    return table


def _outside(most: Worst | None) -> str:
    return "red" if most is not None and not most.share <= 1 else ""


def _spread_lines(report: Report) -> Iterator[Text]:
    """Yields the error over the spread where a gate limits it, and the batches outside."""
    for stage in report.stages:
        for output, found in stage.comparisons.items():
            gate = _gates(report, stage).get(output)
            error = None if gate is None else gate.spread_error(found)
            if gate is not None and error is not None:
                between = "samples" if gate.varies else "its values"
                yield Text(
                    f"{output} is off by {error:.3f} of its spread between {between} "
                    f"at {stage.name}"
                )
        if stage.outside:
            yield Text.assemble(
                (f"outside at {stage.name}  ", "yellow"),
                f"{len(stage.outside)} of {report.batches} batches by themselves; the gate is one "
                "of all together",
            )


def _tie_lines(report: Report) -> Iterator[Text]:
    """Yields the near-ties that stages crossed, and why they are no errors."""
    for stage in report.stages:
        if (ties := stage.ties) is None:
            continue
        count, batches = len(ties.batches), report.batches
        if not ties.flips:
            yield Text.assemble(
                (f"ties at {stage.name}  ", "yellow"),
                f"on {count} of {batches} batches {', '.join(ties.decisions)} decided where "
                "rounding could turn the choice: with eager's decisions it agrees.",
            )
            continue
        yield Text.assemble(
            (f"ties at {stage.name}  ", "yellow"),
            f"on {count} of {batches} batches {', '.join(ties.decisions)} decided otherwise than "
            f"eager, where both choices are as good: {ties.margin:.1e} apart, of scores that "
            f"rounding moves by {ties.score_error:.1e} of their scale. With eager's decisions it "
            "agrees.",
        )


def _failure(report: Report) -> Text:
    """Returns which stage failed first, by how much, and the reason of its gate."""
    line = Text.assemble(("first failure  ", "red"), report.first_failure or "")
    for stage in report.stages:
        if stage.name == report.first_failure and stage.detail:
            line.append(f": {stage.detail}")
    failed = next((stage for stage in report.stages if stage.name == report.first_failure), None)
    for output, gate in (report.gates if failed is None else _gates(report, failed)).items():
        allowed = gate.text + ("" if gate.least_cosine else f" of {gate.scale:.3g}")
        said = f"{allowed} ({gate.reason})" if gate.rounding_error is None else gate.reason
        line.append(f"\ngate of {output}: {said}")
    return line


def _gates(report: Report, stage: StageResult) -> Mapping[str, Gate]:
    """Returns the gates of a stage; those of the report where it has none of its own."""
    return stage.gates or report.gates


def _speed_table(speed: Speed) -> Table:
    title = f"Speed over {speed.baseline}, {speed.pairs} interleaved pairs"
    table = _titled_table(title + (" (time limit)" if speed.time_limited else ""))
    table.add_column("", no_wrap=True)
    for heading in ("median ms", "min ms", "speed-up", "95 % interval", "of minima"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, timing in speed.timings.items():
        ratio = speed.ratios.get(name)
        times = f"{timing.median_ms:.2f}", f"{timing.min_ms:.2f}"
        if ratio is None:
            table.add_row(Text(name), *times)
            continue
        interval = f"{ratio.low:.2f} … {ratio.high:.2f}"
        noisy = Text("noisy" if ratio.noisy else "", "yellow")
        table.add_row(
            Text(name), *times, f"{ratio.of_medians:.2f}", interval, f"{ratio.of_minima:.2f}", noisy
        )
    return table


def _titled_table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )


def _size_note(report: Report) -> str:
    if report.artifact_bytes is None:
        return ""
    return f"  (artifact {report.artifact_bytes / 1e6:.1f} MB)"
