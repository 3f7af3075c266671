"""What GitHub would run, run here: its shell steps, and the schemas of its files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").iterdir())
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").iterdir() if path.stem != "config")
CHECK = ".ci/run"
INSTALL = 'python -m pip install "cibuildwheel>=3,<4"'
WHEELS = "python -m cibuildwheel --output-dir dist"
INSTALL_FOR_PARITY = "python -m pip install '.[compile,ort,openvino,test]'"
PARITY = "cd examples/parity_in_ci && ./compile.sh && pytest -c /dev/null --rootdir ."


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps() -> list[str]:
    """The shell steps of all jobs, in order."""
    jobs = [job for path in WORKFLOWS for job in read(path)["jobs"].values()]
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def run(step: str, environment: Mapping[str, str]) -> str:
    """Runs a step as GitHub does, from the root of the checkout, and returns what it printed."""
    done = subprocess.run(
        ["bash", "-e", "-c", step],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_step_is_run_here_or_with_the_example() -> None:
    """``tests/examples`` runs the example's pipeline, and ``tests/exporter/lock`` the action."""
    assert steps() == [CHECK, INSTALL, WHEELS, INSTALL_FOR_PARITY, PARITY]


def test_the_parity_of_the_example_goes_through_the_action() -> None:
    (used,) = (
        step
        for path in WORKFLOWS
        for job in read(path)["jobs"].values()
        for step in job["steps"]
        if step.get("uses", "").startswith("./")
    )
    action = read(ROOT / used["uses"] / "action.yml")
    assert {*used["with"]} <= {*action["inputs"]}
    assert (ROOT / used["with"]["lock"]).is_file()


def test_the_check_makes_all_that_has_to_pass() -> None:
    """Make prints here what it would run: these tests are a part of it."""
    printed = run(CHECK, {"MAKEFLAGS": "n", "MAKELEVEL": "0"})
    wanted = ("ruff check", "ruff format --check", "mypy", "-DTOKEXPORT_SANITIZE=ON", "pytest")
    places = [printed.find(program) for program in wanted]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_asks_for_what_the_machine_has(form: Path) -> None:
    asked = {each.get("id"): each for each in read(form)["body"]}["doctor"]
    assert "`tokexport doctor --json`" in asked["attributes"]["label"]
    assert asked["validations"]["required"]


@pytest.mark.thorough
def test_wheels_are_configured_and_files_keep_to_their_schemas(tmp_path: Path) -> None:
    """No container runs here, so that cibuildwheel only says what it would build."""
    run(f"python -m venv {tmp_path}", {})
    there = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    run(INSTALL, there)
    built = run(f"{WHEELS} --print-build-identifiers --platform linux", there)
    assert built.split() == [f"cp311-manylinux_{os.uname().machine}"]
    run("python -m pip install check-jsonschema", there)
    for kind, paths in (("github-workflows", WORKFLOWS), ("github-issue-forms", FORMS)):
        run(f"check-jsonschema --builtin-schema vendor.{kind} {' '.join(map(str, paths))}", there)
