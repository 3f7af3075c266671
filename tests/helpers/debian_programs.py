"""Calls programs that ``make test`` unpacks from Debian's packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_BUILD = Path(__file__).parents[2] / "build"


def program(name: str) -> str:
    """Returns where it is; the test is skipped where ``make`` fetched none."""
    unpacked = _BUILD / name / name
    found = shutil.which(name) or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        pytest.skip(f"no {name} here: `make test` fetches it by ci/debian_program.sh")
    return found


def run_program(name: str, *arguments: object) -> str:
    """Runs it and returns what it prints; the test is skipped where there is none."""
    command = [program(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
