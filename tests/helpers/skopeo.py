"""Calls skopeo, which reads OCI layouts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_UNPACKED = Path(__file__).parents[2] / "build" / "skopeo" / "skopeo"


def skopeo(*arguments: object) -> str:
    """Runs it and returns what it prints; the test is skipped where ``make`` fetched none."""
    found = shutil.which("skopeo") or (str(_UNPACKED) if _UNPACKED.exists() else None)
    if found is None:
        pytest.skip("no skopeo here: `make test` fetches it by ci/debian_program.sh")
    done = subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
