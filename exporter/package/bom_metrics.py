"""Takes the measured figures for a model card from the report of a compile.

A report of an older version, or one without a measurement, gives those that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokexport.runtimes.bundle.manifest import Manifest

Metric = dict[str, Any]


def metrics_of(report: Mapping[str, Any] | None, manifest: Manifest) -> list[Metric]:
    """Returns the parity, accuracy and latency of an artifact as CycloneDX has metrics.

    Args:
        report: The report; None without one.
        manifest: The manifest of the bundle.
    """
    if report is None:
        return []
    try:
        return [
            *_parity(report, manifest),
            *_accuracy(report, manifest),
            *_speed(report, manifest),
        ]
    except (KeyError, TypeError, AttributeError, OverflowError):  # another version's report
        return []


def _parity(report: Mapping[str, Any], manifest: Manifest) -> Iterator[Metric]:
    """Yields how far the artifact's outputs are from eager's."""
    artifact = [stage for stage in report.get("stages", ()) if stage["name"] == "artifact"]
    for stage in artifact[-1:]:
        for name, found in stage["comparisons"].items():
            of = f"output {name}, batch {manifest.batch}, {report['samples']} samples"
            worst = (stage.get("worst") or {}).get(name)
            if worst is not None:
                yield _metric("largest error as a share of what is allowed", worst["share"], of)
            yield _metric("largest absolute error to eager PyTorch", found["max_abs"], of)
            yield _metric("cosine to eager PyTorch", found["cosine"], of)


def _accuracy(report: Mapping[str, Any], manifest: Manifest) -> Iterator[Metric]:
    found = report.get("accuracy")
    if found is not None:
        of = f"batch {manifest.batch}, {found['samples']} labelled samples"
        yield _metric("top-1 accuracy", found["after"], of)
        yield _metric("top-1 accuracy of the source in eager PyTorch", found["before"], of)


def _speed(report: Mapping[str, Any], manifest: Manifest) -> Iterator[Metric]:
    """Yields the latency of the artifact, and how many times as fast as the baseline it is."""
    speed = report.get("speed")
    if speed is None:
        return
    machine = report["machine"]["processor"]
    for name, timing in speed["timings"].items():
        if not name.startswith(f"{manifest.target} "):  # eager's
            continue
        of = f"{name}, batch {manifest.batch}, {machine}"
        yield _metric("median latency in milliseconds", timing["median_ms"], of)
        ratio = speed["ratios"].get(name)
        if ratio is not None:
            faster = _metric(f"speed-up over {speed['baseline']}", ratio["of_medians"], of)
            ends = {"lowerBound": _text(ratio["low"]), "upperBound": _text(ratio["high"])}
            yield {**faster, "confidenceInterval": ends}


def _metric(kind: str, value: float | str, slice: str) -> Metric:
    return {"type": kind, "value": _text(value), "slice": slice}


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
