"""Holds cases with known outcomes, with which tests check the child process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, NoReturn

from attacks.kinds import Bench, Case, Kind, Outcome


def _abort() -> NoReturn:
    os.abort()


def _sleep() -> Outcome:
    time.sleep(600)
    return Outcome("right")


def _leave() -> NoReturn:
    raise SystemExit(3)


def _write_too_much() -> Outcome:
    return Outcome("right", str(len(bytearray(os.urandom(1 << 20) * 300))))


def _write_without_end() -> Outcome:
    kept = []
    while True:
        kept.append(os.urandom(1 << 20) * 16)
        time.sleep(0.01)


def _fail() -> NoReturn:
    raise ValueError("a sentence that is no error of the project")


def _refuse() -> NoReturn:
    from tokexport.runtimes.errors import BundleError

    raise BundleError("The bundle is none.")


def _obey() -> NoReturn:
    from tokexport.runtimes.errors import BundleError

    class Obeyed(BundleError):
        def __str__(self) -> str:
            return "The bundle is \x1b[2J."

    raise Obeyed("")


#: What a case does, and the verdict that it has to have.
ENDS: Final[tuple[tuple[Callable[[], Outcome], str], ...]] = (
    (lambda: Outcome("right"), "right"),
    (_abort, "crashed"),
    (_refuse, "refused"),
    (_sleep, "hung"),
    (_fail, "raw"),
    (_write_too_much, "over budget"),
    (_obey, "raw"),
    (_write_without_end, "over budget"),
    (_leave, "raw"),
    (lambda: Outcome("wrong", "it said so"), "wrong"),
)


class KnownEnds(Kind):
    """Cases whose end is known."""

    name: ClassVar[str] = "known_ends"
    what: ClassVar[str] = "Cases whose end is known."
    planned: ClassVar[int] = len(ENDS)
    seconds: ClassVar[float] = 2.0
    targets: ClassVar[tuple[str, ...]] = ("itself",)

    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench."""
        return _Bench()


class _Bench(Bench):
    on = "python"

    def honest(self) -> None:
        """Does nothing."""

    def case(self, seed: int, index: int, place: Path) -> Case:
        """Returns the case of a number."""
        return Case(f"case {index} in {sorted(place.iterdir())}", ENDS[index][0])


KIND: Final = KnownEnds()
