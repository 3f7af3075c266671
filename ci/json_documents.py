"""Names the class behind every JSON file and every command's ``--json``: two tables.

A command that is added gets its schema by a line in ``COMMANDS``; ``python ci/json_schemas.py``
writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.bench.results import Bench
from tokexport.exporter.bench_bundle.results import SCHEMA_VERSION as BENCH_VERSION
from tokexport.exporter.bench_bundle.results import BundleBench
from tokexport.exporter.bisection.result import Bisection
from tokexport.exporter.bundle.classify_pictures import ClassifiedPictures
from tokexport.exporter.bundle.rebuild import BundledRebuild, RebuildResult
from tokexport.exporter.bundle.run_bundle import RunResult
from tokexport.exporter.capture.fingerprint import Fingerprint
from tokexport.exporter.cli.parts.messages import Failure
from tokexport.exporter.comparison import against, compare
from tokexport.exporter.comparison.against import AgainstSource, OutputVerdict
from tokexport.exporter.comparison.compare import ComparedOutputs
from tokexport.exporter.comparison.verdicts import VERDICTS
from tokexport.exporter.config import BundledOptions
from tokexport.exporter.exit_codes import ExitCode
from tokexport.exporter.inspection.inspect import SCHEMA_VERSION as INSPECTION_VERSION
from tokexport.exporter.inspection.inspect import Inspection
from tokexport.exporter.lock.check import OUTCOMES, BundleCheck, CheckResult
from tokexport.exporter.lock.findings import BREAK, DRIFT, Finding
from tokexport.exporter.lock.lock_file import KIND as LOCK_KIND
from tokexport.exporter.lock.lock_file import SCHEMA_VERSION as LOCK_VERSION
from tokexport.exporter.lock.lock_file import Lock
from tokexport.exporter.lock.update import WrittenLock
from tokexport.exporter.package.bom import WrittenBom
from tokexport.exporter.package.formats import FORMATS
from tokexport.exporter.package.result import PackagedBundle
from tokexport.exporter.package.signing import SignedBundle
from tokexport.exporter.parity.gates import BundledGate
from tokexport.exporter.reduction.method_list import MethodList
from tokexport.exporter.reduction.reduced_file import ReducedFile
from tokexport.exporter.reduction.reduction_report import BundledReduction
from tokexport.exporter.report.report import FAILED, Report
from tokexport.exporter.report.report import SCHEMA_VERSION as REPORT_VERSION
from tokexport.exporter.report.tables import Diagnosis, Verification
from tokexport.exporter.report_page.bundle_page import WrittenPage
from tokexport.exporter.report_page.page_data import SCHEMA_VERSION as PAGE_VERSION
from tokexport.exporter.report_page.page_data import PageData
from tokexport.exporter.schemas.stored import SchemaList
from tokexport.exporter.source.options import BundledSource
from tokexport.exporter.sweep.sweep import ACCURACY, COSINE, TOP1, Sweep
from tokexport.exporter.sweep.tables import SCHEMA_VERSION as SWEEP_VERSION
from tokexport.exporter.tuning.choices import BundledForm
from tokexport.runtimes.bundle.class_scores import FORMS, ClassScores
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED, Manifest
from tokexport.runtimes.bundle.manifest import SCHEMA_VERSION as MANIFEST_VERSION
from tokexport.runtimes.pictures.preprocessing import Preprocessing


@dataclass(frozen=True)
class Result:
    """One object that is written.

    Attributes:
        kind: The dataclass or ``TypedDict`` whose fields it has.
        properties: The properties of that class that are written too, before the fields.
        held: The types of the fields of which the class says less, by name.
        judged: Whether it is printed where a gate failed too, with the error in it.
        partly: Whether it is printed where some files cannot be used too, with the error in it.
        files: Whether the files that were written are listed in it.
    """

    kind: type
    properties: tuple[str, ...] = ()
    held: Mapping[str, Any] = field(default_factory=dict)
    judged: bool = False
    partly: bool = False
    files: bool = False


@dataclass(frozen=True)
class Document:
    """A file, or what a command prints under ``--json``.

    Attributes:
        results: What it is, one of these.
        version: Its version; a field that is renamed, dropped or means something else raises it.
        numbered: Whether ``schema_version`` says the version, before the fields.
        finite: Whether all numbers are finite; else those that are not are texts.
        older: Whether files of the same version may lack the fields with a default.
        reports: Whether a failed gate prints the report of a compile in place of the result.
    """

    results: tuple[Result, ...]
    version: int = 1
    numbered: bool = False
    finite: bool = False
    older: bool = False
    reports: bool = False


def one(kind: type, **more: Any) -> Document:
    """Returns the document of a class whose fields are all that is written.

    Args:
        kind: The class.
        more: What else there is to say, as in ``Document``.
    """
    return Document((Result(kind),), **more)


#: What the fields of a manifest hold, of which runtimes know no more than that they are objects.
_BUNDLED: Final[Mapping[str, Any]] = {
    "source": BundledSource,
    "gates": Mapping[str, BundledGate],
    "preprocessing": Preprocessing | None,
    "reduction": BundledReduction | None,
    "forms": Mapping[str, BundledForm] | None,
    "fingerprint": Fingerprint | None,
    "options": BundledOptions | None,
    "rebuilt": BundledRebuild | None,
}

#: The JSON files.
FILES: Final[Mapping[str, Document]] = {
    "report.json": one(Report, version=REPORT_VERSION, numbered=True),
    "page.json": one(PageData, version=PAGE_VERSION, numbered=True),
    "manifest.json": Document(
        (Result(Manifest, held=_BUNDLED),), MANIFEST_VERSION, finite=True, older=True
    ),
    "sweep.json": one(Sweep, version=SWEEP_VERSION, numbered=True),
    "bench.json": one(Bench, version=BENCH_VERSION, numbered=True),
    "bundle-bench.json": one(BundleBench, version=BENCH_VERSION, numbered=True),
    "parity.lock.json": one(Lock, version=LOCK_VERSION),
}

#: What the commands print under ``--json``.
COMMANDS: Final[Mapping[str, Document]] = {
    "compile": Document((Result(Report, judged=True),), REPORT_VERSION, numbered=True),
    "inspect": one(Inspection, version=INSPECTION_VERSION, numbered=True, finite=True),
    "run": Document((Result(RunResult), Result(ClassifiedPictures, partly=True))),
    "verify": Document(
        (
            Result(Verification, judged=True),
            Result(AgainstSource, ("verdict", "why_not", "decision_agreement"), judged=True),
        ),
        reports=True,
    ),
    "rebuild": Document((Result(RebuildResult),)),
    "report": one(WrittenPage),
    "doctor": Document((Result(Diagnosis, judged=True),)),
    "reduce": one(ReducedFile),
    "methods": one(MethodList),
    "sweep": Document((Result(Sweep, files=True),), SWEEP_VERSION, numbered=True, reports=True),
    "bench": Document(
        (Result(Bench, files=True), Result(BundleBench, files=True)), BENCH_VERSION, numbered=True
    ),
    "compare": Document((Result(ComparedOutputs, ("verdict", "tolerance"), judged=True),)),
    "lock": one(WrittenLock),
    "check": Document((Result(CheckResult, ("outcome",), judged=True),)),
    "bisect": Document((Result(Bisection, judged=True),), reports=True),
    "package": one(PackagedBundle),
    "sign": one(SignedBundle),
    "bom": one(WrittenBom),
    "schema": one(SchemaList),
}

_TARGETS: Final = tuple(BACKENDS)
_HASHES: Final = (against.SAME, against.OTHER, against.UNKNOWN)
#: The values that fields may have where their type is a text or a number.
VALUES: Final[Mapping[tuple[type, str], tuple[Any, ...]]] = {
    (Failure, "exit_code"): tuple(int(code) for code in ExitCode if code),
    (ClassScores, "form"): FORMS,
    (ClassifiedPictures, "score"): ("probability", "score"),
    (Report, "target"): _TARGETS,
    (Report, "status"): (PASSED, BUILT_NOT_RUN, FAILED),
    (Manifest, "target"): _TARGETS,
    (Manifest, "status"): (PASSED, BUILT_NOT_RUN),
    (Manifest, "schema_version"): (MANIFEST_VERSION,),
    (Bisection, "target"): _TARGETS,
    (Verification, "status"): (PASSED, FAILED),
    (RebuildResult, "status"): (PASSED, BUILT_NOT_RUN),
    (WrittenPage, "verdict"): (PASSED, BUILT_NOT_RUN, FAILED),
    (Sweep, "target"): _TARGETS,
    (Sweep, "quality"): (ACCURACY, TOP1, COSINE),
    (ComparedOutputs, "verdict"): (compare.IDENTICAL, compare.DIFFERENT),
    (AgainstSource, "verdict"): VERDICTS,
    (OutputVerdict, "verdict"): VERDICTS,
    (AgainstSource, "weights"): _HASHES,
    (AgainstSource, "structure"): _HASHES,
    (Lock, "kind"): (LOCK_KIND,),
    (Lock, "schema_version"): (LOCK_VERSION,),
    (BundleCheck, "outcome"): OUTCOMES,
    (CheckResult, "outcome"): OUTCOMES,
    (PackagedBundle, "format"): tuple(FORMATS),
    (Finding, "kind"): (BREAK, DRIFT),
}
