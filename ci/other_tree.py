"""Lets a script run with another tree of this project, and with kernels of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a tree and its kernels."""
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--library", default="off", help="Its kernels for ONNX Runtime.")


def environment(tree: Path, library: str, *beside: str) -> dict[str, str]:
    """Returns the variables under which Python finds a tree, and the tree its kernels.

    Args:
        tree: The tree; its package comes first among the places of modules.
        library: The file of its kernels, or ``off``.
        beside: Folders of this tree whose modules are found too: ``tests``.

    Raises:
        SystemExit: This Python finds another tree's package first.
    """
    places = (str(tree / "ci/typing"), *(str(ROOT / folder) for folder in beside))
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "TOKEXPORT_NATIVE": library if library == "off" else os.path.abspath(library),
    }
    command = [sys.executable, "-c", "import tokexport.runtimes as room; print(room.__file__)"]
    found = subprocess.run(
        command, env=variables, capture_output=True, text=True, check=True
    ).stdout
    if not Path(found.strip()).resolve().is_relative_to(tree.resolve()):
        sys.exit(
            f"{sys.executable} finds tokexport in {found.strip()}, and not in {tree}: an editable "
            "installation comes before PYTHONPATH. Use an environment that has none."
        )
    return variables
