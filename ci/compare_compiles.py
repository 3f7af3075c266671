"""Compares compiles of the same models by two trees of this project.

    python ci/compare_compiles.py record before.json --tree ../before --library …/kernels.so
    python ci/compare_compiles.py record after.json --library build/native/tokexport_native.so
    python ci/compare_compiles.py compare before.json after.json

The models are those of this checkout's tests, for both trees. A record holds, of each case, the
exit code, what was printed, report and manifest without times and places, and every graph as lines
(see ``graph_text.py``). It goes on where it stopped. ``compare`` takes the first record through
``renamed.json``, names each difference that is left, and ends with 1 where there is one.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import other_tree

ROOT = other_tree.ROOT
RENAMED = ROOT / "ci" / "renamed.json"
MODELS = "models.cli_models"
#: The command line of each case, behind ``tokexport``.
CASES = {
    "merges, ort": f"compile {MODELS}:with_inputs --target ort",
    "merges, openvino": f"compile {MODELS}:with_inputs --target openvino",
    "merges, trt": f"compile {MODELS}:with_inputs --target trt",
    "tome, ort": f"compile {MODELS}:plain_vit --target ort --reduce tome:r=6",
    "tome restored, openvino": (
        f"compile {MODELS}:plain_vit --target openvino --reduce tome:r=6 --restore"
    ),
    "tome, trt": f"compile {MODELS}:plain_vit --target trt --reduce tome:r=6",
    "tome in bf16, trt": (
        f"compile {MODELS}:plain_vit --target trt --precision bf16 --reduce tome:r=6"
    ),
    "tome in int8, ort": (
        f"compile {MODELS}:plain_vit --target ort --precision int8 --reduce tome:r=6"
    ),
    "pitome, openvino": f"compile {MODELS}:plain_vit --target openvino --reduce pitome:keep=0.7",
    "evit in bf16, openvino": (
        f"compile {MODELS}:plain_vit --target openvino --precision bf16 --reduce evit:keep=0.7"
    ),
    "mctf, ort": f"compile {MODELS}:plain_vit --target ort --reduce mctf:r=6",
    "dpcknn in fp16, openvino": (
        f"compile {MODELS}:plain_vit --target openvino --precision fp16 --reduce dpcknn:layers=[1]"
    ),
    "tofu in fp16, trt": (
        f"compile {MODELS}:plain_vit --target trt --precision fp16 --reduce tofu:keep=0.8"
    ),
    "tome in int8, openvino": (
        f"compile {MODELS}:plain_vit --target openvino --precision int8 --reduce tome:r=6"
    ),
    "dct by fft, ort": "compile models.zoo.dct:build_by_fft --target ort",
    "mctf of the zoo, openvino": "compile models.zoo.mctf:build --target openvino",
    "sampled up to a cap, ort": "compile models.ragged:sampled --target ort --token-cap 13",
    "noise dropped, ort": "compile models.noisy:tie_breaking --target ort --drop-noise",
    "a grid fixed, ort": "compile models.grid_towers:grid_tower --target ort --constant grid_thw",
    "two inputs, ort": f"compile {MODELS}:two_inputs --target ort --batch 3",
    "looked into": f"inspect {MODELS}:plain_vit --reduce mctf:r=6",
    "methods": "methods",
    "refused: a loop over the data": (f"compile {MODELS}:Loops --target ort --input-shape 2,4"),
    "refused: random numbers": f"compile {MODELS}:Draws --target ort --input-shape 2,4",
    "refused: no cap": "compile models.ragged:sampled --target openvino",
    "refused: an operator without an ONNX form": (
        f"compile {MODELS}:Bessel --target ort --input-shape 2,4"
    ),
    "refused: an operator that OpenVINO lacks": (
        f"compile {MODELS}:Determinant --target openvino --input-shape 2,3,3"
    ),
    "refused: an operator that TensorRT lacks": (
        f"compile {MODELS}:SortsNumbers --target trt --input-shape 2,4"
    ),
    "failed: surgery": (f"compile {MODELS}:plain_of_two_faces --target ort --reduce tome:r=6"),
    "failed: a tolerance": f"compile {MODELS}:with_inputs --target ort --atol 1e-12",
    "wrong: a precision": f"compile {MODELS}:with_inputs --target openvino --precision int4",
    "wrong: a recipe": f"compile {MODELS}:plain_vit --target ort --reduce tome:q=6",
    "wrong: a source": f"compile {MODELS}:nothing --target ort",
}
#: Fields that hold times, places, hashes of what holds them, or the state of the machine.
UNLIKE = frozenset(
    ("speed", "speed_over_unreduced", "stage_seconds", "machine", "created", "bundle", "files")
)
#: Warnings that the state of the machine decides.
OF_THE_MACHINE = ("The machine is busy",)
#: Constants that say how long an artifact is timed, wherever a tree has them.
SHORT = {"SPEED_SECONDS": 0.01, "TRIAL_SECONDS": 0.01, "SETTLE_S": 0.0}


def main() -> int:
    """Records or compares, as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="Runs the cases with a tree.")
    recording.add_argument("record", type=Path)
    other_tree.add_options(recording)
    recording.add_argument("--case", action="append", choices=CASES, help="Only this one.")
    comparing = commands.add_parser("compare", help="Names what two records differ in.")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    running = commands.add_parser("run")
    running.add_argument("record", type=Path)
    running.add_argument("names")
    options = parser.parse_args()
    if options.command == "compare":
        before, after = (_read(path) for path in (options.before, options.after))
        return compare(before, after, json.loads(RENAMED.read_text(encoding="utf-8")))
    if options.command == "run":
        run_cases(options.record, json.loads(options.names))
        return 0
    record(options.record, options.tree.resolve(), options.library, options.case or list(CASES))
    return 0


