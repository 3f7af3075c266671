"""Times the bundles of one model from two trees of this project, in alternating rounds.

    python ci/compare_speed.py compile before --tree ../before --library …/kernels.so
    python ci/compare_speed.py compile after --library build/native/tokexport_native.so
    python ci/compare_speed.py time before after --pairs 5 --seconds 20

The model is DeiT-S with random weights under a seed, which ``--reduce tome`` merges tokens in.
``compile`` leaves a bundle for each target in a folder, and says there which tree and library made
it. ``time`` loads each bundle in a process of its own, with the tree and the kernels that made it,
and lets the two run in turns: the first of a pair is the second of the next. A ratio above 1 says
that the second folder's bundles are faster. Wall time is what counts on an idle machine; on a busy
one the time that the process had the processor says more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import other_tree

if TYPE_CHECKING:
    from torch import Tensor, nn

TARGETS = ("ort", "openvino")
MADE_BY = "made_by.json"
SEED = 0


def deit() -> tuple[nn.Module, Tensor]:
    """Builds DeiT-S with random weights; ``COMPARED_DEPTH`` says with how many blocks."""
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    import timm
    import torch

    torch.manual_seed(SEED)
    depth = int(os.environ.get("COMPARED_DEPTH", "12"))
    model = timm.create_model("deit_small_patch16_224", depth=depth)
    return model.eval(), torch.randn(1, 3, 224, 224)


def main() -> int:
    """Compiles, times or runs, as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("compile", help="Makes a bundle for each target with a tree.")
    making.add_argument("folder", type=Path)
    other_tree.add_options(making)
    timing = commands.add_parser("time", help="Runs the bundles of two folders in turns.")
    timing.add_argument("before", type=Path)
    timing.add_argument("after", type=Path)
    timing.add_argument("--pairs", type=int, default=5)
    timing.add_argument("--seconds", type=float, default=20.0, help="Of each turn.")
    running = commands.add_parser("run")
    running.add_argument("bundle", type=Path)
    options = parser.parse_args()
    if options.command == "compile":
        compile_with(options.folder, options.tree.resolve(), options.library)
    elif options.command == "time":
        for target in TARGETS:
            compare(target, options.before, options.after, options.pairs, options.seconds)
    else:
        run_turns(options.bundle)
    return 0


def compile_with(folder: Path, tree: Path, library: str) -> None:
    """Compiles the model for each target with a tree, and notes what made it."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels = library if library == "off" else os.path.abspath(library)
    made_by = {"tree": str(tree), "library": kernels}
    (folder / MADE_BY).write_text(json.dumps(made_by), encoding="utf-8")
    program = (
        "import sys, compare_speed, tokexport\n"
        "model, example = compare_speed.deit()\n"
        "tokexport.compile(model, example, sys.argv[1], output=sys.argv[2], reduce='tome:r=13', "
        "timed=False, force=True)"
    )
    for target in TARGETS:
        command = [sys.executable, "-c", program, target, str(folder / target)]
        subprocess.run(command, env=_environment(folder), check=True)
        print(f"{folder / target} is made", flush=True)


def compare(target: str, before: Path, after: Path, pairs: int, seconds: float) -> None:
    """Prints the ratios of the two folders' bundles for a target, pair by pair."""
    folders = (before, after)
    runners = [_start(folder / target, _environment(folder)) for folder in folders]
    ratios: dict[str, list[float]] = {}
    for pair in range(pairs):
        turns: dict[int, dict[str, float]] = {}
        for index in (0, 1) if pair % 2 == 0 else (1, 0):
            turns[index] = _ask(runners[index], seconds)
        for kind in turns[0]:
            ratios.setdefault(kind, []).append(turns[0][kind] / turns[1][kind])
        shown = ", ".join(f"{kind} {found[-1]:.3f}" for kind, found in ratios.items())
        print(f"{target} pair {pair + 1}: {shown}", flush=True)
    for runner in runners:
        runner.communicate("\n")
    for kind, found in ratios.items():
        middle = statistics.median(found)
        print(f"{target} {kind}: {middle:.3f} ({min(found):.3f} … {max(found):.3f})", flush=True)


def run_turns(bundle: Path) -> None:
    """Runs a bundle for as many seconds as each line of stdin says, and prints what a run took."""
    import numpy as np

    import tokexport.runtimes

    with tokexport.runtimes.load(bundle) as runner:
        shapes = {spec.name: spec for spec in runner.inputs}
        drawn = np.random.default_rng(SEED)
        run = runner.bound(
            {name: drawn.standard_normal(one.shape, np.float32) for name, one in shapes.items()}
        )
        run()
        print("ready", flush=True)
        for line in _lines():
            print(json.dumps(_turn(run, float(line))), flush=True)


def _turn(run: Any, seconds: float) -> dict[str, float]:
    """Returns milliseconds of a run: the median and the least, and those of the processor."""
    walls: list[float] = []
    end, started = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        before = time.perf_counter()
        run()
        walls.append(1e3 * (time.perf_counter() - before))
    processor = 1e3 * (time.process_time() - started) / len(walls)
    return {"median": statistics.median(walls), "least": min(walls), "processor": processor}


def _lines() -> Iterator[str]:
    while line := sys.stdin.readline().strip():
        yield line


def _start(bundle: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    runner = subprocess.Popen(
        [sys.executable, __file__, "run", str(bundle)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runner.stdout is not None
    assert runner.stdout.readline().strip() == "ready"
    return runner


def _ask(runner: subprocess.Popen[str], seconds: float) -> dict[str, float]:
    assert runner.stdin is not None
    assert runner.stdout is not None
    print(seconds, file=runner.stdin, flush=True)
    found: dict[str, float] = json.loads(runner.stdout.readline())
    return found


def _environment(folder: Path) -> dict[str, str]:
    """Returns the variables under which the tree of a folder is what Python finds."""
    made_by = json.loads((folder / MADE_BY).read_text(encoding="utf-8"))
    return other_tree.environment(Path(made_by["tree"]), made_by["library"], "tests", "ci")


if __name__ == "__main__":
    sys.exit(main())
