"""The loops that threads work off together: every task once, each phase behind the one before."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.thorough import thorough_but

NATIVE = Path(__file__).parents[2] / "runtimes" / "native"


@pytest.mark.parametrize("sanitizer", thorough_but(["thread"], ["thread", "undefined"]))
def test_every_task_is_done_once_and_in_its_phase(sanitizer: str, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no compiler here")
    source, program = Path(__file__).with_name("phases_check.cpp"), tmp_path / "check"
    options = ["-std=c++20", "-O1", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover"]
    built = subprocess.run(
        ["c++", *options, f"-I{NATIVE}", str(source), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"the compiler has no library for -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=300)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("the sanitizer does not know how this kernel lays out memory")
    assert ran.returncode == 0, ran.stdout + ran.stderr
