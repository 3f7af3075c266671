"""Escapes control characters in untrusted text for a terminal."""

from __future__ import annotations

import re
from typing import Final

#: Control characters, all but tab and newline; what turns the direction of writing; and halves of
#: characters, which no output can encode.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns a text with control characters as escapes, for example ``\x1b``.

    Args:
        text: Any text.
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
