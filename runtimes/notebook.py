"""Shows results in a line and in a notebook: the verdict first, and text of others escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from tokexport.runtimes.printable import printable

#: Rows of a table, each of its texts.
Rows = Iterable[Sequence[str]]


def one_line(verdict: str, *parts: str) -> str:
    """Returns a verdict and what it is about as one line that a terminal can print.

    Args:
        verdict: How it ended.
        parts: Further parts; empty ones are left out.
    """
    said = "; ".join(part for part in parts if part)
    return printable(" ".join(f"{verdict}: {said}".split()))


def as_html(verdict: str, sentence: str, facts: Rows, *tables: tuple[Sequence[str], Rows]) -> str:
    """Returns a verdict in bold, a sentence, and tables below, as HTML without scripts or styles.

    Args:
        verdict: How it ended.
        sentence: What it is about.
        facts: Rows of a name and a value.
        tables: The headings of a table, and its rows.
    """
    parts = [f"<p><strong>{_escaped(verdict)}</strong> {_escaped(sentence)}</p>"]
    named = "".join(f"<tr><th>{_escaped(name)}</th>{_cells(rest)}</tr>" for name, *rest in facts)
    parts += [f"<table>{named}</table>"] * bool(named)
    for headings, rows in tables:
        body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
        head = "".join(f"<th>{_escaped(heading)}</th>" for heading in headings)
        parts += [f"<table><tr>{head}</tr>{body}</table>"] * bool(body)
    return f"<div>{''.join(parts)}</div>"


def _cells(texts: Iterable[str]) -> str:
    return "".join(f"<td>{_escaped(text)}</td>" for text in texts)


def _escaped(text: str) -> str:
    return html.escape(printable(text))
