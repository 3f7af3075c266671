"""The README and the documentation name what there is, and the site builds."""

from __future__ import annotations

import fnmatch
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers.pages import PAGES, ROOT, anchors, blocks, links, prose
from reference_pages import parameters

from tokexport.exporter.cli.app import app
from tokexport.exporter.recipe import PLACEMENT, parse_recipe
from tokexport.graph_passes.ops import ops

DOCS = ROOT / "docs"
#: Pages beside the documentation that its links lead to.
BESIDE = tuple(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "BENCHMARKS.md"))
EVERY = (*PAGES, *BESIDE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), path
        assert not anchor or anchor in anchors(found), f"{path}#{anchor}"


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_name_in_python_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\btokexport(?:\.[a-zA-Z_]\w*)+\b(?!/)", text)):
        assert exists(name), name


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module, an attribute of one, or an operator of the domain."""
    parts = name.split(".")
    ops.register()
    if len(parts) == 2 and hasattr(torch.ops.tokexport, parts[1]):
        return True
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_file_it_names_exists(page: Path) -> None:
    for path in set(re.findall(r"`([\w./*-]+)`", prose(page))):
        folder, _, name = path.rpartition("/")
        if folder.partition("/")[0] in ("exporter", "graph_passes", "runtimes", "tests", "ci"):
            assert list(ROOT.glob(path.rstrip("/"))), path
        elif path.endswith(".py") and not folder:
            assert fnmatch.filter(file_names(), name), path


@cache
def file_names() -> set[str]:
    """The names of all Python files of the repository."""
    rooms = ("exporter", "graph_passes", "runtimes", "tests", "ci", "examples")
    return {path.name for room in rooms for path in (ROOT / room).rglob("*.py")}


def options(command: str) -> set[str]:
    """The options of a command, without its help."""
    (found,) = (one for one in app.registered_commands if one.name == command)
    names = (one.name for one in parameters(found.callback))
    return {name for name in names if name.startswith("--")}


def named(page: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", (DOCS / page).read_text(encoding="utf-8")))


def test_every_option_of_compile_is_described_in_words() -> None:
    known = options("compile")
    denials = {f"--no-{name.removeprefix('--')}" for name in known}
    assert named("reference/compile-options.md") - denials == known


def test_every_option_of_inspect_is_in_its_guide() -> None:
    assert named("guides/inspect.md") == options("inspect")


def test_the_options_of_reduce_and_sweep_are_in_their_guide() -> None:
    own = (options("reduce") | options("sweep")) - options("compile")
    assert own == {"--values", "--option", "--no-plot"}
    assert own <= named("guides/reduce-a-plain-vit.md") <= options("compile") | own


def test_the_options_of_bench_are_in_its_guide() -> None:
    named_there = named("guides/bench.md")
    assert options("bench") - options("compile") - options("sweep") <= named_there
    assert named_there <= options("bench")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_recipes_are_recipes(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(one for one in blocks(page) if one.language == "toml"):
        written = tmp_path / f"{number}.toml"
        written.write_text(block.code, encoding="utf-8")
        parse_recipe(written)
    for text in re.findall(r"reduce=\"(\w+:[^\"]+)\"", page.read_text(encoding="utf-8")):
        parse_recipe(text)


def test_the_options_of_every_recipe_are_in_the_guide() -> None:
    guide = (DOCS / "guides" / "reduce-a-plain-vit.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in guide for key in PLACEMENT)


def test_generated_pages_are_not_stale() -> None:
    import reference_pages

    for name, text in reference_pages.pages().items():
        written = (reference_pages.PAGES / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is stale: run python ci/reference_pages.py"


def test_the_benchmark_pages_are_those_of_the_results() -> None:
    import bench_figures
    import bench_page
    from marked_parts import with_part

    lines = bench_figures.latest(bench_figures.RESULTS)
    found = list(bench_figures.figures(lines))
    assert bench_page.PAGE.read_text(encoding="utf-8") == bench_page.summary_page(lines, found)
    assert bench_page.TABLES.read_text(encoding="utf-8") == bench_page.tables_page(lines)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = bench_page.readme_table(lines, bench_page.shown_figures(found))
    assert readme == with_part(readme, "bench", table)


def test_the_site_builds(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "project" / "BENCHMARKS" / "index.html").exists()
