"""Collects a lock: an item for each bundle in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tokexport.exporter.errors import ExporterError
from tokexport.exporter.lock.lock_file import DEFAULT_NAME, KIND, LockedBundle, read_lock
from tokexport.runtimes.errors import RuntimesError

#: Bytes at the head of a file in which a lock says that it is one.
_HEAD: Final = 4096


def holds_lock(path: Path) -> bool:
    """Returns whether a file is a lock, or was one before it was damaged."""
    if path.name == DEFAULT_NAME:
        return True
    try:
        with path.open("rb") as file:
            return KIND.encode() in file.read(_HEAD)
    except OSError:
        return False


class LockFile(pytest.File):
    """A lock, whose bundles are its items."""

    def collect(self) -> Iterator[LockItem]:
        """Yields an item for each bundle.

        Raises:
            pytest.Collector.CollectError: The lock cannot be read.
        """
        try:
            lock = read_lock(self.path)
        except ExporterError as error:
            raise self.CollectError(str(error)) from error
        for name, locked in lock.bundles.items():
            if locked.of_a_test:  # its test holds it
                continue
            facts = locked.facts
            item = f"{name}[{facts.target}-{facts.precision}]"
            yield LockItem.from_parent(self, name=item, bundle=name, locked=locked)


class LockItem(pytest.Item):
    """A bundle that is held to its lock.

    Args:
        bundle: Its name in the lock.
        locked: What the lock has of it.
        given: What pytest gives an item.
    """

    def __init__(self, *, bundle: str, locked: LockedBundle, **given: Any) -> None:
        super().__init__(**given)
        self._bundle, self._locked = bundle, locked

    def runtest(self) -> None:
        """Checks the bundle; with ``--tokexport-update`` writes what it is into the lock."""
        from tokexport.exporter.lock.check import CheckResult, check_bundle
        from tokexport.exporter.lock.measure import MeasureOptions
        from tokexport.exporter.lock.update import updated
        from tokexport.exporter.pytest_plugin.outcomes import judge

        folder = self.path.parent / self._bundle
        found = check_bundle(self._bundle, self._locked, folder, self.path, MeasureOptions())
        self.user_properties.append(("tokexport_outcome", found.outcome))
        if found.measured is not None:
            where = str(found.measured.environment)
            self.user_properties.append(("tokexport_environment", where))
        if self.config.getoption("--tokexport-update"):
            lock = read_lock(self.path)
            updated(lock, CheckResult(self.path, (found,))).write(self.path)
            return
        judge(found, self.config.getoption("--tokexport-strict"))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """Returns what is wrong, without a traceback where it is no bug."""
        from tokexport.exporter.pytest_plugin.outcomes import ParityBreak

        if isinstance(excinfo.value, ParityBreak):
            return f"{self.name} is not what was locked in {self.path.name}.\n{excinfo.value}"
        if isinstance(excinfo.value, ExporterError | RuntimesError):
            return f"{self.name} cannot be checked.\n{excinfo.value}"
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[os.PathLike[str], int | None, str]:
        """Returns where the item stands, for the head of a failure."""
        return self.path, None, self.name
