"""What the README says and the code decides."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokexport.exporter.exit_codes import ExitCode
from tokexport.exporter.recipe import PLACEMENT, parse_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text under a heading of the second level."""
    _, found, rest = README.partition(f"\n## {heading}\n")
    assert found, f"the README has no section '{heading}'"
    return rest.partition("\n## ")[0]


INSPECT = section("Looking before compiling")
REDUCE = section("Reduce a plain ViT")


def test_every_exit_code_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", section("Exit codes"), re.MULTILINE)
    assert [int(code) for code, _ in rows] == sorted(ExitCode)
    assert all(len(meaning) > 10 for _, meaning in rows)


def test_every_option_it_names_exists() -> None:
    shown = subprocess.run(
        [Path(sys.executable).with_name("tokexport"), "compile", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exists = set(re.findall(r"--[a-z][a-z-]+", shown))
    named = set(re.findall(r"--[a-z][a-z-]+", section("On the command line")))
    assert named - {"--help"} <= exists
    assert exists - {"--help"} <= named


def test_inspect_prints_what_it_says() -> None:
    (block,) = re.findall(
        r"^```\n(\$ tokexport inspect .*?)^```$", INSPECT, re.DOTALL | re.MULTILINE
    )
    called, _, said = block.partition("\n")
    program, *arguments = called.removeprefix("$ ").split()
    printed = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "124"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert without_versions(printed) == without_versions(said)


def without_versions(text: str) -> list[str]:
    return re.sub(r" \d+\.\d+[.\d]* took", " took", text).splitlines()


def test_every_option_of_inspect_exists() -> None:
    shown = subprocess.run(
        [Path(sys.executable).with_name("tokexport"), "inspect", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exists = set(re.findall(r"--[a-z][a-z-]+", shown))
    assert set(re.findall(r"--[a-z][a-z-]+", INSPECT)) == exists - {"--help"}


def helps(command: str) -> set[str]:
    """The options of a command."""
    shown = subprocess.run(
        [Path(sys.executable).with_name("tokexport"), command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--help"}


def test_the_options_around_reduction_exist_and_those_of_their_own_are_named() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", REDUCE))
    known = helps("compile")
    own = (helps("reduce") | helps("sweep")) - known
    assert named <= known | own
    assert own == {"--values", "--option", "--no-plot"}
    assert own <= named


def test_the_options_of_bench_exist_and_those_of_its_own_are_named() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", section("How fast, beside what")))
    known = helps("bench")
    assert named <= known
    assert known - helps("compile") - helps("sweep") <= named


def test_its_recipes_are_recipes(tmp_path: Path) -> None:
    (written,) = re.findall(r"^```toml\n(.*?)^```$", REDUCE, re.DOTALL | re.MULTILINE)
    (tmp_path / "recipe.toml").write_text(written, encoding="utf-8")
    recipe = parse_recipe(tmp_path / "recipe.toml")
    assert recipe.method.name == "tome"
    assert recipe.restore == (5,)
    recipes = re.findall(r"--reduce ([a-z]\S+)", REDUCE)
    assert [parse_recipe(text).method.name for text in recipes] == ["tome", "evit", "tome"]
    assert all(f"`{key}`" in REDUCE for key in PLACEMENT)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets_of_make(target: str) -> None:
    assert f"make {target}" in section("Two commands")
    made = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ".venv/bin/python" in made.stdout


def test_the_results_are_measured_ones() -> None:
    table, _ = section("Results").split("<!-- results: end -->")
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 6
    for row in rows:
        *_, error, _gate, ratio, _ = (cell.strip() for cell in row.split("|"))
        assert float(error) < 1e-4
        assert re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d … \d+\.\d\d\)", ratio)


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert [line for line in script.splitlines() if line.startswith("make ")] == [
        "make lint",
        "make types",
        "make sanitize",
        "make test",
    ]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_pins_are_exact_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins), pins
    assert "torch==2.13.0" in pins
    assert len({pin.partition("==")[0].lower() for pin in pins}) == len(pins)
