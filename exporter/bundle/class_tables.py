"""Prints the classes of pictures."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.bundle.classify_pictures import ClassifiedPictures


def render_classes(found: ClassifiedPictures, terminal: Console) -> None:
    """Prints a line for every class of every picture, the file in the first.

    Args:
        found: The pictures.
        terminal: Where it is printed.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("file", overflow="fold")
    table.add_column("class", justify="right")
    table.add_column("label", overflow="fold")
    table.add_column(found.score, justify="right")
    for one in found.pictures:
        if one.error is not None:
            table.add_row(Text(one.file), "", Text(one.error, "red"), "")
        for rank, scored in enumerate(one.classes):
            value = f"{scored.score:.2%}" if found.score == "probability" else f"{scored.score:.4g}"
            file, label = Text("" if rank else one.file), Text(scored.label or "")
            table.add_row(file, str(scored.index), label, value)
    terminal.print(table)
    for said in found.warnings:
        terminal.print(Text.assemble(("warning  ", "yellow"), said), soft_wrap=True)
    if found.csv is not None:
        terminal.print(
            f"\nThe classes are in {found.csv}.", highlight=False, markup=False, soft_wrap=True
        )
