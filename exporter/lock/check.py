"""Checks bundles against a lock, each by itself: unchanged, drift or break."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from os.path import relpath
from pathlib import Path
from typing import Any, Final, Self

from tokexport.exporter.errors import GateError, UsageError, listed
from tokexport.exporter.json_values import plain
from tokexport.exporter.lock.findings import BREAK, DRIFT, Finding, findings
from tokexport.exporter.lock.lock_file import Lock, LockedBundle, Measured
from tokexport.exporter.lock.measure import Measurement, MeasureOptions, measure
from tokexport.exporter.lock.remedies import remedy
from tokexport.exporter.speed.paired_bundles import PairedSpeed
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
        outcome: ``unchanged``, ``drift`` or ``break``.
        findings: In what it differs, breaks first; empty where it is unchanged.
        measured: How it did here; None where it did not run.
        measurement: What it is, and how it did; None where it could not be read or run.
    """

    name: str
    bundle: Path
    target: str
    precision: str
    outcome: str
    findings: tuple[Finding, ...]
    measured: Measured | None
    measurement: Measurement | None = field(default=None, metadata={"report": False})

    @classmethod
    def of(
        cls,
        name: str,
        bundle: Path,
        locked: LockedBundle,
        findings: tuple[Finding, ...],
        measurement: Measurement | None = None,
    ) -> Self:
        """Returns the check of a bundle in which so much was found."""
        facts = locked.facts
        outcome = worst_of(one.kind for one in findings)
        ran = None if measurement is None else measurement.measured
        found = (outcome, findings, ran, measurement)
        return cls(name, bundle, facts.target, facts.precision, *found)

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


@dataclass(frozen=True)
class CheckResult:
    """How bundles stand to a lock, and one of them to the speed of an old one.

    Attributes:
        lock: The file; None where only the speed was asked for.
        bundles: The bundles, in the order of the lock.
        strict: Whether a drift fails too.
        changes: What ``--update`` changed in the lock, a line for each value.
        speed: Whether a bundle is slower than an old one; None where none was named.
    """

    lock: Path | None
    bundles: tuple[BundleCheck, ...]
    strict: bool = False
    changes: tuple[str, ...] = ()
    speed: PairedSpeed | None = None

    @property
    def outcome(self) -> str:
        """The worst outcome of a bundle; ``break`` where one is slower."""
        slower = self.speed is not None and self.speed.failed() is not None
        return BREAK if slower else worst_of(one.outcome for one in self.bundles)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, and the outcome."""
        data: dict[str, Any] = plain(self)
        return {"outcome": self.outcome, **data}

    def failed(self) -> GateError | None:
        """Returns the error that names what broke or is slower; None otherwise.

        Under ``strict`` it names what drifted, too.
        """
        kinds = {BREAK, DRIFT} if self.strict else {BREAK}
        found = [
            (one.name, finding)
            for one in self.bundles
            for finding in one.findings
            if finding.kind in kinds
        ]
        if not found:
            return None if self.speed is None else self.speed.failed()
        said = [f"{name}: {finding.sentence}" for name, finding in found]
        return GateError(
            f"The bundles are not what was locked. {listed(said, 4)}",
            where=str(self.lock),
            fix=remedy(found[0][1]),
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
        UsageError: The lock has no bundle, or none of a folder's name.
        InputError: The labelled samples do not fit.
        tokexport.runtimes.errors.RuntimeMissingError: A runtime is not installed.
    """
    asked = options or MeasureOptions()
    named = {locked_name(lock, path, bundle): bundle for bundle in bundles}
    if not bundles:
        named = folders_of(lock, path)
    if not named:
        raise UsageError(
            "The lock has no bundle in a folder, so there is nothing to check.",
            where=str(path),
            fix=f"Add bundles: tokexport lock BUNDLE --file {shlex.quote(str(path))}",
        )
    checks = (check_bundle(name, lock.bundles[name], named[name], path, asked) for name in named)
    return CheckResult(path, tuple(checks), strict)


def folders_of(lock: Lock, path: Path) -> dict[str, Path]:
    """Returns the folder of each bundle of a lock by its name; those of tests have none.

    Args:
        lock: The lock.
        path: Its file, which the names of bundles are relative to.
    """
    return {name: path.parent / name for name, one in lock.bundles.items() if not one.of_a_test}


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
    try:
        found = measure(bundle, path, with_labelled(locked, path, options))
    except (BundleError, BuildError, RunError) as error:
        said = " ".join(part for part in (error.what, error.where) if part)
        broken = Finding(BREAK, "bundle", "whole, and runs", type(error).__name__, said)
        return BundleCheck.of(name, bundle, locked, (broken,))
    return BundleCheck.of(name, bundle, locked, findings(locked, found), found)


def with_labelled(locked: LockedBundle, path: Path, options: MeasureOptions) -> MeasureOptions:
    """Adds the labelled samples that the lock names, where no others are given.

    Args:
        locked: What the lock has of a bundle.
        path: The file of the lock.
        options: What was asked for.

    Raises:
        UsageError: They are not there.
    """
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
    last = bundle.resolve().name
    alike = [one for one in lock.bundles if Path(one).name == last]
    if len(alike) == 1:
        return alike[0]
    raise UsageError(
        f"The lock has {'several bundles' if alike else 'no bundle'} of the name {last!r}.",
        where=f"{path}: {listed(sorted(alike or lock.bundles))}",
        fix="Check it where the lock has it."
        if alike
        else f"Add it: tokexport lock {shlex.join((str(bundle), '--file', str(path)))}",
    )


def name_of(bundle: Path, path: Path) -> str:
    """Returns the name of a bundle in a lock: its folder, relative to that of the lock."""
    return Path(relpath(bundle.resolve(), path.resolve().parent)).as_posix()
