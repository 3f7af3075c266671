"""Writes what was measured into a lock, and says what changed in a way that can be reviewed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import GateError, UsageError, listed
from tokexport.exporter.json_values import plain
from tokexport.exporter.lock.check import CheckResult, name_of, with_labelled
from tokexport.exporter.lock.findings import BREAK, Finding, findings, text_of
from tokexport.exporter.lock.lock_file import Lock, LockedBundle, Measured
from tokexport.exporter.lock.measure import Measurement, MeasureOptions, measure


@dataclass(frozen=True)
class WrittenLock:
    """A lock that was written.

    Attributes:
        file: Where it is.
        changes: What changed in it, a line for each value; empty where it is new.
        lock: What it holds.
    """

    file: Path
    changes: tuple[str, ...]
    lock: Lock

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        data: dict[str, Any] = plain(self)
        return data


#: Characters of a value that a diff shows.
_SHOWN: Final = 60


def with_bundles(
    lock: Lock,
    path: Path,
    bundles: Mapping[str, Path],
    options: MeasureOptions | None = None,
    *,
    of_a_test: bool = False,
) -> Lock:
    """Measures bundles and adds them to a lock, or another environment to those that it has.

    Args:
        lock: The lock so far.
        path: Its file, which the place of labelled samples is relative to.
        bundles: The folders, by their names in the lock.
        options: What they are run on, and how.
        of_a_test: Whether a test compiled them, so that they have no folder.

    Raises:
        GateError: A bundle leaves its tolerance, or is not the model of its source.
        UsageError: The lock has another bundle of that name.
        tokexport.runtimes.errors.RuntimesError: A bundle is altered, or cannot run here.
    """
    for name, bundle in bundles.items():
        before, asked = lock.bundles.get(name), options or MeasureOptions()
        if before is not None:
            asked = with_labelled(before, path, asked)
        found = measure(bundle, path, asked)
        _require_right(bundle, found)
        if before is not None:
            breaks = [one for one in findings(before, found) if one.kind == BREAK]
            if breaks:
                raise _another(name, path, breaks)
        merged = replace(_merged(before, found), of_a_test=of_a_test)
        lock = replace(lock, bundles={**lock.bundles, name: merged})
    return lock


def updated(lock: Lock, result: CheckResult, *, remove: bool = False) -> Lock:
    """Returns the lock that a check's bundles are unchanged against.

    Args:
        lock: The lock that they were checked against.
        result: The check.
        remove: Whether bundles leave the lock whose folders are gone.

    Raises:
        GateError: A bundle leaves its tolerance, cannot run, or is not the model of its source; or
            its folder is gone, and may not leave.
    """
    bundles = dict(lock.bundles)
    assert result.lock is not None
    for one in result.bundles:
        if remove and not one.bundle.exists() and name_of(one.bundle, result.lock) == one.name:
            del bundles[one.name]
        elif one.measurement is None:
            raise GateError(
                f"The bundle {one.name} cannot be locked: {one.findings[0].sentence}",
                where=str(one.bundle),
                fix="Compile it anew; or take bundles whose folders are gone out of the lock: "
                "--update --remove.",
            )
        elif one.findings or _says_more(lock.bundles[one.name], one.measurement):
            _require_right(one.bundle, one.measurement)
            before = lock.bundles[one.name]
            merged = _merged(before, one.measurement)
            bundles[one.name] = replace(merged, of_a_test=before.of_a_test)
    return replace(lock, bundles=bundles)


def _says_more(locked: LockedBundle, found: Measurement) -> bool:
    """Returns whether a run has labelled samples or a source that the lock has not."""
    ran = found.measured
    if ran is None:
        return False
    own = [one for one in locked.measured if one.environment == ran.environment]
    before = own[0] if own else None
    new_labels = ran.labelled is not None and (before is None or before.labelled is None)
    return new_labels or (ran.source is not None and (before is None or before.source is None))


def differences(before: Lock, after: Lock) -> tuple[str, ...]:
    """Returns what changed between two locks, a line for each value."""
    one, other = (dict(_leaves("", lock.to_json()["bundles"])) for lock in (before, after))
    lines = []
    for place in [*one, *(place for place in other if place not in one)]:
        old, new = one.get(place), other.get(place)
        if old == new:
            continue
        if new is None:
            lines.append(f"- {place}: {old}")
        elif old is None:
            lines.append(f"+ {place}: {new}")
        else:
            lines.append(f"  {place}: {old} → {new}")
    return tuple(lines)


def _merged(before: LockedBundle | None, found: Measurement) -> LockedBundle:
    """Returns a bundle with what was measured here; others' runs of the same artifact stay."""
    runs: tuple[Measured, ...] = ()
    if before is not None and before.facts.artifact == found.facts.artifact:
        runs = before.measured
    if found.measured is not None:
        own = found.measured
        for one in runs:
            if one.environment == own.environment:  # what was not measured anew stays
                labelled = own.labelled or one.labelled
                own = replace(own, labelled=labelled, source=own.source or one.source)
        runs = (*(one for one in runs if one.environment != own.environment), own)
    ordered = sorted(runs, key=lambda one: str(one.environment))
    return LockedBundle(found.facts, tuple(ordered))


def _require_right(bundle: Path, found: Measurement) -> None:
    """Refuses to lock what is wrong."""
    why = [f"output '{name}' {clause}" for name, clause in found.failures.items()]
    ran = found.measured
    if ran is not None and ran.source is not None and ran.source.why_not:
        why.append(ran.source.why_not)
    if why:
        raise GateError(
            f"A bundle that is wrong cannot be locked: {'; '.join(why)}.",
            where=str(bundle),
            fix="Compile it anew, and lock that.",
        )


def _another(name: str, path: Path, breaks: Sequence[Finding]) -> UsageError:
    return UsageError(
        f"The lock has another bundle {name}: {listed([one.what for one in breaks])} differ.",
        where=str(path),
        fix=f"See what differs: tokexport check --lock {shlex.quote(str(path))}; "
        "accept it with --update.",
    )


def _leaves(place: str, data: Any) -> Iterator[tuple[str, str]]:
    """Yields the values of parsed JSON with their places, in order."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from _leaves(f"{place}.{name}" if place else name, value)
    elif isinstance(data, list) and any(isinstance(one, Mapping) for one in data):
        for at, value in enumerate(data):
            yield from _leaves(f"{place}[{_key(value, at)}]", value)
    else:
        text = text_of(data)
        yield place, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _key(value: Any, at: int) -> str:
    """Names an item of a list: a run by its environment, anything else by its place."""
    environment = value.get("environment") if isinstance(value, Mapping) else None
    if environment is None:
        return str(at)
    return " ".join(environment.values())
