"""A check is said in GitHub's words, in GitLab's, and as JUnit's XML; the YAML's steps run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from helpers.cli import MODELS, compile_model, tokexport
from torch import Tensor, nn

import tokexport as package
from tokexport.exporter.lock.check import BundleCheck, CheckResult
from tokexport.exporter.lock.findings import BREAK, DRIFT, Finding
from tokexport.exporter.lock.summary import (
    LARGEST_SUMMARY,
    MOST_ANNOTATIONS,
    annotations_of,
    markdown,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two copies of a bundle with their lock; one has another precision since."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("first", "second"):
        assert compile_model(f"{MODELS}:plain_vit", folder / name).code == 0
    bundles = (folder / "first", folder / "second")
    assert tokexport("lock", *bundles, "--file", folder / "parity.lock.json").code == 0
    path = folder / "second" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "precision": "bf16"}))
    return folder


def run_step(step: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a step of YAML as a pipeline does, with the command on its path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step],
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_action_writes_a_summary_and_annotations(made: Path, tmp_path: Path) -> None:
    action = read("ci/github/action.yml")
    (step,) = action["runs"]["steps"]
    given = {key: one["default"] for key, one in action["inputs"].items()}
    given["junit"] = str(tmp_path / "parity.xml")
    variables = {name: given[name.lower()] for name in step["env"]}
    assert {*step["env"].values()} == {f"${{{{ inputs.{name} }}}}" for name in given}
    summary = tmp_path / "summary.md"
    done = run_step(step["run"], made, GITHUB_STEP_SUMMARY=str(summary), **variables)
    assert done.returncode == 1, done
    text = summary.read_text()
    assert "## ❌ Parity: break" in text
    assert "| ✅ | first | ort | fp32 |" in text
    assert "| ❌ | second | precision | fp32 | bf16 |" in text
    (note,) = (line for line in done.stdout.splitlines() if line.startswith("::"))
    line = next(
        number
        for number, line in enumerate((made / "parity.lock.json").read_text().splitlines(), 1)
        if '"second": {' in line
    )
    assert note == (
        f"::error file=parity.lock.json,line={line},title=second%3A precision::fp32 → bf16. The "
        "precision changed: another bundle."
    )
    variables["BUNDLES"] = "first"
    assert run_step(step["run"], made, **variables).returncode == 0


def test_the_template_of_gitlab_leaves_junit(made: Path) -> None:
    job = read("ci/gitlab/parity.yml")[".tokexport-parity"]
    (step,) = job["script"]
    done = run_step(step, made, **job["variables"])
    assert done.returncode == 1
    assert "## ❌ Parity: break" in done.stdout
    suite = ElementTree.parse(made / job["artifacts"]["reports"]["junit"]).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    passed, failed = suite
    assert (passed.get("name"), passed.find("failure")) == ("first[ort-fp32]", None)
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "The precision changed: another bundle."


def many(count: int, lock: Path) -> CheckResult:
    """A check in which so many bundles broke and drifted."""
    found = tuple(
        Finding(kind, f"`{number}` | <b>", "a", "b", "x" * 100 + ".")
        for number in range(count)
        for kind in (DRIFT, BREAK)
    )
    one = BundleCheck("one", lock.parent, "ort", "fp32", BREAK, found, None)
    return CheckResult(lock, (one,))


def test_a_summary_is_cut_and_annotations_are_few(tmp_path: Path) -> None:
    lock = tmp_path / "parity.lock.json"
    lock.write_text("{}")
    found = many(5000, lock)
    text = markdown(found)
    assert LARGEST_SUMMARY - 2000 < len(text.encode()) <= LARGEST_SUMMARY
    assert text.rstrip().endswith("more lines have no room here.")
    assert "\\`0\\` \\| \\<b\\>" in text
    notes = annotations_of(found)
    assert len(notes) == MOST_ANNOTATIONS
    assert {one.level for one in notes} == {"error"}


def test_the_speed_alone_needs_no_lock(made: Path, tmp_path: Path) -> None:
    given = ("--against", made / "first", "--slower", "50%", "--summary")
    junit = tmp_path / "parity.xml"
    answer = tokexport("check", made / "first", *given, "--junit", junit)
    assert answer.code == 0, answer
    assert "### Speed" in answer.stdout
    found = tokexport("check", made / "first", *given[:-1], "--json").json
    assert (found["lock"], found["bundles"]) == (None, [])
    assert found["speed"]["verdict"] in ("not slower", "undecided")
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "0"
    assert tokexport("check", "--against", made / "first").code == 2
    assert (
        tokexport("check", made / "first", "--against", made / "first", "--slower", "x").code == 2
    )


class Products(nn.Module):
    """Two products of an input (1, 64, 96), by way of so many hidden channels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(96, hidden), nn.Linear(hidden, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.thorough
def test_a_slower_artifact_fails_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hidden in (("old", 8), ("new", 8192)):
        package.compile(
            *(Products(hidden).eval(), torch.randn(1, 64, 96), "ort"),
            **{"output": tmp_path / name, "timed": False, "page": False},
        )
    monkeypatch.setenv("TOKEXPORT_TIMING_SECONDS", "90")
    given = ("--against", tmp_path / "old", "--threads", "1", "--html", tmp_path / "speed.html")
    answer = tokexport("check", tmp_path / "new", *given, "--json")
    assert answer.code == 1, answer
    found = answer.json
    assert (found["outcome"], found["speed"]["verdict"]) == ("break", "slower")
    assert "times as long as the old one" in found["error"]["what"]
    page = (tmp_path / "speed.html").read_text()
    assert "The new bundle is slower than the old one by more than 3 %." in page
