"""Docstrings, comments and messages are plain English: short first lines, and no banned words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("exporter", "graph_passes", "runtimes", "ci", "examples")
#: The most words of the first paragraph of a docstring.
MOST_WORDS = 20
#: What a reader has to read twice, and what to write instead.
BANNED = {
    r"told|tells?|telling": "say, show, report, or a replay with decisions as inputs",
    r"such(?! as\b)": "this, these, or the thing itself; 'such as' before examples is plain",
    r"mend(?:s|ed|ing)?": "fix",
    r"there is none": "none is found, or without one",
    r"persons?": "user",
}
_BANNED = re.compile(rf"\b(?:{'|'.join(f'(?:{one})' for one in BANNED)})\b", re.IGNORECASE)
#: Texts that hold a banned word all the same, with the reason.
ALLOWED = {
    '"told"': "the folder of replays that earlier versions kept, which --force may remove",
    "``told``": "the same, in its comment",
    "[CLS] Token Tells Everything": "the title of a paper",
}


def sources() -> list[Path]:
    return sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_symlink() and "typing" not in path.parts
    )


def first_paragraphs(code: str) -> Iterator[tuple[int, str]]:
    """Yields the first paragraph of every docstring, with its line."""
    left: list[ast.AST] = [ast.parse(code)]
    while left:
        node = left.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), " ".join(text.split("\n\n")[0].split())
        for statements in ("body", "orelse", "finalbody", "handlers"):  # a lambda has no list
            inner = getattr(node, statements, [])
            left += inner if isinstance(inner, list) else []


def texts(code: str) -> Iterator[tuple[int, str]]:
    """Yields every comment and every line of a string literal, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            for count, line in enumerate(token.string.split("\n")):
                yield token.start[0] + count, line


def faults(code: str) -> list[str]:
    """Returns what is wrong with the words of a file, a line each."""
    found = []
    for line, text in first_paragraphs(code):
        count = len(text.split())
        if count > MOST_WORDS:
            found.append(f"{line}: {count} words, and {MOST_WORDS} are allowed: {text}")
        if text[0].islower():
            found.append(f"{line}: begins with a lower-case letter: {text}")
    for line, text in texts(code) if _BANNED.search(code) else ():
        for allowed in ALLOWED:
            text = text.replace(allowed, "")
        if match := _BANNED.search(text):
            found.append(f"{line}: '{match[0]}': {text.strip()}")
    return found


def test_texts_are_plain() -> None:
    found = {path: faults(path.read_text(encoding="utf-8")) for path in sources()}
    lines = [f"{path.relative_to(ROOT)}:{one}" for path, these in found.items() for one in these]
    advice = "; ".join(f"{word}: write {instead}" for word, instead in BANNED.items())
    assert not lines, "\n".join([*lines, advice])


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ('"""Says."""\n# it is told how\n', "2: 'told'"),
        ('"""Says."""\nx = f"no such {1} file"\n', "2: 'such'"),
        ('"""Says.\n\nIt\nmends it.\n"""\n', "4: 'mends'"),
        ('"""says."""\n', "1: begins with a lower-case letter"),
        (f'"""Says {"so " * 20}."""\n', "1: 22 words"),
    ],
)
def test_a_fault_is_found(code: str, fault: str) -> None:
    assert [one.startswith(fault) for one in faults(code)] == [True]


def test_plain_words_are_not_faults() -> None:
    assert not faults('"""Reads a file.\n\nA name such as x."""\nfile.tell()  # its position\n')
