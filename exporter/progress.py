"""Shows a checklist of stages with their seconds, which are recorded also when quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Final, Self, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
#: After how many items the time left is shown: the first takes longer than others.
_PASSED_FIRST: Final = 3


class _State(Enum):
    """A stage's state: its mark in Unicode, its mark in ASCII, its style."""

    RUNNING = ("", "", "cyan")
    DONE = ("✓", "+", "green")
    FAILED = ("✗", "x", "red")
    STOPPED = ("■", "-", "yellow")


@dataclass
class _Count:
    """The number of items that a stage has done; ``since`` is when the first was done."""

    all: int
    done: int = 0
    since: float = 0.0

    def add(self, now: float) -> None:
        """Counts one more."""
        self.done += 1
        if self.done == 1:
            self.since = now

    def text(self, now: float) -> str:
        """Returns how many are done and how long the others will take; '' before that is known."""
        if not _PASSED_FIRST <= self.done < self.all:
            return ""
        left = (now - self.since) / (self.done - 1) * (self.all - self.done)
        duration = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        return f"  {self.done} of {self.all}, about {duration} left"


@dataclass
class _Stage:
    """One row; the seconds are those before ``begun``, which is None while its time stands."""

    name: str
    state: _State = _State.RUNNING
    seconds: float = 0.0
    begun: float | None = None
    count: _Count | None = None

    def begin(self, now: float) -> None:
        """Resumes its time."""
        self.state, self.begun = _State.RUNNING, now

    def pause(self, now: float) -> None:
        """Pauses its time."""
        self.seconds, self.begun = self.seconds_at(now), None

    def seconds_at(self, now: float) -> float:
        """Returns its seconds so far."""
        begun = self.begun
        return self.seconds + (0.0 if begun is None else now - begun)


class Checklist:
    """Shows the stages as they run, one row each, and records their seconds.

    Rows are drawn only when ``enabled`` and when the console is a terminal. A failed stage keeps
    its row, marked failed; one that Ctrl-C ended is marked stopped; the cursor comes back in every
    case. Exceptions pass through unchanged.

    A stage begun within another takes its time from it, so the seconds of all stages add up to the
    time that passed.

    Args:
        console: Where the rows go; stderr leaves stdout to the result.
        enabled: False under ``--json``.
        clock: Returns seconds.
    """

    def __init__(
        self,
        console: Console,
        enabled: bool = True,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._console = console
        self._shown = enabled and console.is_terminal and not console.is_dumb_terminal
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._open: list[_Stage] = []
        self._stack = ExitStack()
        self._spinner = Spinner("line" if console.options.ascii_only else "dots", style="cyan")

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of every stage begun so far, in the order they were begun."""
        now = self._clock()
        return {name: stage.seconds_at(now) for name, stage in self._stages.items()}

    def __enter__(self) -> Self:
        """Begins to draw."""
        if self._shown:
            self._stack.enter_context(
                Live(get_renderable=self._table, console=self._console, refresh_per_second=8)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Draws the last state and gives the terminal back."""
        self._stack.__exit__(kind, error, traceback)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Runs one stage; a name that comes again goes on with its row and adds to its seconds."""
        stage = self._stages.setdefault(name, _Stage(name))
        now = self._clock()
        if self._open:
            self._open[-1].pause(now)
        stage.begin(now)
        self._open.append(stage)
        ended = _State.FAILED
        try:
            yield
            ended = _State.DONE
        except (KeyboardInterrupt, GeneratorExit):
            ended = _State.STOPPED
            raise
        finally:
            now = self._clock()
            stage.pause(now)
            stage.state = ended
            self._open.pop()
            if self._open:
                self._open[-1].begin(now)

    def counted(self, many: Iterable[T], count: int) -> Iterator[T]:
        """Yields items, and shows in the row of the stage how many are done.

        Args:
            many: The items; the stage is done with one when it asks for the next.
            count: The number of items.
        """
        if not self._shown or not self._open:
            yield from many
            return
        stage, own = self._open[-1], _Count(count)
        stage.count = own
        try:
            for one in many:
                yield one
                own.add(self._clock())
        finally:
            if stage.count is own:
                stage.count = None

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column()
        table.add_column(justify="right")
        ascii_only = self._console.options.ascii_only
        # A stage may begin while the drawing thread is here: go over a copy.
        for stage in list(self._stages.values()):
            mark, plain_mark, style = stage.state.value
            if stage.state is _State.RUNNING:
                now, count = self._clock(), stage.count
                note = f"{stage.seconds_at(now):.1f} s" + (count.text(now) if count else "")
                table.add_row(self._spinner, Text(stage.name), Text(note, "dim"))
                continue
            note = f"{stage.seconds:.1f} s"
            if stage.state is not _State.DONE:
                note += f"  {stage.state.name.lower()}"
            sign = Text(plain_mark if ascii_only else mark, style)
            table.add_row(sign, Text(stage.name), Text(note, "dim"))
        return table
