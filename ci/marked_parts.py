"""Puts generated text between two markers of a page: ``<!-- NAME: begin -->`` and ``… end -->``."""

from __future__ import annotations

from pathlib import Path


def with_part(page: str, name: str, text: str) -> str:
    """Returns a page with the text between the markers of a name.

    Raises:
        ValueError: The page does not have both markers, in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"the page has no {begin} … {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def put_part(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the markers of a name in a file.

    Raises:
        ValueError: The file does not have both markers, in order.
    """
    path.write_text(with_part(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")
