from __future__ import annotations

from pathlib import Path

import pytest
from helpers.torchvision_ops import define_torchvision_operators

define_torchvision_operators()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that code in a crafted source makes when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def models() -> tuple[Path, ...]:
    """The code path of the models in tests/models."""
    return (Path(__file__).parents[2] / "models",)
