"""What a checkout offers: the targets of make, the script of CI, exact pins."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["demo", "test", "docs"])
def test_a_target_of_make_runs_in_the_environment(target: str) -> None:
    made = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ".venv/bin/" in made.stdout


def test_ci_runs_every_check() -> None:
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
