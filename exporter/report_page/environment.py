"""Fills the sections of what was used, and of what the words of a page mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tokexport.exporter.report_page.page import Details, Facts, Section, Table

_WORDS: Final = (
    ("artifact", "The file that the runtime loads: what ships."),
    ("bundle", "The folder with the artifact, its reference data and this page."),
    ("eager", "Your model as PyTorch runs it, line by line."),
    ("gate", "How far an output may be from PyTorch's before the compile fails."),
    (
        "near-tie",
        "Two tokens whose scores are equal up to rounding: either may be merged, and neither "
        "choice is wrong.",
    ),
    ("patch, token", "A square of the picture, and what the model makes of one or several."),
    ("scale", "The largest magnitude of an output, to which errors are compared."),
    ("stage", "A form that the model has on its way to the artifact."),
)


def environment_section(
    report: Mapping[str, Any], manifest: Mapping[str, Any] | None
) -> Section | None:
    """Returns the machine, the versions, the hashes, and what every stage took.

    Args:
        report: ``report.json``.
        manifest: ``manifest.json``; None without a bundle.
    """
    rows = tuple((name, value) for name, value in _rows(report, manifest) if value)
    parts: list[Any] = [Facts(rows)]
    if packages := report["machine"].get("packages"):
        parts.append(Details("Versions", (Facts(tuple(packages.items())),)))
    if manifest and manifest.get("files"):
        parts.append(
            Details(
                "SHA-256 of every file of the bundle",
                (Table(("file", "SHA-256"), tuple(manifest["files"].items()), code=("SHA-256",)),),
            )
        )
    if seconds := report["stage_seconds"]:
        taken = tuple((name, f"{float(one):.2f} s") for name, one in seconds.items())
        whole = f"Time of the compile, {sum(seconds.values()):.1f} s"
        parts.append(Details(whole, (Facts(taken),)))
    return Section("What was used", tuple(parts))


def glossary_section() -> Section:
    """Returns what the words of a page mean."""
    return Section("Words on this page", (Facts(_WORDS),))


def _rows(
    report: Mapping[str, Any], manifest: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    source, machine = report["source"], report["machine"]
    yield "model", f"{source.get('location', '')} ({source.get('kind', '')})"
    yield "model's SHA-256", str(source.get("sha256") or "")
    yield "notes", "; ".join(map(str, source.get("notes") or ()))
    if fingerprint := report["fingerprint"]:
        yield "weights' SHA-256", fingerprint["weights_sha256"]
        yield "graph's SHA-256", f"{fingerprint['structure_sha256']} (torch {fingerprint['torch']})"
    yield "inputs", report["inputs"]
    if manifest and manifest.get("preprocessing"):
        yield "preprocessing", _said(manifest["preprocessing"])
    if runtime := report["runtime"]:
        kernels = runtime["details"].get("kernels")
        yield "runtime", f"{runtime['flavour']} {runtime['version']}"
        yield "native kernels", str(kernels or "none")
    cores = machine.get("cores")
    used = f", {cores['usable']} of {cores['logical']} cores" if cores else ""
    yield "machine", f"{machine.get('processor', 'unknown processor')}{used}"
    yield "system", f"{machine.get('system', '')}, Python {machine.get('python', '')}"
    yield "tokexport", str((machine.get("packages") or {}).get("tokexport", ""))
    yield "bundle", str(report["bundle"] or "")


def _said(steps: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in steps.items() if value is not None)