# Recording


def record(path: Path, tree: Path, library: str, names: list[str]) -> None:
    """Runs cases with a tree, all in one process, and anew from the next where it dies."""
    known = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **other_tree.environment(tree, library, "tests"),
            "TOKEXPORT_CACHE": folder,
            "COMPARED_ENTRY": known["project"]["scripts"]["tokexport"],
            "COLUMNS": "200",
            "TOKEXPORT_TIMING_SECONDS": "0.01",  # no time is compared
        }
        while left := [name for name in names if name not in _read(path)]:
            command = [sys.executable, __file__, "run", str(path), json.dumps(left)]
            code = subprocess.run(command, env=environment, check=False).returncode
            if left == [name for name in names if name not in _read(path)]:
                _add(path, left[0], {"died": code})


def run_cases(path: Path, names: list[str]) -> None:
    """Runs cases in this process, and adds each to a record at once."""
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    module, _, function = os.environ["COMPARED_ENTRY"].partition(":")
    entry = getattr(import_module(module), function)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            _add(path, name, _run(entry, CASES[name].split(), Path(folder)))
        print(name, file=sys.stderr, flush=True)


def _run(entry: Any, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Runs one case, and returns what is to be compared."""
    output = folder / "bundle"
    if arguments[0] != "methods":
        arguments = [*arguments, "--code-path", str(ROOT / "tests")]
    if arguments[0] == "compile":
        arguments += ["--output", str(output), "--keep-stages"]
    _shorten()
    printed, said, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["tokexport", *arguments, "--json"]
    with redirect_stdout(printed), redirect_stderr(said):
        try:
            entry()
        except SystemExit as end:
            code = int(end.code or 0)
    tree = str(Path(os.environ["PYTHONPATH"].partition(os.pathsep)[0]).parents[1])
    places = {str(folder): "FOLDER", str(ROOT / "tests"): "MODELS", tree: "TREE"}
    return {
        "code": code,
        "answer": _plain(_parsed(printed.getvalue()), places),
        "said": _plain(said.getvalue(), places),
        "manifest": _plain(_json_file(output / "manifest.json"), places),
        "graphs": dict(_graphs(folder)),
    }


def _shorten() -> None:
    """Makes timings as short as possible: no time is compared."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("tokexport."):
            for name, value in SHORT.items():
                if name in vars(module):
                    setattr(module, name, value)


def _graphs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every graph that a compile left, and the reference data, under its place."""
    from graph_text import onnx_text, openvino_text

    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        if path.suffix in (".onnx", ".xml"):
            text = onnx_text(path) if path.suffix == ".onnx" else openvino_text(path)
            yield place, {"lines": text.lines, "notes": text.notes}
        elif path.suffix == ".npz":
            yield place, {"lines": list(_array_lines(path)), "notes": []}
        elif path.is_file():
            yield place, {"lines": [], "notes": []}


def _array_lines(path: Path) -> Iterator[str]:
    import numpy

    with numpy.load(path) as arrays:
        for name in sorted(arrays.files):
            found = arrays[name]
            digest = hashlib.sha256(found.tobytes()).hexdigest()[:16]
            yield f"{name}: {found.dtype}{list(found.shape)} {digest}"


def _plain(value: Any, places: dict[str, str]) -> Any:
    """Returns a value without times, places and the state of the machine."""
    if isinstance(value, dict):
        return {name: _plain(one, places) for name, one in value.items() if name not in UNLIKE}
    if isinstance(value, list):
        kept = [one for one in value if not str(one).startswith(OF_THE_MACHINE)]
        return [_plain(one, places) for one in kept]
    if isinstance(value, str):
        for place, name in places.items():
            value = value.replace(place, name)
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json_file(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = _json_file(path) or {}
    return found


def _add(path: Path, name: str, case: dict[str, Any]) -> None:
    path.write_text(json.dumps({**_read(path), name: case}, indent=1), encoding="utf-8")


# Comparing


def compare(before: dict[str, Any], after: dict[str, Any], renamed: dict[str, Any]) -> int:
    """Prints the differences of two records, and returns 1 if they differ."""
    different, missing = 0, []
    for name in CASES:
        if name not in before or name not in after:
            missing.append(name)
            continue
        lines = list(_differences(_renamed(before[name], renamed), after[name], renamed))
        different += bool(lines)
        code = after.get(name, {}).get("code")
        print(f"{'differs' if lines else 'equal  '}  {name} (exit code {code})")
        for line in lines[:40]:
            print(f"    {line}")
    compared = len(CASES) - len(missing)
    print(f"{compared - different} of {compared} cases are equal")
    if missing:
        print(f"not in both records: {'; '.join(missing)}")
    return int(different > 0 or not compared)


def _renamed(value: Any, renamed: dict[str, Any], within: str = "") -> Any:
    """Returns a value of the first record under the names of today.

    A field that is called otherwise in one place only stands there with the field around it.
    """
    if isinstance(value, dict):
        return {
            _name(name, renamed, within): _renamed(one, renamed, name)
            for name, one in value.items()
            if name not in renamed["gone"]
        }
    if isinstance(value, list):
        return [_renamed(one, renamed, within) for one in value]
    if isinstance(value, str):
        for old, new in renamed["texts"]:
            value = value.replace(old, new)
    return value


def _name(name: str, renamed: dict[str, Any], within: str) -> str:
    for old, new in renamed["folders"].items():
        if name.startswith(old):
            return f"{new}{name.removeprefix(old)}"
    fields = renamed["fields"]
    return str(fields.get(f"{within}/{name}", fields.get(name, name)))


def _differences(
    before: Any, after: Any, renamed: dict[str, Any], place: str = ""
) -> Iterator[str]:
    """Yields a line for each place where two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in (*before, *(name for name in after if name not in before)):
            here = f"{place}/{name}"
            if name not in after:
                yield f"{here}: gone, was {_short(before[name])}"
            elif name in before:
                yield from _differences(before[name], after[name], renamed, here)
            elif name not in renamed["new"]:
                yield f"{here}: new, is {_short(after[name])}"
    elif isinstance(before, list) and isinstance(after, list) and before != after:
        if len(before) == len(after) and not all(isinstance(one, str) for one in before + after):
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                yield from _differences(old, new, renamed, f"{place}[{index}]")
        else:
            old_lines, new_lines = [str(one) for one in before], [str(one) for one in after]
            changed = difflib.unified_diff(old_lines, new_lines, n=0, lineterm="")
            yield from (f"{place}: {line}" for line in changed if line[:3] not in ("---", "+++"))
    elif before != after and not _is_version(place, before, after, renamed):
        yield f"{place}: was {_short(before)}, is {_short(after)}"


def _is_version(place: str, before: Any, after: Any, renamed: dict[str, Any]) -> bool:
    allowed: Any = renamed["numbers"].get(place)
    return bool([before, after] == allowed)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 300 else f"{text[:300]}…"


if __name__ == "__main__":
    sys.exit(main())
