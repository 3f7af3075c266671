"""Lets a script run with another tree of this project, and with kernels of its own."""

from __future__ import annotations

import argparse
import os
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
    """
    places = (str(tree / "ci/typing"), *(str(ROOT / folder) for folder in beside))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "TOKEXPORT_NATIVE": library if library == "off" else os.path.abspath(library),
    }
