"""Shares one loaded bundle among threads for minutes, and holds every answer and the memory.

    python ci/soak.py                               ten minutes on each CPU runtime, 8 threads
    python ci/soak.py --minutes 1 --target openvino

The model is timm's test_vit with ToMe, random weights under a seed, compiled for 1 and for 4
samples in ``build/soak``, where other bundles may lie as well. Each runtime has a process of its
own. Before the threads start, one thread asks every question alone: 1 to 9 samples from each of
several places of a pool. Then all threads ask the same at once, and after that each thread asks in
an order of its own, by ``run``, by ``run`` into memory of its own, and by ``submit``. An answer is
the one of before, bit by bit; or it is counted, and has to be within the gate of the bundle.

The memory is the resident set, sampled twice a second. What is fitted through the samples behind
the first fifth is the median of the slopes between all pairs (Theil and Sen), which a page that
comes and goes does not move. Each runtime adds a line to ``soak.jsonl``. Exit code 1: an answer was
wrong, a call failed, or the memory grew by more than is allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tokexport.exporter.system.machine import describe_machine
from tokexport.runtimes import Runner, load
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor
from tokexport.runtimes.verification import verify_bundle

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "ci" / "soak.jsonl"
FOLDER = ROOT / "build" / "soak"
TARGETS = ("ort", "openvino")
MODEL, RECIPE, SIDE = "test_vit", "tome:r=8", 160
BATCHES = (1, 4)
#: Questions are 1 to so many samples, from places of a pool of samples.
MOST_SAMPLES, PLACES = 9, 8
WAYS = ("run", "out", "submit")
SEED = 0
#: The first part of the time, whose memory does not count, and the seconds between samples.
WARM, INTERVAL_S = 0.2, 0.5
#: How often all threads ask each question at once, before anything is measured.
RUSHES = 5
#: How many messages of failed calls are kept.
_MOST_MESSAGES = 5
#: The most points that a slope is fitted through: the pairs are their square.
_MOST_POINTS = 600


@dataclass(frozen=True)
class Question:
    """What is asked, and the answer that one thread got alone.

    Attributes:
        arrays: The inputs.
        answer: The outputs.
    """

    arrays: dict[str, Array]
    answer: dict[str, Array]


@dataclass(frozen=True)
class Soaked:
    """What some threads found.

    Attributes:
        seconds: How long they asked.
        answers: How many answers they got, by the way of asking.
        samples: How many samples were in them.
        other_bits: How many answers were within the gate, and not the same bits.
        wrong: How many were beyond the gate.
        failed: How many calls raised.
        messages: The first errors.
        rss_mib: The memory at the beginning and behind each tenth of the time.
        grown_mib: What the fitted slope comes to behind the first fifth.
        files: Open files at the beginning and at the end.
    """

    seconds: float
    answers: dict[str, int]
    samples: int
    other_bits: int
    wrong: int
    failed: int
    messages: tuple[str, ...]
    rss_mib: tuple[float, ...]
    grown_mib: float
    files: tuple[int, int]


def main() -> int:
    """Soaks each runtime in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=8, help="How many ask at once.")
    parser.add_argument("--runtime-threads", type=int, default=2, help="Those of the runtime.")
    said = "The most MiB by which the memory may grow, by its slope behind the first fifth."
    parser.add_argument("--allowed-mib", type=float, default=8, help=said)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Where the bundles are.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # a bundle, in this process
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one_bundle(options.one, options), ensure_ascii=False))
        return 0
    passed = True
    for target in options.target or TARGETS:
        bundle = options.folder / target
        if not bundle.exists():
            make(target, bundle)
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(bundle)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(line, indent=2, ensure_ascii=False), flush=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        passed &= line["passed"]
    return 0 if passed else 1


def make(target: str, bundle: Path) -> None:
    """Compiles the bundle in a process of its own, whose memory is not measured."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    program = f"import sys; sys.path[:0] = [{str(ROOT / 'ci')!r}, {str(ROOT / 'tests')!r}]\n"
    program += f"import soak; soak.compile_bundle({target!r}, {str(bundle)!r})"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=sys.stderr)


def compile_bundle(target: str, output: str) -> None:
    """Compiles the reduced model for both batches."""
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    import timm
    import torch

    import tokexport

    torch.manual_seed(SEED)
    image = torch.randn(1, 3, SIDE, SIDE)
    model = tokexport.reduce(timm.create_model(MODEL).eval(), RECIPE, image)
    tokexport.compile(model, image, target, output=output, batch=BATCHES, page=False)


def one_bundle(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Soaks one bundle in this process; returns the line of its result."""
    if not verify_bundle(bundle).passed:
        raise SystemExit(f"{bundle} does not pass its own gates: compile it anew.")
    with load(bundle, threads=options.runtime_threads, require_kernels=True) as runner:
        asked = questions(runner)
        found = soaked(runner, asked, options.threads, 60 * options.minutes, floor_of(runner))
        runtime, manifest = runner.runtime, runner.manifest
    assert manifest is not None  # it was loaded from a bundle
    machine = describe_machine()
    right = not (found.wrong or found.failed) and found.files[1] <= found.files[0] + 2
    kernels = runtime.details["kernels"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "passed": right and found.grown_mib <= options.allowed_mib,
        "target": runtime.name,
        "threads": options.threads,
        "runtime_threads": options.runtime_threads,
        "batches": runner.batches,
        "questions": len(asked),
        **asdict(found),
        "allowed_mib": options.allowed_mib,
        "model": manifest.source["location"],
        "token_schedule": manifest.token_schedule,
        "machine": f"{machine['processor']}, {machine['cores']['usable']} cores, "
        f"{machine['system'].partition('-')[0]}, {runtime.flavour} {runtime.version}, "
        f"kernels {kernels}, numpy {np.__version__}, Python {sys.version.split()[0]}",
    }


