"""Which way imports may point, read from the source of every module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("exporter", "graph_passes", "runtimes")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MOST_LINES = 400

#: What each room may import beside the standard library and itself.
ALLOWED = {
    "runtimes": {"numpy"},
    "graph_passes": {"numpy", "torch", "onnx", "onnx_ir", "onnxscript"},
    "exporter": {
        "tokexport.graph_passes",
        "tokexport.runtimes",
        "matplotlib",
        "numpy",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "rich",
        "huggingface_hub",  # of transformers
        "safetensors",
        "timm",
        "torch",
        "transformers",
        "typer",
    },
}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module named by an import, and its level: 0 where the import is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "tokexport":
                yield from ((f"tokexport.{alias.name}", 0) for alias in node.names)
            else:
                yield node.module or "", node.level


def origin(module: str) -> str:
    """The room of a module of ours, else the top-level package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tokexport" else parts[0]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def violations(room: str, source: str) -> list[str]:
    """The imports in a module's source that its room may not make."""
    allowed = ALLOWED[room] | {f"tokexport.{room}"}
    return [
        "." * level + module
        for module, level in imported(ast.parse(source))
        if level
        or origin(module) not in allowed | sys.stdlib_module_names
        # the package itself holds the version, which is no room's
        and not (room == "exporter" and module in {"tokexport", "tokexport.__version__"})
    ]


def test_every_room_has_modules() -> None:
    for room in ROOMS:
        assert sum(path.is_relative_to(ROOT / room) for path in MODULES) > 3


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_point_the_right_way(path: Path) -> None:
    assert violations(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runtimes", "def f():\n    import torch"),
        ("runtimes", "from onnx import helper"),
        ("runtimes", "from tokexport import exporter"),
        ("runtimes", "import tokexport.graph_passes.ops"),
        ("runtimes", "from . import base"),
        ("graph_passes", "from tokexport.exporter.errors import UsageError"),
        ("graph_passes", "import onnxruntime"),
        ("exporter", "from ..runtimes import base"),
        ("exporter", "import openvino"),
    ],
)
def test_a_wrong_import_is_found(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


def test_tests_stay_out_of_the_rooms() -> None:
    assert not [named(path) for path in MODULES if path.name.startswith(("test_", "conftest"))]
