"""Puts one artifact, or those for several batches, into a bundle, with reports and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokexport.exporter.bundle.ladder import hold_ladder, joined, move_rung, rung_name
from tokexport.exporter.report.file_names import REPORT_NAME
from tokexport.exporter.report.ladder_report import RungReport
from tokexport.exporter.report_page.bundle_page import missing_packages, write_results
from tokexport.exporter.shared_weights.onnx_files import share_onnx_weights
from tokexport.exporter.stages.run import CompileResult, CompileRun
from tokexport.runtimes.bundle.manifest import PASSED, Manifest


@dataclass(frozen=True)
class Described:
    """An artifact that was proven and described, in a folder of its own.

    Attributes:
        run: The state of its compile.
        manifest: Its manifest.
    """

    run: CompileRun
    manifest: Manifest


def bundle(described: Sequence[Described]) -> CompileResult:
    """Writes reports and manifest, and puts the bundle in place.

    Args:
        described: Each artifact; the first is in the folder of the bundle.

    Raises:
        ModelNotSupportedError: The model for one batch is another one than for the next.
        GateError: What is answered depends on how samples are split over the artifacts.
        WriteError: The bundle cannot be written.
    """
    run, manifest = described[0].run, described[0].manifest
    with run.stage("bundle"):
        if len(described) > 1:
            manifest = _join(described)
        record = run.record
        if run.page.enabled and (left_out := missing_packages()):
            record.warnings += (left_out,)
        report = run.report(manifest.status, str(run.config.output))
        if run.page.enabled:
            write_results(run.folder, report, run.page.data(), manifest)
        else:
            report.write(run.folder / REPORT_NAME)
        return CompileResult(manifest.status, report, run.bundle.commit(manifest))


def _join(described: Sequence[Described]) -> Manifest:
    """Brings the artifacts into one folder, compares them there, and returns their manifest."""
    first, *others = described
    folder, backend = first.run.folder, first.run.config.backend
    manifest = joined([one.manifest for one in described])
    for one in others:
        one.run.report(one.manifest.status).write(one.run.folder / REPORT_NAME)
    rungs = list(zip(others, manifest.rungs, strict=True))
    backend.place_ladder(
        {folder / manifest.artifact: folder / manifest.artifact}
        | {one.run.folder / one.manifest.artifact: folder / rung.artifact for one, rung in rungs}
    )
    if manifest.kept_onnx is not None:
        share_onnx_weights(
            {folder / manifest.kept_onnx: folder / manifest.kept_onnx}
            | {
                one.run.folder / str(one.manifest.kept_onnx): folder / str(rung.kept_onnx)
                for one, rung in rungs
            }
        )
    for one, rung in rungs:
        kept = {
            one.manifest.reference: rung.reference,
            REPORT_NAME: rung_name(REPORT_NAME, one.manifest.batch),
        }
        move_rung(one.run.folder, folder, kept)
    first.run.record.ladder = tuple(
        RungReport(
            batch=one.batch,
            artifact=one.artifact,
            artifact_bytes=(folder / one.artifact).stat().st_size,
            latency_ms=one.latency_ms,
            report=REPORT_NAME if place == 0 else rung_name(REPORT_NAME, one.batch),
        )
        for place, one in enumerate(manifest.ladder)
    )
    if manifest.status == PASSED:
        whole = replace(manifest, files={path.name: "" for path in folder.iterdir()})
        splits = hold_ladder(folder, whole, first.run.config.threads)
        manifest = replace(manifest, samples_independent=splits)
    for one in others:
        said = (f"Batch {one.manifest.batch}: {text}" for text in one.run.record.warnings)
        first.run.record.warnings += tuple(said)
    return manifest
