"""Runs the project's own benchmark at real sizes; ``ci/bench_page.py`` writes what is known.

    python ci/bench.py                         goes on where it stopped
    python ci/bench.py --minutes 60            begins nothing new after an hour
    python ci/bench.py --model deit_tiny_patch16_224
    python ci/bench.py --again                 measures what is known anew
    python ci/bench.py --write                 writes the pages and plots and measures nothing

A configuration is a model, a reduction, a batch and a target with its precisions. Each is one run
of ``tokexport.exporter.bench.run.bench`` in a process of its own, and becomes a line of
``ci/bench_results.jsonl`` at once, so the script may be stopped at any time. The models are timm's
with random weights under a seed: they take the time that trained ones take. How near their answers
stay to eager is held to the gates all the same.

Close other programs first: the load before and after each run is written beside its times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_figures import MODELS, REDUCTIONS, RESULTS, Configuration, latest
from bench_page import write

ROOT = Path(__file__).parents[1]
BATCHES = (1, 8)
#: By target, the precisions that are wanted of it; those it does not take here are left out.
WANTED = {"ort": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}
ROUNDS = 40
#: A measurement may take this long; a large model at batch 8 needs most of it.
TIME_LIMIT_S = 1200.0


def main() -> int:
    """Runs what is missing, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--model", action="append", help="Only this one; may be repeated.")
    parser.add_argument("--reduction", action="append", help="Only this recipe; '' for none.")
    parser.add_argument("--batch", action="append", type=int, help="Only this batch.")
    parser.add_argument("--target", action="append", choices=tuple(WANTED))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--again", action="store_true", help="Measure what is known anew, too.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="The file of results.")
    parser.add_argument("--write", action="store_true", help="Write the pages and stop.")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measured(Configuration(**json.loads(options.run)), options.rounds)))
        return 0
    if options.write:
        write(latest(options.results))
        return 0
    end = time.monotonic() + 60 * options.minutes
    done = {} if options.again else latest(options.results)
    for one in wanted(options):
        if one in done:
            continue
        if time.monotonic() > end:
            return 0
        line = in_a_process(one, options.rounds)
        print(shown(line), flush=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return 0


def wanted(options: argparse.Namespace) -> Iterator[Configuration]:
    """Yields the configurations that were asked for, the quick ones first."""
    for model in options.model or MODELS:
        for batch in options.batch or BATCHES:
            for target in options.target or WANTED:
                for reduction in options.reduction or REDUCTIONS:
                    yield Configuration(model, reduction, batch, target)


def in_a_process(one: Configuration, rounds: int) -> dict[str, Any]:
    """Measures in a fresh Python; a run that fails is a line with the reason."""
    command = [sys.executable, "-W", "ignore", __file__, "--rounds", str(rounds)]
    command += ["--run", json.dumps(vars(one))]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    line = {
        **vars(one),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - begin, 1),
    }
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {**line, "failed": said[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**line, **found}


def measured(one: Configuration, rounds: int) -> dict[str, Any]:
    """Measures one configuration; returns the benchmark as JSON has it, without every sample."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    import timm
    import torch

    from tokexport.exporter.backends.known import BACKENDS
    from tokexport.exporter.bench.config import BenchConfig
    from tokexport.exporter.bench.run import bench
    from tokexport.exporter.bench.tables import bench_json
    from tokexport.exporter.source.in_memory import source_in_memory

    torch.manual_seed(0)
    model = timm.create_model(one.model).eval()
    precisions = tuple(p for p in WANTED[one.target] if p in BACKENDS[one.target].precisions)
    config = BenchConfig(
        targets=(one.target,),
        precisions=precisions,
        batches=(one.batch,),
        reduce=one.reduction or None,
        rounds=rounds,
        time_limit_s=TIME_LIMIT_S,
    )
    found = bench_json(bench(source_in_memory(model, None), config))
    (measurement,) = found["measurements"]
    for row in measurement["rows"]:
        if row["timing"] is not None:
            del row["timing"]["samples_ms"]
    return {"machine": found["machine"], "warnings": found["warnings"], "found": measurement}


def shown(line: dict[str, Any]) -> str:
    """Returns one result in a line."""
    name = f"{line['model']} {line['reduction'] or 'unreduced'} b{line['batch']} {line['target']}"
    if "failed" in line:
        return f"{name}: {line['failed']}"
    found = line["found"]
    return f"{name}: {found['rounds']} rounds, load {found['load'][0]:.1f} … {found['load'][1]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
