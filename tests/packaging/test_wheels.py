"""Wheels with kernels for two processors: what they fit, and what runs without a compiler."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import arm_processors
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.thorough


def built(machine: str, folder: Path) -> Path:
    """Builds the wheel for a machine as ``make wheels`` does."""
    pytest.importorskip("ziglang", reason="make thorough installs it")
    command = [sys.executable, ROOT / "ci" / "wheels.py", "--machine", machine, "--output", folder]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(*arguments: str | Path) -> None:
    """Runs pip, with no program to be found that could compile."""
    command = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", *arguments]
    pins = ["-c", str(ROOT / "constraints.txt")]
    environment = {**os.environ, "PATH": str(ROOT / "no-programs")}
    subprocess.run([*command, *pins], check=True, env=environment)


def kernels_in(text: str) -> dict[str, Any]:
    """Returns what doctor says of the kernels for ONNX Runtime."""
    components = json.loads(text)["components"]
    found: dict[str, Any] = next(one for one in components if one["name"] == "kernels for ort")
    return found


def test_the_wheel_for_x86_brings_kernels_where_there_is_no_compiler(tmp_path: Path) -> None:
    wheel = built("x86_64", tmp_path / "dist")
    assert re.search(r"-py3-none-.*manylinux_2_17_x86_64\.whl", wheel.name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "own"], check=True)
    python = tmp_path / "own" / "bin" / "python"
    pip("--python", python, "install", f"{wheel}[ort]")
    environment = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    said = subprocess.run(
        [python, "-I", "-m", "tokexport.exporter.cli.app", "doctor", "--json"],
        cwd=tmp_path,
        env={**environment, "PATH": str(ROOT / "no-programs")},
        capture_output=True,
        text=True,
        check=True,
    )
    found = kernels_in(said.stdout)
    assert (found["works"], found["missing"]) == (True, "")
    assert found["version"] != "baseline"


@pytest.fixture(scope="module")
def arm_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel for ARM and what it asks for, as pip installs them there."""
    arm_processors.fetch()
    wheel = built("aarch64", tmp_path_factory.mktemp("dist"))
    assert re.search(r"-py3-none-.*manylinux_2_17_aarch64\.whl", wheel.name)
    place = tmp_path_factory.mktemp("site")
    arm_processors.install(place, f"{wheel}[ort]")
    return place


@pytest.mark.parametrize("processor", arm_processors.PROCESSORS, ids=lambda one: one.isa)
def test_the_wheel_for_arm_brings_its_kernels(
    processor: arm_processors.Processor, arm_site: Path
) -> None:
    said = arm_processors.run_python(
        processor,
        ["-m", "tokexport.exporter.cli.app", "doctor", "--json"],
        {"TOKEXPORT_NATIVE": ""},
        packages=arm_site,
    )
    assert said.returncode == 0, said.stderr
    found = kernels_in(said.stdout)
    assert (found["works"], found["version"]) == (True, processor.isa)
