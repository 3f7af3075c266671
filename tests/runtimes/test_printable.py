"""Text of others as a terminal prints it."""

from __future__ import annotations

import pytest

from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 猫\n\ttext", "plain é 猫\n\ttext"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m\x7f\r", r"\x9b31m\x7f\x0d"),
        ("\u202etxt.exe\u2066", r"\u202etxt.exe\u2066"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_an_error_that_quotes_a_file_is_escaped() -> None:
    error = BundleError("No \x1b[2J.", where="in \u202eb", fix="\x9b31m")
    assert str(error) == "No \\x1b[2J.\nin \\u202eb\n\\x9b31m"
    assert error.args == ("No \\x1b[2J.",)
