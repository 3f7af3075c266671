"""Reports the forms of token operators that were chosen by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from rich.table import Table
from rich.text import Text


class BundledForm(TypedDict):
    """The form of the calls of a token operator that look alike, as a bundle keeps it.

    Attributes:
        form: The form that they have in the artifact.
        standard: The form that they have without tuning.
        speedup: Median time of the standard form ÷ that of the chosen one.
        of_minima: The same ratio of the shortest times.
        nodes: How many calls of the model look so.
    """

    form: str
    standard: str
    speedup: float
    of_minima: float
    nodes: int


@dataclass(frozen=True)
class TunedForm:
    """The choice for the calls of an operator that look alike.

    Attributes:
        form: The form that they have in the artifact.
        standard: The form that they have without tuning.
        speedup: Median time of the standard form ÷ that of the chosen one; 1 where it is the same.
        low: Lower end of the 95 % bootstrap interval of ``speedup``.
        high: Its upper end.
        of_minima: The same ratio of the shortest times.
        times_us: The median time of a call in each form that was timed, in microseconds; it
            includes a share of what a run of a model costs by itself.
    """

    form: str
    standard: str
    speedup: float
    low: float
    high: float
    of_minima: float
    times_us: Mapping[str, float]


@dataclass(frozen=True)
class Tuning:
    """The choices of tuning for a model.

    Attributes:
        forms: What was chosen, by what the calls look like.
        nodes: How many calls of the model look so.
        timed: How many of ``forms`` were timed now; the others were in the cache.
        cache: The file that remembers them.
        warnings: What the user should know, a sentence each.
    """

    forms: Mapping[str, TunedForm]
    nodes: Mapping[str, int]
    timed: int
    cache: str
    warnings: tuple[str, ...] = ()

    def for_manifest(self) -> dict[str, BundledForm]:
        """Returns the fields that a bundle keeps."""
        return {
            call: {
                "form": found.form,
                "standard": found.standard,
                "speedup": found.speedup,
                "of_minima": found.of_minima,
                "nodes": self.nodes[call],
            }
            for call, found in self.forms.items()
        }

    def sentence(self) -> str:
        """Returns how many calls were changed, and where the times come from."""
        total = sum(self.nodes.values())
        changed = sum(
            self.nodes[call] for call, found in self.forms.items() if found.form != found.standard
        )
        known = len(self.forms) - self.timed
        source = f"{self.timed} timed now, {known} from {self.cache}"
        return f"{changed} of {total} calls in another form; of {len(self.forms)} kinds {source}"

    def fill(self, table: Table) -> None:
        """Puts a row for each kind of call into an empty table."""
        table.add_column("call", overflow="fold")
        table.add_column("nodes", justify="right")
        table.add_column("form", no_wrap=True)
        table.add_column("instead of", no_wrap=True)
        table.add_column("speed-up", justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True)
        table.add_column("of minima", justify="right", no_wrap=True)
        for call, found in self.forms.items():
            change: tuple[str, ...] = ()
            if found.form != found.standard:
                interval = f"{found.low:.2f} … {found.high:.2f}"
                of_minima = f"{found.of_minima:.2f}"
                change = (found.standard, f"{found.speedup:.2f}", interval, of_minima)
            table.add_row(Text(call), str(self.nodes[call]), found.form, *change)
