"""Holds what a report says of each artifact of a bundle, where it has several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class RungReport:
    """One artifact of a bundle: the model for one number of samples at once.

    Attributes:
        batch: The number of samples.
        artifact: The file that the runtime loads.
        artifact_bytes: The size of that file, without weights that it shares with others.
        latency_ms: The median of a run, in milliseconds; None where it was not timed.
        report: The file with the report of its compile.
    """

    batch: int
    artifact: str
    artifact_bytes: int
    latency_ms: float | None
    report: str

    @property
    def throughput(self) -> float | None:
        """Samples a second, where it was timed."""
        return None if self.latency_ms is None else self.batch / self.latency_ms * 1e3


def fill_ladder(table: Table, ladder: Sequence[RungReport]) -> None:
    """Adds a row for each artifact to a table.

    Args:
        table: The table, without columns.
        ladder: The artifacts.
    """
    for heading in ("batch", "median ms", "samples/s", "artifact"):
        table.add_column(heading, justify="left" if heading == "artifact" else "right")
    for rung in ladder:
        latency, throughput = rung.latency_ms, rung.throughput
        table.add_row(
            str(rung.batch),
            "–" if latency is None else f"{latency:.2f}",
            "–" if throughput is None else f"{throughput:.1f}",
            f"{rung.artifact} ({rung.artifact_bytes / 1e6:.1f} MB)",
        )
