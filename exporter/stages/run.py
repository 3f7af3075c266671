"""Holds what the stages of one compile share: their results so far, and the report of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from rich.console import Console

from tokexport.exporter.build.stage_folder import StageFolder
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.capture.fingerprint import Fingerprint
from tokexport.exporter.capture.random_ops_report import RandomOpsReport
from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.edges.edge_report import EdgeReport
from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.class_numbers import read_class_names
from tokexport.exporter.parity.accuracy import Accuracy
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.proof import StageResult
from tokexport.exporter.progress import Checklist
from tokexport.exporter.reduction.reduction_report import ReductionReport
from tokexport.exporter.report.ladder_report import RungReport
from tokexport.exporter.report.report import FAILED, Report
from tokexport.exporter.source import Source
from tokexport.exporter.speed.interleaved import Speed
from tokexport.exporter.speed.start_up import StartUp
from tokexport.exporter.stages.page_record import PageRecord
from tokexport.exporter.system.machine import Machine, describe_machine
from tokexport.exporter.tuning.choices import Tuning
from tokexport.graph_passes.pass_report import PassReport
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import RuntimeInfo


@dataclass
class CompileRecord:
    """The results of a compile so far; ``Report`` documents the fields."""

    inputs: str = ""
    samples: int = 0
    fingerprint: Fingerprint | None = None
    batches: int = 0
    constant_inputs: tuple[ConstantInput, ...] = ()
    random_ops: RandomOpsReport | None = None
    token_cap: TokenCapReport | None = None
    reduction: ReductionReport | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    stages: Sequence[StageResult] = ()
    token_schedule: tuple[int, ...] = ()
    recognised: Mapping[str, int] = field(default_factory=dict)
    passes: tuple[PassReport, ...] = ()
    tuning: Tuning | None = None
    runtime: RuntimeInfo | None = None
    artifact_bytes: int | None = None
    not_run_reason: str | None = None
    accuracy: Accuracy | None = None
    edges: EdgeReport | None = None
    speed: Speed | None = None
    speed_over_unreduced: Speed | None = None
    start_up: StartUp | None = None
    machine: Machine | None = None
    warnings: tuple[str, ...] = ()
    ladder: tuple[RungReport, ...] = ()

    def report(
        self,
        source: Source,
        config: CompileConfig,
        stage_seconds: Mapping[str, float],
        status: str = FAILED,
        bundle: str | None = None,
    ) -> Report:
        """Returns the report of the results so far.

        Args:
            source: The model as it was read.
            config: What was asked for.
            stage_seconds: What every stage took.
            status: How the compile ended.
            bundle: The bundle's folder; None where none was written.
        """
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        failed = next((stage.name for stage in self.stages if not stage.passed), None)
        return Report(
            **known | {"stages": tuple(self.stages)},
            target=config.target,
            status=status,
            precision=config.precision,
            source={
                "kind": source.kind,
                "location": source.location,
                "sha256": source.sha256,
                "notes": list(source.notes),
            },
            first_failure=failed if status == FAILED else None,
            stage_seconds=stage_seconds,
            bundle=bundle,
        )


@dataclass(frozen=True)
class CompileResult:
    """The result of a compile.

    Attributes:
        status: ``PASSED``, or ``BUILT, NOT RUN`` where no device could run the engine here.
        report: Parity stage by stage, speed, and what it was measured on.
        bundle: The folder.
    """

    status: str
    report: Report
    bundle: Path

    def __repr__(self) -> str:
        """Returns the verdict and what comes with it in a line; ``report`` has all of it."""
        return repr(self.report)

    def _repr_html_(self) -> str:
        """Returns the report as a notebook shows it."""
        return self.report._repr_html_()


@dataclass(frozen=True)
class CompileRun:
    """The state that all stages of one compile share.

    Attributes:
        source: The model as it was read.
        config: What was asked for.
        checklist: Shows the stages.
        record: The results so far.
        bundle: The folder that becomes the bundle.
        kept: The folder of kept stages.
        folder: The folder that this artifact and what belongs to it are written into: that of the
            bundle, or of a further artifact one in it.
        page: What a page shows beside the report.
    """

    source: Source
    config: CompileConfig
    checklist: Checklist
    record: CompileRecord
    bundle: BundleWriter
    kept: StageFolder
    folder: Path
    page: PageRecord = field(default_factory=PageRecord)

    def at_batch(self, batch: int | None) -> CompileRun:
        """Returns the state for a further artifact of the same bundle.

        Args:
            batch: How many samples it takes at once.
        """
        name = f"batch-{batch}"
        folder = self.folder / name
        folder.mkdir()
        return replace(
            self,
            config=replace(self.config, batch=batch),
            checklist=Checklist(Console(stderr=True), enabled=False),
            record=CompileRecord(machine=self.record.machine),
            kept=self.kept.within(name),
            folder=folder,
            page=PageRecord(self.page.enabled),
        )

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Shows a stage while it runs."""
        return self.checklist.stage(name)

    def record_passes(self, reports: tuple[PassReport, ...]) -> None:
        """Adds what the passes of a stage did to the record, and to the stages that are kept."""
        self.record.passes += reports
        self.kept.save_passes(self.record.passes)

    def report(self, status: str = FAILED, bundle: str | None = None) -> Report:
        """Returns the report of the results so far; see ``CompileRecord.report``."""
        seconds = self.checklist.seconds
        return self.record.report(self.source, self.config, seconds, status, bundle)


@contextmanager
def compile_run(
    source: Source,
    config: CompileConfig,
    checklist: Checklist,
    page: PageRecord | None = None,
) -> Iterator[CompileRun]:
    """Opens the shared state; attaches the report so far to the error of a failed gate.

    Args:
        source: The model as it was read.
        config: What was asked for.
        checklist: Shows the stages.
        page: Gathers what a page shows; None gathers nothing.

    Raises:
        InputError: The names of the classes cannot be read, which the last stage writes.
    """
    if isinstance(config.labels, Path):
        read_class_names(config.labels)
    machine = describe_machine({"torch": config.threads or torch.get_num_threads()})
    record = CompileRecord(machine=machine)
    with (
        checklist,
        BundleWriter(config.output, config.force) as bundle,
        StageFolder(config) as kept,
    ):
        folder = bundle.path
        run = CompileRun(
            source, config, checklist, record, bundle, kept, folder, page or PageRecord()
        )
        try:
            yield run
        except GateError as error:
            error.report = error.report or run.report()
            raise
