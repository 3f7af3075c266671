"""Which way imports may point, read from the source of every module."""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("exporter", "graph_passes", "runtimes")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
#: How many modules a folder holds at most, catalogues (a pass or a method a file) apart.
MOST_MODULES = 16
CATALOGUES = {
    "graph_passes/onnx_passes/fuse",
    "graph_passes/reduction/methods",
    "graph_passes/torch_passes/canonicalize",
    "graph_passes/torch_passes/spell_out",
}
#: The folders of a room in order: each imports those before it alone. ``.`` is what stands beside
#: them, and a file in the list what has a place of its own.
ORDER = {
    "exporter": (
        *(
            "shared_weights",
            "openvino_graph",
            "backends",
            "counts",
            ".",
            "schemas",
            "system",
            "inputs",
        ),
        *("source/files", "source", "eager", "capture", "worker", "build"),
        *("graph_values", "rounding", "parity"),
        *("reduction/blocks", "reduction", "edges", "speed", "tuning", "report"),
        *("report_page/drawing", "report_page"),
        *("bundle", "ties", "stages", "compile.py", "bench_bundle", "bench"),
        *("inspection", "sweep", "comparison"),
        *("bisection", "lock", "pytest_plugin", "package", "cli/parts", "cli"),
    ),
    "graph_passes": (
        *(".", "ops", "onnx_passes/graph", "torch_passes/graph", "torch_passes/kinds"),
        *("torch_passes/match", "onnx_passes/targets", "torch_passes/recognise"),
        *("torch_passes/trim", "analysis", "torch_passes/pad", "torch_passes/canonicalize"),
        *("torch_passes/spell_out", "torch_passes", "onnx_passes/every_target", "onnx_passes/fuse"),
        *("onnx_passes/precision", "onnx_passes", "reduction", "reduction/methods"),
        *("reduction/surgery", "pipelines.py"),
    ),
    "runtimes": (
        *(
            ".",
            "cores",
            "files",
            "tolerances",
            "bundle",
            "pictures",
            "native_library.py",
            "ort",
            "openvino",
            "trt",
            "artifact_needs.py",
            "compatibility.py",
            "signatures.py",
            "loading.py",
        ),
        *("verification.py", "doctor.py", "__init__.py"),
    ),
}
FOLDERS = [(room, folder) for room, folders in ORDER.items() for folder in folders]

#: What each room may import beside the standard library and itself.
ALLOWED = {
    "runtimes": {"numpy", "PIL"},  # model_signing by its name, where a key is given
    "graph_passes": {"numpy", "torch", "onnx", "onnx_ir", "onnxscript"},
    "exporter": {
        "tokexport.graph_passes",
        "tokexport.runtimes",
        "matplotlib",
        "numpy",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "model_signing",
        "OpenSSL",
        "pytest",  # of its plugin
        "rich",
        "huggingface_hub",  # of transformers
        "jinja2",
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


def test_imports_point_the_right_way() -> None:
    found = {
        named(path): violations(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8"))
        for path in MODULES
    }
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runtimes", "def f():\n    import torch"),
        ("runtimes", "from onnx import helper"),
        ("runtimes", "from tokexport import exporter"),
        ("runtimes", "import tokexport.graph_passes.ops.ops"),
        ("runtimes", "from . import base"),
        ("graph_passes", "from tokexport.exporter.errors import UsageError"),
        ("graph_passes", "import onnxruntime"),
        ("exporter", "from ..runtimes import base"),
        ("exporter", "import openvino"),
    ],
)
def test_a_wrong_import_is_found(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1


def folder_of(module: str) -> tuple[str, str]:
    """The room of a module, and its folder there, or its file where that has its own place."""
    path = module_paths()[module]
    room, own = path.relative_to(ROOT).parts[0], Path(*path.relative_to(ROOT).parts[1:])
    return room, str(own) if str(own) in ORDER.get(room, ()) else own.parent.as_posix()


@functools.cache
def module_paths() -> dict[str, Path]:
    """The path of every module of ours, by its name."""
    found = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(("tokexport", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


@functools.cache
def modules_imported(module: str) -> frozenset[str]:
    """The modules of ours that one imports, also for types alone or within a function."""
    names = set()
    for node in ast.walk(ast.parse(module_paths()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {one if one in module_paths() else node.module for one in inner}
    return frozenset((names & module_paths().keys()) - {module})


@pytest.mark.parametrize("room", ORDER)
def test_every_folder_has_its_place_in_the_order(room: str) -> None:
    places = {folder_of(module) for module in module_paths()}
    assert {folder for other, folder in places if other == room} == set(ORDER[room])


@pytest.mark.parametrize(("room", "folder"), FOLDERS)
def test_a_folder_imports_those_before_it_alone(room: str, folder: str) -> None:
    before = ORDER[room][: ORDER[room].index(folder) + 1]
    wrong = [
        f"{module} imports {other}"
        for module in module_paths()
        if folder_of(module) == (room, folder)
        for other in modules_imported(module)
        if folder_of(other)[0] == room and folder_of(other)[1] not in before
    ]
    assert wrong == []


def test_no_modules_import_one_another() -> None:
    graphlib.TopologicalSorter({one: modules_imported(one) for one in module_paths()}).prepare()


def test_folders_stay_small_enough_to_look_over() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in MODULES)
    assert {folder for folder, count in counts.items() if count > MOST_MODULES} <= CATALOGUES


def test_names_say_what_is_in_a_module() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert [named(path) for path in MODULES if vague & {path.stem, path.parent.name}] == []


def test_tests_stay_out_of_the_rooms() -> None:
    assert not [named(path) for path in MODULES if path.name.startswith(("test_", "conftest"))]


def test_one_module_of_the_exporter_reads_a_manifest_that_nobody_has_to_have_signed() -> None:
    """The others call ``trusted_manifest``, so that no command parses what is not signed."""
    readers = [
        named(path)
        for path in MODULES
        if named(path).startswith("exporter/") and "read_manifest" in path.read_text()
    ]
    assert readers == ["exporter/bundle/bundle_folder.py"]  # what a new bundle may replace
