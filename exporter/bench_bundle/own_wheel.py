"""Builds the wheel of the checkout that this tokexport runs from."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokexport.exporter.errors import UsageError
from tokexport.runtimes.importing import is_installed

#: How much of what pip prints an error shows, in characters.
_SHOWN = 600


def checkout() -> Path | None:
    """Returns the folder of the checkout that this file lies in; None where it was installed."""
    root = Path(__file__).resolve().parents[2]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return root if project["name"] == "tokexport" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_wheel(
    root: Path,
    folder: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Builds a wheel with pip, its native kernels for this system where there is a compiler.

    Args:
        root: The checkout.
        folder: Where the wheel goes.
        options: Further ones of pip.
        environment: What pip finds in its environment; None leaves this one.

    Raises:
        UsageError: pip built none.
    """
    # what builds it is fetched, unless it is installed here as in a development environment
    isolated = () if not is_installed("scikit_build_core") else ("--no-build-isolation",)
    program = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "wheel"]
    settings = ["--no-deps", *isolated, *options, "--wheel-dir", str(folder), str(root)]
    done = subprocess.run(
        [*program, *settings],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and found:
        return found[0]
    raise UsageError(
        "pip built no wheel of this checkout.",
        where=f"{root}: {done.stderr.strip()[-_SHOWN:]}",
        fix="Pass a wheel with --wheel, or --python with an interpreter there that has tokexport.",
    )
