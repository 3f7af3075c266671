"""Escapes control characters in untrusted text for a terminal."""

from __future__ import annotations

import re
from typing import Any, Final

#: Control characters, all but tab and newline; what turns the direction of writing; and halves of
#: characters, which no output can encode.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]"
)
#: The deepest nesting of lists and objects; the axes of a constant input count.
_DEEPEST: Final = 64


def printable(text: str) -> str:
    r"""Returns a text with control characters as escapes, for example ``\x1b``.

    Args:
        text: Any text.
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def all_printable(data: Any, depth: int = _DEEPEST) -> Any:
    """Returns parsed JSON whose texts a terminal can show, keys too; any may be printed.

    Args:
        data: Parsed JSON.
        depth: How deep its lists and objects may nest.

    Raises:
        ValueError: They nest deeper.
    """
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, list | dict) and depth == 0:
        raise ValueError(f"it nests deeper than {_DEEPEST} levels")
    if isinstance(data, list):
        return [all_printable(part, depth - 1) for part in data]
    if isinstance(data, dict):
        return {printable(key): all_printable(value, depth - 1) for key, value in data.items()}
    return data
