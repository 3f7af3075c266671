"""Reads lists of whole numbers from the command line."""

from __future__ import annotations

import re

from tokexport.exporter.errors import UsageError


def parse_numbers(what: str, text: str, example: str) -> tuple[int, ...]:
    """Reads numbers such as ``1,4,8``.

    Args:
        what: The option that they are given for, for a message.
        text: Whole numbers of 1 or more, with commas between.
        example: What may be given, for a message.

    Raises:
        UsageError: A part is no whole number of 1 or more.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not re.fullmatch(r"0{0,18}[1-9][0-9]{0,17}", part, re.ASCII)]
    if wrong:
        raise UsageError(
            f"{what} {text!r:.80} is not a list of whole numbers of 1 to 10^18.",
            where=f"At {wrong[0]!r:.80}",
            fix=f"Write it as numbers separated by commas: {example}",
        )
    return tuple(map(int, parts))
