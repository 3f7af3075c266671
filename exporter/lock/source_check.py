"""Holds a bundle of a lock to its source; needs torch."""

from __future__ import annotations

import re
from pathlib import Path

from tokexport.exporter.comparison.against import verify_against
from tokexport.exporter.comparison.verdicts import WRONG
from tokexport.exporter.errors import OtherModelError
from tokexport.exporter.lock.lock_file import HeldToSource
from tokexport.exporter.progress import Checklist
from tokexport.exporter.source import SourceOptions, load_source
from tokexport.exporter.source.code_path import on_code_path


def hold_to_source(
    bundle: Path,
    *,
    source: SourceOptions,
    threads: int | None = None,
    progress: Checklist | None = None,
) -> HeldToSource:
    """Compares a bundle with a source, as ``verify --against`` does.

    Args:
        bundle: The folder that compile wrote.
        source: Names the model; it is loaded anew for each bundle.
        threads: The most threads of eager and the runtime.
        progress: Shows the stages; silent without one.
    """
    with on_code_path(source.code_path):
        model = load_source(source)
        try:
            found = verify_against(bundle, model, threads=threads, progress=progress)
        except OtherModelError as error:
            why_not = f"{error.what} {error.where}".rstrip(".")
            return HeldToSource(WRONG, {}, 0, why_not=why_not)
    return HeldToSource(
        verdict=found.verdict,
        outputs={name: one.verdict for name, one in found.outputs.items()},
        ties=found.ties,
        decision_agreement=found.decision_agreement,
        why_not=found.why_not,
        line=_place(next((one.line for one in found.decisions if not one.explained), "")),
    )


def _place(line: str) -> str:
    """Returns ``file:line`` of a user's line, which says the function behind it."""
    match = re.match(r"(.+:\d+)", line)
    return match[1] if match else ""
