"""Checks bundles against a lock, each by itself: unchanged, drift or break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from os.path import relpath
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import GateError, UsageError, listed
from tokexport.exporter.json_values import plain
from tokexport.exporter.lock.findings import BREAK, DRIFT, Finding, findings
from tokexport.exporter.lock.lock_file import Lock, LockedBundle
from tokexport.exporter.lock.measure import Measurement, MeasureOptions, measure
from tokexport.runtimes.errors import BuildError, BundleError, RunError

UNCHANGED: Final = "unchanged"
#: The outcomes, from the best to the worst.
OUTCOMES: Final = (UNCHANGED, DRIFT, BREAK)


@dataclass(frozen=True)
class BundleCheck:
    """How a bundle stands to its lock.

    Attributes:
        name: Its name in the lock.
        bundle: The folder that was checked.
        target: What the lock says it was compiled for.
        precision: What the lock says it computes in.
        findings: In what it differs, breaks first; empty where it is unchanged.
        measurement: What it is and how it did here; None where it could not be read or run.
    """

    name: str
    bundle: Path
    target: str
    precision: str
    findings: tuple[Finding, ...]
    measurement: Measurement | None = field(default=None, metadata={"report": False})

    @property
    def outcome(self) -> str:
        """``unchanged``, ``drift`` or ``break``."""
        return worst_of(one.kind for one in self.findings)

    @property
    def item_name(self) -> str:
        """The name of its test: ``vit-ort[ort-fp32]``."""
        return f"{self.name}[{self.target}-{self.precision}]"

    def sentences(self) -> str:
        """Returns the findings, a line each."""
        return "\n".join(map(str, self.findings))

    def fails(self, strict: bool) -> bool:
        """Returns whether it fails: a break, and under ``strict`` a drift."""
        return self.outcome == BREAK or (strict and self.outcome == DRIFT)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values: the attributes, the outcome, and how it did here."""
        ran = None if self.measurement is None else self.measurement.measured
        return {"outcome": self.outcome, **plain(self), "measured": plain(ran)}


@dataclass(frozen=True)
class CheckResult:
    """How bundles stand to a lock.

    Attributes:
        lock: The file.
        bundles: The bundles, in the order of the lock.
        strict: Whether a drift fails too.
    """

    lock: Path
    bundles: tuple[BundleCheck, ...]
    strict: bool = False

    @property
    def outcome(self) -> str:
        """The worst outcome of a bundle."""
        return worst_of(one.outcome for one in self.bundles)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values: the outcome, the lock and every bundle."""
        return {
            "outcome": self.outcome,
            "lock": str(self.lock),
            "strict": self.strict,
            "bundles": [one.to_json() for one in self.bundles],
        }

    def failed(self) -> GateError | None:
        """Returns the error that names what broke, or under ``strict`` drifted; None otherwise."""
        kinds = {BREAK, DRIFT} if self.strict else {BREAK}
        found = [
            f"{one.name}: {finding.sentence}"
            for one in self.bundles
            for finding in one.findings
            if finding.kind in kinds
        ]
        if not found:
            return None
        return GateError(
            f"The bundles are not what was locked. {listed(found, 4)}",
            where=str(self.lock),
            fix="Compile the model that was locked; or accept the change: tokexport check "
            f"--lock {self.lock} --update, and review the diff.",
        )


def worst_of(outcomes: Iterator[str]) -> str:
    """Returns the worst of some outcomes; ``unchanged`` without any."""
    return max(outcomes, key=OUTCOMES.index, default=UNCHANGED)


def check_bundles(
    lock: Lock,
    path: Path,
    bundles: Sequence[Path] = (),
    options: MeasureOptions | None = None,
    *,
    strict: bool = False,
) -> CheckResult:
    """Checks bundles against a lock.

    Args:
        lock: What they are held to.
        path: Its file, which the names of bundles are relative to.
        bundles: The folders; without any, those that the lock names.
        options: What they are run on, and how.
        strict: Whether a drift fails too.

    Raises:
        UsageError: The lock has no bundle of a folder's name.
        InputError: The labelled samples do not fit.
        tokexport.runtimes.errors.RuntimeMissingError: A runtime is not installed.
    """
    asked = options or MeasureOptions()
    named = {locked_name(lock, path, bundle): bundle for bundle in bundles}
    if not bundles:
        named = {name: path.parent / name for name in lock.bundles}
    checks = (check_bundle(name, lock.bundles[name], named[name], path, asked) for name in named)
    return CheckResult(path, tuple(checks), strict)


def check_bundle(
    name: str, locked: LockedBundle, bundle: Path, path: Path, options: MeasureOptions
) -> BundleCheck:
    """Checks one bundle.

    Args:
        name: Its name in the lock.
        locked: What the lock has of it.
        bundle: Its folder.
        path: The file of the lock.
        options: What it is run on, and how.
    """
    facts = locked.facts
    checked = BundleCheck(name, bundle, facts.target, facts.precision, ())
    try:
        found = measure(bundle, path, _with_labelled(locked, path, options))
    except (BundleError, BuildError, RunError) as error:
        said = " ".join(part for part in (error.what, error.where) if part)
        broken = Finding(BREAK, "bundle", "whole, and runs", type(error).__name__, said)
        return replace(checked, findings=(broken,))
    return replace(checked, findings=findings(locked, found), measurement=found)


def _with_labelled(locked: LockedBundle, path: Path, options: MeasureOptions) -> MeasureOptions:
    """Adds the labelled samples that the lock names, where no others are given."""
    named = next((one.labelled for one in locked.measured if one.labelled is not None), None)
    if options.inputs is not None or named is None:
        return options
    inputs = path.parent / named.path
    if not inputs.exists():
        raise UsageError(
            "The labelled samples of the lock are not there.",
            where=str(inputs),
            fix="Put them there, or name them: --inputs FILE.",
        )
    return replace(options, inputs=inputs, samples=options.samples or named.samples)


def locked_name(lock: Lock, path: Path, bundle: Path) -> str:
    """Returns the name that a lock has for a folder: by its place, else by its last part.

    Raises:
        UsageError: It has none, or several of that last part.
    """
    name = name_of(bundle, path)
    if name in lock.bundles:
        return name
    alike = [one for one in lock.bundles if Path(one).name == bundle.resolve().name]
    if len(alike) == 1:
        return alike[0]
    what = "has several bundles" if alike else "has no bundle"
    raise UsageError(
        f"The lock {what} of the name {bundle.resolve().name!r}.",
        where=f"{path}: {listed(sorted(lock.bundles))}",
        fix=f"Add it: tokexport lock {bundle} --file {path}",
    )


def name_of(bundle: Path, path: Path) -> str:
    """Returns the name of a bundle in a lock: its folder, relative to that of the lock."""
    return Path(relpath(bundle.resolve(), path.resolve().parent)).as_posix()
