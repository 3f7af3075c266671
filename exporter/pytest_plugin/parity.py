"""Gives tests what the fixture ``parity`` is: a compile that is proven, and may be locked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokexport.exporter.errors import UsageError
from tokexport.exporter.lock.check import CheckResult, check_bundle
from tokexport.exporter.lock.lock_file import Lock, read_lock
from tokexport.exporter.lock.measure import MeasureOptions
from tokexport.exporter.lock.update import updated, with_bundles
from tokexport.exporter.pytest_plugin.outcomes import judge
from tokexport.runtimes.signatures import held_to

if TYPE_CHECKING:
    from torch import nn

    from tokexport.exporter.compile import CompileResult


@dataclass(frozen=True)
class Parity:
    """Compiles models for one target and precision.

    Attributes:
        folder: Where bundles go.
        options: The options of ``tokexport.compile``, the target among them.
        lock: The lock that the bundle is held to; None without one.
        name: The bundle's name in it: that of the test; a second one of the test has a number.
        update: Whether the lock is written in place of being held to.
        strict: Whether a drift fails too.
        made: The bundles so far.
    """

    folder: Path
    options: Mapping[str, Any]
    lock: Path | None
    name: str
    update: bool
    strict: bool
    made: list[Path] = field(default_factory=list)

    def __call__(
        self, model: nn.Module, example_inputs: Any = None, **options: Any
    ) -> CompileResult:
        """Compiles a model, proves it against eager, and holds it to the lock.

        Args:
            model: The module, as ``tokexport.compile`` takes it.
            example_inputs: Its inputs.
            options: More options of ``tokexport.compile``; they go before those of the marker.

        Raises:
            GateError: It does not agree with eager.
            ParityBreak: It is not what was locked.
            UsageError: The lock does not have it yet.
        """
        import tokexport

        output = self.folder / f"bundle-{len(self.made)}"
        asked = {"timed": False, "output": output, **self.options, **options}
        result = tokexport.compile(model, example_inputs, **asked)
        self.made.append(result.bundle)
        if self.lock is not None:
            with held_to(None):  # a bundle of its own
                self._hold(self.lock, result.bundle)
        return result

    def _hold(self, path: Path, bundle: Path) -> None:
        """Holds a bundle to the lock, or writes it there."""
        lock = read_lock(path) if path.exists() or not self.update else Lock()
        options, count = MeasureOptions(), len(self.made)
        name = self.name if count == 1 else f"{self.name}#{count}"
        if name not in lock.bundles:
            if not self.update:
                raise UsageError(
                    f"The lock has no bundle of the name {name!r}.",
                    where=str(path),
                    fix="Write it there: pytest --tokexport-update, and review the diff.",
                )
            with_bundles(lock, path, {name: bundle}, options, of_a_test=True).write(path)
            return
        found = check_bundle(name, lock.bundles[name], bundle, path, options)
        if self.update:
            updated(lock, CheckResult(path, (found,))).write(path)
        else:
            judge(found, self.strict)
