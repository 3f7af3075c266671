"""Prints a table whose lines are never broken, however narrow the console is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WIDEST: Final = 500


def unbroken_lines(table: Table, console: Console) -> Iterator[Text]:
    """Yields the lines of a table; where the console is too narrow for it, they run on."""
    needed = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    for segments in console.render_lines(table, console.options.update(width=needed)):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        yield line
