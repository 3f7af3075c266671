"""Removes the paths of this checkout and its packages from results."""

from __future__ import annotations

import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def without_places(text: str) -> str:
    """Returns a text whose paths begin below the packages, or below this checkout."""
    packages = sysconfig.get_paths()["purelib"]
    return text.replace(f"{packages}/", "").replace(f"{ROOT}/", "")
