"""Defines kinds of attacks: cases given by a seed and a number, and their outcomes.

A kind lies in a module of this folder and names itself ``KIND`` there. Its cases run in a child
process (``child.py``), which opens a bench for one target and then asks it for case after case.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar, Final

from tokexport.runtimes.printable import printable

ROOT: Final = Path(__file__).parents[2]
#: The kinds, each in the module of its name.
NAMES: Final = ("bundles", "nodes", "sources", "kills", "limits")
#: What can become of a case, and what that means. The first two are as it should be.
VERDICTS: Final = {
    "refused": "an error of the project's own, in text that a terminal can show",
    "right": "the answer is the right one, or that of another model that the damage made",
    "wrong": "an answer beyond tolerance, or a damage that nothing noticed",
    "raw": "any other exception, or a message that a terminal would obey",
    "crashed": "the process ended",
    "hung": "it took more than the seconds that a case has",
    "over budget": "it took more memory than an honest run of the same and the spare of its kind",
}
FINE: Final = ("refused", "right")
#: The roots of the project's own errors, by module; one that was not imported raised nothing.
_OWN: Final = {
    "tokexport.runtimes.errors": "RuntimesError",
    "tokexport.graph_passes.errors": "GraphError",
    "tokexport.exporter.errors": "ExporterError",
}
#: Characters of what is kept of a message.
_MOST_SAID: Final = 1500


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Attributes:
        verdict: One of ``VERDICTS``.
        said: The message, or what was wrong.
    """

    verdict: str
    said: str = ""


@dataclass(frozen=True)
class Case:
    """One case, ready to be run.

    Attributes:
        what: What was damaged, or what is done, in a line.
        run: Runs it; an exception that leaves it is judged by ``refusal``.
    """

    what: str
    run: Callable[[], Outcome]


class Bench(ABC):
    """Runs the cases of a kind on one target, in a child process.

    Attributes:
        on: What the cases run on: a runtime and its version, and the instruction set of kernels.
    """

    on: str = ""

    @abstractmethod
    def honest(self) -> None:
        """Runs an honest case: its memory in the second run is the reference for cases."""

    @abstractmethod
    def case(self, seed: int, index: int, place: Path) -> Case:
        """Returns a case.

        Args:
            seed: The seed of the campaign.
            index: The number of the case.
            place: An empty folder for its files; it is removed behind the case.
        """


class Kind(ABC):
    """A kind of attack.

    Attributes:
        name: The name of its module.
        what: What its cases are, a sentence or two for the table.
        planned: How many cases a whole campaign has.
        length: How many cases a line of the results holds; they all have one target.
        seconds: How long a case may take.
        spare_mb: How much more memory it may take than an honest run.
        targets: What cases run on, in turn: those of the first line on the first, and so on.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    planned: ClassVar[int]
    length: ClassVar[int] = 100
    seconds: ClassVar[float] = 10.0
    spare_mb: ClassVar[int] = 200
    targets: ClassVar[tuple[str, ...]]

    def target(self, index: int) -> str:
        """Returns what a case runs on."""
        return self.targets[index // self.length % len(self.targets)]

    def absent(self, target: str) -> str:
        """Returns why a target cannot be run here, a clause; '' where it can."""
        return ""

    def environment(self, target: str) -> dict[str, str]:
        """Returns the variables that a child has beside those of its parent."""
        return {}

    def prepare(self, folder: Path) -> None:
        """Makes what the cases start from, unless the folder has it."""
        return

    @abstractmethod
    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench of a target, in a child process; ``folder`` is what was prepared."""


def kind_named(name: str) -> Kind:
    """Returns the kind of a name."""
    found: Kind = importlib.import_module(f"attacks.{name}").KIND
    return found


def drawn(kind: str, seed: int, index: int) -> Random:
    """Returns the numbers of a case: the same for the same case, on every machine."""
    return Random(f"{seed} {kind} {index}")


def refusal(error: BaseException) -> Outcome:
    """Judges an error: one of the project's own is a clear refusal where its text is printable."""
    said = str(error)
    if not isinstance(error, _own_errors()):
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        place = "".join(f"{Path(one.filename).name}:{one.lineno}: " for one in frame)
        return Outcome("raw", clipped(f"{place}{type(error).__name__}: {said}"))
    if not said.strip():
        return Outcome("raw", f"{type(error).__name__} without a word")
    if printable(said) != said:
        return Outcome("raw", clipped(f"a terminal would obey {type(error).__name__}: {said!r}"))
    return Outcome("refused", clipped(f"{type(error).__name__}: {said}"))


def _own_errors() -> tuple[type[BaseException], ...]:
    modules = {name: sys.modules.get(name) for name in _OWN}
    return tuple(getattr(module, _OWN[name]) for name, module in modules.items() if module)


def clipped(text: str) -> str:
    """Returns a text that a line of the results holds: printable, and not without end."""
    shown = printable(text)
    return shown if len(shown) <= _MOST_SAID else shown[:_MOST_SAID] + " …"