def floor_of(runner: Runner) -> float:
    """Returns the share by which the gate of the first output lets a value be off."""
    assert runner.manifest is not None
    gate = runner.manifest.gates[runner.outputs[0].name]
    return float(gate["local_tolerance"])


def questions(runner: Runner) -> list[Question]:
    """Asks everything once by one thread; of one question the next has an answer of its own."""
    generator = np.random.default_rng(SEED)
    pool = {
        spec.name: generator.standard_normal(
            (PLACES + MOST_SAMPLES, *spec.shape[1:]), dtype=np.float32
        )
        for spec in runner.inputs
    }
    asked = []
    for start in range(PLACES):
        for count in range(1, MOST_SAMPLES + 1):
            arrays = {name: values[start : start + count] for name, values in pool.items()}
            asked.append(Question(arrays, runner.run(arrays)))
    return asked


def soaked(
    runner: Runner, asked: Sequence[Question], threads: int, seconds: float, floor: float
) -> Soaked:
    """Lets threads ask for some seconds, and holds each answer to that of one thread alone.

    Args:
        runner: What all of them share.
        asked: The questions.
        threads: How many ask at once.
        seconds: How long; a call that is on its way is waited for.
        floor: The share of its neighbourhood's scale by which a value may be off.
    """
    stop = threading.Event()
    counts = [Counter[str]() for _ in range(threads)]
    messages: list[str] = []

    def once(own: Counter[str], way: str, one: Question) -> None:
        try:
            found = answered(runner, way, one)
        except Exception as error:  # whatever it is, it is counted and shown
            own["failed"] += 1
            messages.append(f"{way}: {error!r:.300}")
            return
        own[way] += 1
        own["samples"] += len(next(iter(one.arrays.values())))
        own[judged(one.answer, found, floor)] += 1

    def ask(own: Counter[str], number: int) -> None:
        order = random.Random(number)
        while not stop.is_set():
            once(own, order.choice(WAYS), order.choice(asked))

    def rush(own: Counter[str], number: int) -> None:
        for way in ("run", "out"):
            for one in [*asked[:MOST_SAMPLES]] * RUSHES:
                together.wait()
                once(own, way, one)

    # A runner keeps a request for each run that was ever on its way at once. Left to chance, the
    # last of them come when every thread happens to ask the same, and look like a leak.
    together = threading.Barrier(threads)
    for worker in begun_threads(rush, counts):
        worker.join()
    files = open_files()
    rss: list[tuple[float, float]] = [(0.0, resident_mib())]
    begun = time.monotonic()
    workers = begun_threads(ask, counts)
    while (passed := time.monotonic() - begun) < seconds:
        time.sleep(min(INTERVAL_S, seconds - passed))
        rss.append((time.monotonic() - begun, resident_mib()))
    stop.set()
    for worker in workers:
        worker.join()
    whole = sum(counts, Counter[str]())
    late = [point for point in rss if point[0] >= WARM * seconds]
    return Soaked(
        seconds=round(time.monotonic() - begun, 1),
        answers={way: whole[way] for way in WAYS},
        samples=whole["samples"],
        other_bits=whole["other bits"],
        wrong=whole["wrong"],
        failed=whole["failed"],
        messages=tuple(messages[:_MOST_MESSAGES]),
        rss_mib=tuple(round(rss[round(tenth * (len(rss) - 1) / 10)][1], 1) for tenth in range(11)),
        grown_mib=round(slope(late) * (late[-1][0] - late[0][0]), 2),
        files=(files, open_files()),
    )


def begun_threads(
    work: Callable[[Counter[str], int], None], counts: Sequence[Counter[str]]
) -> list[threading.Thread]:
    """Begins a thread for each counter, which the work gets with its number."""
    made = [threading.Thread(target=work, args=(own, number)) for number, own in enumerate(counts)]
    for thread in made:
        thread.start()
    return made


def resident_mib() -> float:
    """Returns the memory of this process that is resident, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    """Returns how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def answered(runner: Runner, way: str, one: Question) -> Mapping[str, Array]:
    """Asks one question in one way."""
    match way:
        case "submit":
            return runner.submit(one.arrays).result()
        case "out":
            # What was there before is no answer: a run that writes nothing is found.
            room = {name: np.full_like(value, np.nan) for name, value in one.answer.items()}
            return runner.run(one.arrays, out=room)
        case _:
            return runner.run(one.arrays)


def judged(wanted: Mapping[str, Array], found: Mapping[str, Array], floor: float) -> str:
    """Returns ``same``, ``other bits`` where the values are within the floor, or ``wrong``."""
    if wanted.keys() != found.keys():
        return "wrong"
    pairs = [(value, found[name]) for name, value in wanted.items()]
    if any(one.shape != other.shape or one.dtype != other.dtype for one, other in pairs):
        return "wrong"
    if all(one.tobytes() == other.tobytes() for one, other in pairs):
        return "same"
    within = all(within_local_floor(one, other, floor) for one, other in pairs)
    return "other bits" if within else "wrong"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Returns the median of the slopes between all pairs of points; 0 of fewer than two."""
    points = points[:: -(-len(points) // _MOST_POINTS)]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(points)
        for later in points[place + 1 :]
    ]
    return statistics.median(slopes) if slopes else 0.0


if __name__ == "__main__":
    sys.exit(main())
