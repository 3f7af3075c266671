"""Caches the fastest form of an operator, so that a machine measures it once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import UsageError, WriteError
from tokexport.exporter.system.output_file import written_whole
from tokexport.exporter.system.scratch import locked
from tokexport.exporter.tuning.choices import TunedForm

#: Names another folder for the cache.
VARIABLE: Final = "TOKEXPORT_CACHE"
#: The number is that of the layout: ``{environment: {call: TunedForm}}``.
FILE_NAME: Final = "forms-1.json"


class FormCache:
    """The measurements that were made in one environment.

    Args:
        environment: Everything that a measurement depends on beside the call: processor, threads,
            target, versions. What was measured in any other environment is not seen.
        path: The file; the one in the cache folder where it is None.
    """

    def __init__(self, environment: Mapping[str, str | int], path: Path | None = None) -> None:
        self.path = cache_folder() / FILE_NAME if path is None else path
        self.warnings: list[str] = []
        self._key = json.dumps(environment, sort_keys=True, ensure_ascii=False)
        self._new: dict[str, TunedForm] = {}
        self._found = self._read().get(self._key, {})

    def get(self, call: str, candidates: Sequence[str]) -> TunedForm | None:
        """Returns what was measured for a call; None where nothing was.

        Args:
            call: What the call looks like.
            candidates: The forms that there are now, the standard one first.
        """
        if call not in self._found:
            return None
        found = _tuned_form(self._found[call], candidates)
        if found is None:
            self._warn(f"What it holds for {call} is not valid, and was measured anew.")
        return found

    def put(self, call: str, form: TunedForm) -> None:
        """Adds a measurement; ``save`` writes it."""
        self._new[call] = form

    def save(self) -> None:
        """Writes new measurements beside those in the file; warns if it cannot."""
        if not self._new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f"{self.path.name}.lock")):
                self._add_to_file()
        except (OSError, WriteError) as error:
            self._warn(f"It cannot be written, so that the next compile measures anew: {error}")

    def _add_to_file(self) -> None:
        data = self._read()
        data[self._key] = {
            **data.get(self._key, {}),
            **{call: asdict(form) for call, form in self._new.items()},
        }
        with written_whole(self.path, "cache of forms") as partial:
            partial.write_text(
                json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                encoding="utf-8",
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self._warn(f"It cannot be read, and was left aside: {error}")
            return {}
        if not isinstance(data, dict) or not all(isinstance(of, dict) for of in data.values()):
            self._warn("It does not hold forms, and was left aside.")
            return {}
        return data

    def _warn(self, what: str) -> None:
        warning = f"The cache of forms {self.path}: {what}"
        if warning not in self.warnings:
            self.warnings.append(warning)


def cache_folder() -> Path:
    """Returns where the cache lies: ``$TOKEXPORT_CACHE``, or ``tokexport`` in the user's cache.

    Raises:
        UsageError: The user has no home folder, and nothing else is named.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the XDG base directory specification ignores others
        return Path(shared) / "tokexport"
    try:
        return Path.home() / ".cache" / "tokexport"
    except RuntimeError as error:
        raise UsageError(
            "There is no home folder to remember the measured forms in.",
            fix=f"Set {VARIABLE} to a folder.",
        ) from error


def _tuned_form(data: object, candidates: Sequence[str]) -> TunedForm | None:
    """Returns an entry of the file; None where it is damaged or knows other forms."""
    if not isinstance(data, dict):
        return None
    times = data.get("times_us")
    if not isinstance(times, dict) or not {*times} <= {*candidates}:
        return None
    ratios = [data.get(name) for name in ("speedup", "low", "high", "of_minima")]
    numbers = [*ratios, *times.values()]
    if not all(map(_is_ratio, numbers)):
        return None
    form = data.get("form")
    if not isinstance(form, str) or form not in candidates:
        return None
    if data.get("standard") != candidates[0]:
        return None
    speedup, low, high, of_minima = (float(ratio) for ratio in ratios if ratio is not None)
    return TunedForm(form, candidates[0], speedup, low, high, of_minima, times)


def _is_ratio(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return math.isfinite(number) and number > 0
