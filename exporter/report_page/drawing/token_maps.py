"""Draws which patches of a picture each token holds, as SVG over the picture.

Patches that one token holds share a colour, and no edge runs between them; dropped patches are
dark. The unit is a patch: a grid of 14 × 14 has the view box 0 0 14 14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

#: The turn of the colour wheel from a patch to the next. The colour of a token is that of its first
#: patch, so that it keeps it while others are merged into it.
_TURN = 137.5
_DROPPED = -1


def picture_defs(pictures: Sequence[str], grid: tuple[int, int]) -> str:
    """Returns the pictures for other ``<svg>`` of the page to show, each once.

    Args:
        pictures: Data URIs of PNG.
        grid: Rows and columns of patches.
    """
    rows, columns = grid
    images = "".join(
        f'<image id="picture{i}" width="{columns}" height="{rows}" preserveAspectRatio="none" '
        f'href="{uri}"/>'
        for i, uri in enumerate(pictures)
    )
    return f'<svg width="0" height="0"><defs>{images}</defs></svg>'


def token_map(title: str, picture: int, grid: tuple[int, int], holders: Sequence[int]) -> str:
    """Returns an ``<svg>`` of a picture with its tokens.

    Args:
        title: What it is called.
        picture: Which of ``picture_defs`` lies below.
        grid: Rows and columns of patches.
        holders: For each patch, row by row, the token that holds it; -1 where it was dropped.
    """
    rows, columns = grid
    sizes = Counter(holders)
    cells = _cells(holders, rows, columns)
    fills = [
        f'<path class="together" fill="hsl({holders.index(token) * _TURN % 360:.0f} 85% 55%)" '
        f'd="{cells[token]}"/>'
        for token, size in sizes.items()
        if size > 1 and token != _DROPPED
    ]
    if sizes[_DROPPED]:
        fills.append(f'<path class="gone" d="{cells[_DROPPED]}"/>')
    edges = _edges(holders, rows, columns)
    return (
        f'<svg viewBox="0 0 {columns} {rows}" role="img"><title>{escape(title)}</title>'
        f'<use href="#picture{picture}"/>{"".join(fills)}'
        f'<path class="edge-under" d="{edges}"/><path class="edge-over" d="{edges}"/></svg>'
    )


def _cells(holders: Sequence[int], rows: int, columns: int) -> dict[int, str]:
    """Returns the path of the patches of every token, neighbours in a row as one rectangle."""
    found: dict[int, str] = {}
    for row in range(rows):
        column = 0
        for token, run in groupby(holders[row * columns : (row + 1) * columns]):
            width = len(list(run))
            found[token] = f"{found.get(token, '')}M{column} {row}h{width}v1h-{width}z"
            column += width
    return found


def _edges(holders: Sequence[int], rows: int, columns: int) -> str:
    """Returns the path of the lines between patches of different tokens, and around all."""
    parts = [f"M0 0h{columns}v{rows}h-{columns}z"]
    for row in range(1, rows):
        apart = [
            holders[row * columns + x] != holders[(row - 1) * columns + x] for x in range(columns)
        ]
        parts += [f"M{start} {row}h{length}" for start, length in _runs(apart)]
    for column in range(1, columns):
        apart = [
            holders[y * columns + column] != holders[y * columns + column - 1] for y in range(rows)
        ]
        parts += [f"M{column} {start}v{length}" for start, length in _runs(apart)]
    return "".join(parts)


def _runs(marks: Sequence[bool]) -> list[tuple[int, int]]:
    """Returns the start and the length of every run of marks."""
    found = []
    start = 0
    for marked, run in groupby(marks):
        length = len(list(run))
        if marked:
            found.append((start, length))
        start += length
    return found
