"""Measures the cost of a compile against one plain ``torch.onnx.export`` of the same model.

The model is DeiT-S patched to merge 13 tokens in every block. Each run is a process of its own with
a model built anew, the two kinds take turns, and what is compared are the medians over the rounds:

    time     of the compile, verified and timed, at most 3 × that of the export
    memory   of the compile's process at its peak, at most 6 × the weights + 1 GB

Other programs slow the two kinds down unequally: a compile runs the model on every core, an export
is mostly one thread. So the share of the processor that others took is measured during each run,
and a round counts where it stayed below ``MOST_OTHERS`` in both. Every round is printed, those that
do not count too, and new ones are run until ``--rounds`` count or three times as many were tried.

``python ci/measure_compile.py`` prints both and ends with 1 where one is over, with 2 where too few
rounds counted to say anything about the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
MOST_TIME = 3.0
MOST_MEMORY = 6.0
MEMORY_FLOOR_BYTES = 10**9
#: What the two runs of a round gave, by their kind.
Round = dict[str, dict[str, Any]]
#: The largest share of all cores that other processes may take in a round that counts.
MOST_OTHERS = 0.10


def main() -> int:
    """Runs the rounds and holds their medians to the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="deit_small_patch16_224", help="A ViT of timm's.")
    parser.add_argument("--target", default="ort", choices=("ort", "openvino", "trt"))
    parser.add_argument("--run", choices=("compile", "export"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_once(options.run, options.model, options.target)))
        return 0

    rounds: list[Round] = []
    counted: list[Round] = []
    while len(counted) < options.rounds and len(rounds) < 3 * options.rounds:
        kinds = ("export", "compile") if len(rounds) % 2 == 0 else ("compile", "export")
        runs = {kind: in_a_process(kind, options.model, options.target) for kind in kinds}
        rounds.append(runs)
        counts = all(run["others"] <= MOST_OTHERS for run in runs.values())
        counted += [runs] * counts
        for kind in kinds:
            print(f"round {len(rounds)}  {kind:8}  {shown(runs[kind])}")
        print(f"          {ratio(runs):.2f} ×{'' if counts else ', does not count'}", flush=True)
    return judge(f"{options.model}, r = 13, for {options.target}", rounds, counted, options.rounds)


def judge(title: str, rounds: list[Round], counted: list[Round], wanted: int) -> int:
    """Prints the medians, and returns the exit code."""
    weights = rounds[0]["compile"]["weight_bytes"]
    peaks = {
        kind: statistics.median(runs[kind]["peak_bytes"] for runs in rounds)
        for kind in ("compile", "export")
    }
    allowed = MOST_MEMORY * weights + MEMORY_FLOOR_BYTES
    print(f"\n{title}")
    print(
        f"memory  {peaks['compile'] / 1e6:.0f} MB at the peak, {allowed / 1e6:.0f} MB allowed "
        f"({MOST_MEMORY:g} × {weights / 1e6:.0f} MB of weights + 1 GB); "
        f"torch.onnx.export {peaks['export'] / 1e6:.0f} MB"
    )
    over = peaks["compile"] > allowed
    if len(counted) < wanted:
        print(
            f"time    not settled: in {len(rounds) - len(counted)} of {len(rounds)} rounds other "
            f"processes took more than {MOST_OTHERS:.0%} of the processor"
        )
        return 1 if over else 2
    seconds = {
        kind: statistics.median(runs[kind]["seconds"] for runs in counted)
        for kind in ("compile", "export")
    }
    found = seconds["compile"] / seconds["export"]
    each = [ratio(runs) for runs in counted]
    print(
        f"time    {seconds['compile']:.1f} s, {found:.2f} × the {seconds['export']:.1f} s of "
        f"torch.onnx.export (at most {MOST_TIME:g} ×); medians of the {len(counted)} rounds that "
        f"count of {len(rounds)}, one by one {min(each):.2f} … {max(each):.2f} ×"
    )
    return int(over or found > MOST_TIME)


def ratio(runs: Round) -> float:
    """Returns how many times the export's time the compile of the same round took."""
    return float(runs["compile"]["seconds"]) / float(runs["export"]["seconds"])


def in_a_process(kind: str, model: str, target: str) -> dict[str, Any]:
    """Runs ``run_once`` in a fresh Python; adds ``others``, what other processes took meanwhile."""
    command = [sys.executable, "-W", "ignore", __file__]
    command += ["--run", kind, "--model", model, "--target", target]
    begin, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    elapsed = time.monotonic() - begin
    others = (busy_seconds() - busy) - (own_seconds() - own)
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**result, "others": max(0.0, others) / (elapsed * (os.cpu_count() or 1))}


def busy_seconds() -> float:
    """Returns the processor time that all processes have taken since the start (Linux)."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    ticks = dict(zip(names, map(int, fields), strict=False))
    return (sum(ticks.values()) - ticks["idle"] - ticks["iowait"]) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Returns the processor time of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_once(kind: str, name: str, target: str) -> dict[str, Any]:
    """Compiles or exports the model once.

    Returns:
        ``seconds`` of the one call, imports it makes included; ``peak_bytes`` of this process;
        ``weight_bytes``; and the ``stages`` of a compile in seconds.
    """
    sys.path.insert(0, str(TESTS))
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    import torch
    from models.tome_patched import patched

    import tokexport

    model = patched(name)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        if kind == "compile":
            result = tokexport.compile(model, image, target, output=Path(folder) / "bundle")
            stages = dict(result.report.stage_seconds)
        else:
            torch.onnx.export(
                model, (image,), str(Path(folder) / "model.onnx"), dynamo=True, verbose=False
            )
        seconds = time.monotonic() - begin
    return {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux: KiB
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "stages": stages,
    }


def shown(run: dict[str, Any]) -> str:
    """Returns one run as a line."""
    stages = "  ".join(f"{name} {seconds:.1f}" for name, seconds in run["stages"].items())
    used = f"{run['seconds']:6.1f} s  {run['peak_bytes'] / 1e6:6.0f} MB"
    return f"{used}  others {run['others']:.0%}  {stages}"


if __name__ == "__main__":
    sys.exit(main())
