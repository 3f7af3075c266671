"""What a process has loaded after an import or a command, looked at from inside of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "matplotlib",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "scipy",
    "sklearn",
    "tensorrt_rtx_bindings",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}
AFTER_A_COMMAND = """
import json, sys
sys.argv = ["tokexport", *{arguments!r}]
from tokexport.exporter.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


def last_line(program: str) -> str:
    """Runs a program where warnings are errors; returns the last line of what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def loaded(program: str) -> set[str]:
    """The top-level packages that are loaded at the end of a program that prints sys.modules."""
    return {name.partition(".")[0] for name in json.loads(last_line(program))}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["compile", "--help"],
        ["run", "--help"],
        ["verify", "--help"],
        ["doctor", "--help"],
        ["reduce", "--help"],
        ["methods", "--help"],
        ["sweep", "--help"],
        ["bench", "--help"],
        ["rebuild", "--help"],
        ["schema", "--help"],
        ["package", "--help"],
        ["sign", "--help"],
        ["bom", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: Sequence[str]) -> None:
    packages = loaded(AFTER_A_COMMAND.format(arguments=list(arguments)))
    assert "typer" in packages
    assert packages & HEAVY == set()


@pytest.mark.parametrize("arguments", [["schema"], ["schema", "report.json"]], ids=" ".join)
def test_schemas_are_printed_without_torch(arguments: Sequence[str]) -> None:
    assert loaded(AFTER_A_COMMAND.format(arguments=list(arguments))) & HEAVY <= {"numpy"}


def test_bundles_are_measured_without_torch() -> None:
    bundle = ROOT / "tests" / "bundles" / "kernels_ort"
    arguments = ["bench", str(bundle), "--threads", "1", "--rounds", "5"]
    assert loaded(AFTER_A_COMMAND.format(arguments=arguments)) & HEAVY == {"numpy"}


def test_the_package_itself_loads_nothing() -> None:
    packages = loaded("import json, sys, tokexport; print(json.dumps(sorted(sys.modules)))")
    assert packages & (HEAVY | {"typer", "rich"}) == set()


def test_loading_bundles_takes_numpy_alone() -> None:
    packages = loaded(
        "import json, sys, tokexport.runtimes; tokexport.runtimes.load;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert packages & (HEAVY | {"typer", "rich"}) == {"numpy"}


def test_importing_modules_registers_no_operator() -> None:
    modules = [
        "tokexport." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "graph_passes").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    program = f"""
import importlib, json, torch

def operators():
    return [
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tokexport::")
    ]

for name in {modules!r}:
    importlib.import_module(name)
after_import = operators()
from tokexport.graph_passes.ops import ops
ops.register()
once = operators()
ops.register()
print(json.dumps([after_import, sorted(once), sorted(operators())]))
"""
    after_import, once, twice = json.loads(last_line(program))
    assert after_import == []
    assert "tokexport::merge_tokens" in once
    assert twice == once


def test_an_unknown_name_is_an_attribute_error() -> None:
    import tokexport

    with pytest.raises(AttributeError, match="no attribute 'compille'"):
        _ = tokexport.compille
