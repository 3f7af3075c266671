"""Defines a page and its parts, and renders it as one HTML file.

A page is data: a verdict, and sections of parts. Whoever fills one (``compile_page``,
``against_page``, …) writes no HTML, and the templates know nothing of compiles. A page of another
command is a function that returns a ``Page``::

    page = Page(
        title="vit.lock",
        kind="check of a lock file",
        verdict=Verdict(BAD, "BREAK", "The outputs of vit-ort changed.", ("Compile it anew.",)),
        sections=(Section("Outputs", (Table(("output", "change"), (("logits", "2e-3"),)),)),),
    )
    write_page_whole(page, Path("check.html"))

The file needs no network and no script: its style, plots and pictures are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from tokexport import __version__
from tokexport.exporter.requirements import require_jinja2
from tokexport.exporter.system.output_file import written_whole

#: The tones of a verdict and of a note.
GOOD: Final = "good"
WARN: Final = "warn"
BAD: Final = "bad"
PLAIN: Final = "plain"

_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Verdict:
    """What a reader sees first.

    Attributes:
        tone: ``GOOD``, ``WARN`` or ``BAD``.
        word: The verdict in the command's own word: ``PASSED``.
        sentence: What it means, in one sentence for a stranger.
        details: Further sentences below it.
    """

    tone: str
    word: str
    sentence: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    part: ClassVar[str] = "text"


@dataclass(frozen=True)
class Note:
    """Something that a reader should not overlook.

    Attributes:
        tone: One of the tones.
        title: What happened.
        text: More of it; lines stay lines.
        code: A line of code that it is about, or ''.
        remedy: What to do now, or ''.
    """

    tone: str
    title: str
    text: str = ""
    code: str = ""
    remedy: str = ""
    part: ClassVar[str] = "note"


@dataclass(frozen=True)
class Facts:
    """Names and values, a row each."""

    rows: tuple[tuple[str, str], ...]
    part: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Cards:
    """Key figures: each a number, what it counts, and a remark."""

    cards: tuple[tuple[str, str, str], ...]
    part: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Table:
    """A table; columns whose heading is in ``numbers`` stand right.

    Attributes:
        headings: A text for each column.
        rows: The cells, a text for each column.
        numbers: The headings of columns of numbers.
        code: The headings of columns of code.
        tones: The tone of each row; empty where all are plain.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    tones: tuple[str, ...] = ()
    part: ClassVar[str] = "table"


@dataclass(frozen=True)
class Bar:
    """One row of bars: a label, and for each series its share of the widest and its text."""

    label: str
    shares: tuple[float, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, a row for each label and a bar in it for each series.

    Attributes:
        rows: The rows.
        series: What each series is called; empty where there is one.
    """

    rows: tuple[Bar, ...]
    series: tuple[str, ...] = ()
    part: ClassVar[str] = "bars"


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        svg: An ``<svg>`` element, of ``plots`` or ``token_maps``: it goes into the page as it is.
        caption: What it shows.
    """

    svg: str
    caption: str
    part: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side.

    Attributes:
        title: What they show together, or ''.
        pictures: Each an ``<svg>`` element, its title, and what it shows.
        large: Whether they are large.
    """

    title: str
    pictures: tuple[tuple[str, str, str], ...]
    large: bool = False
    part: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Drawn:
    """An ``<svg>`` that takes no room: what other pictures of the page refer to."""

    svg: str
    part: ClassVar[str] = "drawn"


@dataclass(frozen=True)
class Details:
    """Parts that are folded away until a reader asks for them."""

    summary: str
    parts: tuple[Any, ...]
    part: ClassVar[str] = "details"


Part = Text | Note | Facts | Cards | Table | Bars | Figure | Gallery | Drawn | Details


@dataclass(frozen=True)
class Section:
    """A section: a title, a sentence of what it shows, and its parts."""

    title: str
    parts: tuple[Part, ...]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: What it is about: the model and its target.
        kind: What kind of page it is: ``compile report``.
        verdict: What a reader sees first.
        sections: The sections, in order.
        written: When and by what the results were made, or ''.
    """

    title: str
    kind: str
    verdict: Verdict
    sections: tuple[Section, ...]
    written: str = ""


def render_page(page: Page) -> str:
    """Returns a page as HTML, in one file that needs nothing else.

    Raises:
        PackageMissingError: jinja2 is not installed.
    """
    html: str = _template().render(page=page, version=__version__)
    return html


def write_page(page: Page, path: Path) -> None:
    """Writes a page into a file.

    Args:
        page: The page.
        path: The file; what is there is replaced.

    Raises:
        PackageMissingError: jinja2 is not installed.
    """
    path.write_text(render_page(page), encoding="utf-8", errors="backslashreplace")


def write_page_whole(page: Page, output: Path) -> None:
    """Writes a page into a file whole or not at all, as a command does.

    Args:
        page: The page.
        output: The file; ``system.output_file.check_place`` was asked before.

    Raises:
        PackageMissingError: jinja2 is not installed.
        WriteError: It cannot be written.
    """
    with written_whole(output, "page") as partial:
        write_page(page, partial)


def bars(
    rows: Sequence[tuple[str, Sequence[float | None], Sequence[str]]], series: Sequence[str] = ()
) -> Bars:
    """Returns bars whose longest one of each series fills the width.

    Args:
        rows: A label, a number for each series (None draws no bar), and a text for each.
        series: What the series are called.
    """
    count = max((len(row[1]) for row in rows), default=0)
    most = [max((row[1][i] or 0.0 for row in rows), default=0.0) or 1.0 for i in range(count)]
    return Bars(
        tuple(
            Bar(
                label,
                tuple((number or 0.0) / most[i] for i, number in enumerate(numbers)),
                tuple(texts),
            )
            for label, numbers, texts in rows
        ),
        tuple(series),
    )


@cache
def _template() -> Any:
    require_jinja2()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")
