"""What the stages of one compile share, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tokexport.exporter.build.stage_folder import StageFolder
from tokexport.exporter.bundle.writer import BundleWriter
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.errors import GateError
from tokexport.exporter.progress import Checklist
from tokexport.exporter.report.report import FAILED, Report
from tokexport.exporter.source import Source
from tokexport.exporter.stages.record import CompileRecord
from tokexport.exporter.system.machine import describe_machine


@dataclass(frozen=True)
class CompileResult:
    """What a compile gave.

    Attributes:
        status: ``PASSED``, or ``BUILT, NOT RUN`` where no device could run the engine here.
        report: Parity stage by stage, speed, and what it was measured on.
        bundle: The folder.
    """

    status: str
    report: Report
    bundle: Path


@dataclass(frozen=True)
class CompileRun:
    """What all stages of one compile share.

    Attributes:
        source: The model as it was read.
        config: What was asked for.
        checklist: Shows the stages.
        record: What is known so far.
        bundle: The folder that becomes the bundle.
        kept: The folder of what the stages leave.
    """

    source: Source
    config: CompileConfig
    checklist: Checklist
    record: CompileRecord
    bundle: BundleWriter
    kept: StageFolder

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Shows a stage while it runs."""
        return self.checklist.stage(name)

    def report(self, status: str = FAILED, bundle: str | None = None) -> Report:
        """Returns the report of what is known; see ``CompileRecord.report``."""
        seconds = self.checklist.seconds
        return self.record.report(self.source, self.config, seconds, status, bundle)


@contextmanager
def compile_run(
    source: Source, config: CompileConfig, checklist: Checklist
) -> Iterator[CompileRun]:
    """Opens what the stages share; a gate that fails takes the report of what is known along."""
    machine = describe_machine({"torch": config.threads or torch.get_num_threads()})
    record = CompileRecord(machine=machine)
    with (
        checklist,
        BundleWriter(config.output, config.force) as bundle,
        StageFolder(config) as kept,
    ):
        run = CompileRun(source, config, checklist, record, bundle, kept)
        try:
            yield run
        except GateError as error:
            error.report = run.report()
            raise
