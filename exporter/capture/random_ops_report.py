"""Describes what dropping the random numbers of a model did, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.text import Text

from tokexport.runtimes.tolerances.comparison import Comparison


@dataclass(frozen=True)
class RandomOpsReport:
    """The effect of dropping the random numbers of a model.

    Attributes:
        draws: What drew, with its line: ``aten.rand.default at …``.
        change: The model without its random numbers against the model as given, by output.
    """

    draws: tuple[str, ...]
    change: Mapping[str, Comparison]

    def lines(self) -> Iterator[Text]:
        """Yields what it did to each output, and where they were drawn."""
        yield Text(
            "\nThe model without its random numbers, compared with one run as it was given", "bold"
        )
        for output, change in self.change.items():
            line = f"{output}  relative {change.relative:.1e}, cosine {change.cosine:.6f}"
            if change.top1_agreement is not None:
                line += f", top-1 {change.top1_agreement:.1%}"
            yield Text(line)
        for draw in self.draws:
            yield Text(f"dropped  {draw}", "dim")
