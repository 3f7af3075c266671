"""Every block of Python and bash in the README and the documentation runs.

The blocks of a page run in order, all pages in one folder, where ``examples`` lies too; those of
Python share their names. ``tokexport`` in a block of bash is the command itself, in this process.
The first line of a block may say why it is not run, or how it ends; what a ``console`` block shows
behind ``$ command`` has to be printed so, ``…`` standing for anything.
"""

from __future__ import annotations

import inspect
import linecache
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Answer, tokexport
from helpers.pages import PAGES, ROOT, Block, blocks

from tokexport.exporter.pytest_plugin.parity import Parity

RUN = ("python", "bash", "console")
#: The page whose bundle others go on with.
FIRST = ROOT / "docs" / "guides" / "first-bundle.md"
PLACES = sorted(PAGES, key=lambda page: page != FIRST)
#: What a block may need that a test does not have.
NOT_RUN = re.compile(
    r"# Not run by the tests: needs "
    r"(the network|a GPU|a compiler|an idle machine|another machine|a key)\."
)
ENDS = re.compile(r"# Ends with exit code (\d+)\.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the pages run in."""
    made = tmp_path_factory.mktemp("pages")
    (made / "examples").symlink_to(ROOT / "examples")
    return made


@pytest.mark.parametrize(
    "page",
    [page for page in PLACES if any(one.language in RUN for one in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_blocks_of_a_page_run(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", list(sys.path))  # a block may add to it
    if page != FIRST and not (folder / "digits-ort").exists():  # this page is run alone
        run_page(FIRST, tmp_path, monkeypatch)
    run_page(page, tmp_path, monkeypatch)


def run_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the blocks of a page in order."""
    module = types.ModuleType(f"page_{page.stem}")
    names: dict[str, Any] = vars(module)
    monkeypatch.setitem(
        sys.modules, module.__name__, module
    )  # a dataclass asks for the module that it is in
    for block in blocks(page):
        if block.language not in RUN or NOT_RUN.fullmatch(block.first):
            continue
        if block.language == "python":
            run_python(block, names, tmp_path)
        elif block.language == "bash":
            run_bash(block)
        else:
            run_console(block)


def run_python(block: Block, names: dict[str, Any], tmp_path: Path) -> None:
    """Runs a block, and the tests that it defines."""
    known = set(names)
    path = f"{names['__name__']}_{block.line}.py"
    linecache.cache[path] = (len(block.code), None, block.code.splitlines(keepends=True), path)
    exec(compile(block.code, path, "exec"), names)
    for name in set(names) - known:
        if name.startswith("test_"):
            run_test(names[name], tmp_path)


def run_test(test: Any, tmp_path: Path) -> None:
    """Runs a test of a block with the fixtures that it asks for, for each target of its marker."""
    takes = inspect.signature(test).parameters
    given = {"tmp_path": tmp_path} if "tmp_path" in takes else {}
    if "parity" not in takes:
        test(**given)
        return
    (marker,) = test.pytestmark
    options = {name: value for name, value in marker.kwargs.items() if name != "target"}
    for target in marker.kwargs["target"]:
        folder = tmp_path / target
        folder.mkdir()
        asked = {**options, "target": target}
        test(parity=Parity(folder, asked, None, test.__name__, False, False), **given)


def run_bash(block: Block) -> None:
    """Runs the commands of a block; the last has to end as its first line says."""
    *before, last = list(commands(block.code))
    for words in before:
        assert run(words).code == 0, words
    said = ENDS.fullmatch(block.first)
    answer = run(last)
    assert answer.code == (int(said[1]) if said else 0), answer


def run_console(block: Block) -> None:
    """Runs the command behind ``$`` and holds what it prints to the rest."""
    command, _, expected = block.code.partition("\n")
    (words,) = commands(command.removeprefix("$ "))
    answer = run(words)
    assert answer.code == 0, answer
    printed = [" ".join(line.split()) for line in answer.stdout.splitlines() if line.strip()]
    wanted = [" ".join(line.split()) for line in expected.splitlines() if line.strip()]
    assert len(printed) == len(wanted), answer.stdout
    for line, pattern in zip(printed, wanted, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), line), (pattern, line)


def commands(code: str) -> Iterator[list[str]]:
    """Yields the words of every command; a line that ends in a backslash goes on."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run(words: list[str]) -> Answer:
    """Runs the command; ``> FILE`` behind it takes what it prints."""
    assert words[0] == "tokexport", f"only tokexport is run here: {words}"
    words, target = (words[:-2], words[-1]) if ">" in words else (words, None)
    answer = tokexport(*words[1:])
    if target is not None:
        Path(target).write_text(answer.stdout, encoding="utf-8")
    return answer


def test_a_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page):
            if "not run" in block.first.lower():
                assert NOT_RUN.fullmatch(block.first), (page.name, block.first)
