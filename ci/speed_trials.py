"""Tries whether ``compare_speed`` finds a slowdown, and whether it finds one where nothing changed.

    python ci/speed_trials.py make             compiles the bundles and fits what is planted
    python ci/speed_trials.py run              goes on with the trials where they stopped
    python ci/speed_trials.py run --minutes 20     begins none after so long
    python ci/speed_trials.py write            SPEED_TRIALS.md, from what is known

The bundle is DeiT-T with ToMe, and random weights under a seed. A trial compares it with itself
(``A/A``), or with the same model and a product beside it that reads the image and adds nothing
to be seen to the logits (``planted``): real work in the artifact, of a width that ``make`` fits
until it costs 6 %, on one thread and on all. The gate is 3 %, the time three minutes. Each trial is
a process of its own, and becomes a line of ``speed_trials.jsonl`` at once, so the script may be
stopped at any time.

Close other programs before those on all threads, which the clock times: what was withheld of the
cores is written beside each answer, and the page counts quiet trials apart. Those on one thread are
timed by processor time, and bear neighbours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "ci" / "speed_trials.jsonl"
PAGE = ROOT / "ci" / "SPEED_TRIALS.md"
FOLDER = ROOT / "build" / "speed-trials"
TARGETS = ("ort", "openvino")
#: On how many threads trials run: None leaves it to the runtime.
THREADS: dict[str, int | None] = {"one": 1, "all": None}
EQUAL, PLANTED = "A/A", "planted"
#: How many trials of each kind are wanted on a target, on one thread and on all.
COUNTS = {EQUAL: 200, PLANTED: 50}
MODEL, RECIPE = "deit_tiny_patch16_224", "tome:r=13"
SLOWDOWN, GATE = 0.06, 0.03
SEED = 0
#: The shape that the planted product reads an image (1, 3, 224, 224) in, and its first width.
ROWS, DEPTH, FIRST_WIDTH = 588, 256, 304
#: How often the width is fitted, and how near to the slowdown it has to come.
FITS, NEAR = 4, 0.01
#: What names a trial.
NAMES = ("target", "threads", "kind", "number")
#: The share of the rounds' time that may be withheld in a trial that counts as quiet.
QUIET = 0.05


def main() -> int:
    """Makes, runs or writes, as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Where the bundles are.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("make", "Compiles the bundles."), ("run", "Goes on with the trials.")):
        command = commands.add_parser(name, help=does)
        command.add_argument("--target", action="append", choices=TARGETS)
        command.add_argument("--threads", action="append", choices=tuple(THREADS))
        if name == "make":
            said = "Of the planted product, to begin with."
            command.add_argument("--width", type=int, default=FIRST_WIDTH, help=said)
        if name == "run":
            command.add_argument("--minutes", type=float, default=float("inf"))
            command.add_argument("--kind", action="append", choices=tuple(COUNTS))
    commands.add_parser("write", help="Writes the page.")
    one = commands.add_parser("trial")
    one.add_argument("old", type=Path)
    one.add_argument("new", type=Path)
    one.add_argument("threads", choices=tuple(THREADS))
    options = parser.parse_args()
    match options.command:
        case "make":
            sys.path.insert(0, str(ROOT / "tests"))
            for target in options.target or TARGETS:
                ways = options.threads or tuple(THREADS)
                make(target, options.folder / target, ways, options.width)
        case "run":
            end = time.monotonic() + 60 * options.minutes
            chosen = [
                one
                for one in wanted()
                if one.target in (options.target or TARGETS)
                and one.threads in (options.threads or THREADS)
                and one.kind in (options.kind or COUNTS)
            ]
            run(options.folder, chosen, end)
        case "write":
            PAGE.write_text(page(known()), encoding="utf-8")
        case _:
            print(json.dumps(answer(options.old, options.new, options.threads)))
    return 0


@dataclass(frozen=True)
class Trial:
    """One comparison of two bundles.

    Attributes:
        target: What they are compiled for.
        threads: On how many threads they run.
        kind: Whether work is planted into the new one.
        number: Which of its kind it is.
    """

    target: str
    threads: str
    kind: str
    number: int


def known() -> list[dict[str, Any]]:
    """Returns the trials so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def model_with(width: int) -> tuple[nn.Module, Tensor]:
    """Builds the reduced model with a product of a width beside it, none where that is 0."""
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    import timm
    import torch
    from torch import nn

    import tokexport

    torch.manual_seed(SEED)
    image = torch.randn(1, 3, 224, 224)
    reduced = tokexport.reduce(timm.create_model(MODEL).eval(), RECIPE, image)
    if not width:
        return reduced, image

    class Planted(nn.Module):
        """The model, and a product whose mean is far below the rounding of the logits."""

        def __init__(self) -> None:
            super().__init__()
            self.model = reduced
            self.weight = nn.Parameter(torch.randn(DEPTH, width) / math.sqrt(DEPTH))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Returns the logits (1, classes) of an image (1, 3, 224, 224)."""
            product = image.reshape(ROWS, DEPTH) @ self.weight
            logits: torch.Tensor = self.model(image)
            return logits + 1e-30 * product.mean()

    return Planted().eval(), image


def make(target: str, folder: Path, ways: Sequence[str], first_width: int) -> None:
    """Compiles the bundle if it is not there, and one with planted work for each way to run it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain"
    if not plain.exists():
        compiled(target, 0, plain)
    for threads in ways:
        width = first_width
        for _ in range(FITS):
            planted = compiled(target, width, folder / f"planted-{threads}")
            ratio, withheld = cost(plain, planted, THREADS[threads])
            fitted = {"width": width, "ratio": ratio, "withheld": withheld}
            fitted_file(folder, threads).write_text(json.dumps(fitted), encoding="utf-8")
            print(target, threads, fitted, flush=True)
            if abs(ratio - 1 - SLOWDOWN) <= NEAR:
                break
            width = max(8, round(width * SLOWDOWN / max(ratio - 1, SLOWDOWN / 4) / 8) * 8)
        else:
            print(f"{target}, {threads}: no width is within {NEAR:.1%}; make it on a quiet machine")


def fitted_file(folder: Path, threads: str) -> Path:
    """Returns where it is kept what planted work costs."""
    return folder / f"planted-{threads}.json"


def compiled(target: str, width: int, output: Path) -> Path:
    """Compiles the model with a planted product of a width."""
    import tokexport

    model, image = model_with(width)
    tokexport.compile(model, image, target, output=output, timed=False, force=True)
    return output


def cost(
    plain: Path, planted: Path, threads: int | None, loads: int = 6, seconds: float = 6.0
) -> tuple[float, float]:
    """Returns how many times as long the planted bundle takes, and the share that was withheld.

    The ratio is that of medians over several loads of both.
    """
    from tokexport.exporter.speed.paired_bundles import compare_speed
    from tokexport.exporter.speed.time_limits import TimeLimits

    limits = TimeLimits(bundles_s=loads * (seconds + 1), block_s=seconds)
    # a gate at the slowdown that is wanted decides nothing, and so takes all the time
    found = compare_speed(plain, planted, slower=SLOWDOWN, threads=threads, limits=limits)
    blocks = [block for one in found.sets for block in one.blocks]
    withheld = statistics.fmean(block.withheld for block in blocks)
    return math.exp(statistics.fmean(block.log_ratio for block in blocks)), withheld


def run(folder: Path, trials: Iterable[Trial], end: float) -> None:
    """Runs the trials that have no line yet."""
    done = {Trial(**{name: one[name] for name in NAMES}) for one in known()}
    for one in trials:
        if one in done:
            continue
        if time.monotonic() > end:
            return
        line = asdict(one) | in_a_process(folder / one.target, one)
        said = f"{line['verdict']} {line['ratio']:.3f}, {line['withheld']:.0%} withheld"
        print(*asdict(one).values(), said, f"{line['seconds']} s", flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def wanted() -> Iterator[Trial]:
    """Yields all trials, so that any first part of them holds every kind."""
    for number in range(max(COUNTS.values())):
        for target in TARGETS:
            for threads in THREADS:
                for kind, count in COUNTS.items():
                    if number < count:
                        yield Trial(target, threads, kind, number)


def in_a_process(folder: Path, one: Trial) -> dict[str, Any]:
    """Runs one trial in a fresh Python."""
    new = folder / (f"planted-{one.threads}" if one.kind == PLANTED else "plain")
    if not new.exists():
        sys.exit(f"There is no {new}: python ci/speed_trials.py make makes it.")
    command = [sys.executable, __file__, "trial", str(folder / "plain"), str(new), one.threads]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if one.kind == PLANTED:
        found["fitted"] = json.loads(fitted_file(folder, one.threads).read_text(encoding="utf-8"))
    return found


def answer(old: Path, new: Path, threads: str) -> dict[str, Any]:
    """Compares two bundles; returns the answer and what it rests on."""
    from tokexport.exporter.speed.paired_bundles import compare_speed

    found = compare_speed(old, new, slower=GATE, threads=THREADS[threads])
    blocks = [block for one in found.sets for block in one.blocks]
    machine, version = found.machine, found.new.runtime.version
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "verdict": found.verdict,
        **{name: getattr(found, name) for name in ("ratio", "low", "high", "pairs")},
        "sets": [len(one.blocks) for one in found.sets],
        "deviation": statistics.stdev(one.log_ratio for one in blocks) if len(blocks) > 1 else None,
        "withheld": statistics.fmean(block.withheld for block in blocks),
        "load": os.getloadavg()[0],
        "median_ms": found.old.median_ms,
        "seconds": round(found.seconds, 1),
        "machine": f"{machine['processor']}, {machine['cores']['usable']} cores, "
        f"{machine['system'].partition('-')[0]}, {found.new.runtime.flavour} {version}",
        "notes": found.notes,
    }


def page(trials: Sequence[dict[str, Any]]) -> str:
    """Returns the page: the rates of all trials, and of the quiet ones alone."""
    quiet = [one for one in trials if one["withheld"] <= QUIET]
    planted = [one for one in trials if one["kind"] == PLANTED]
    lines = [
        "# Is a slower bundle found, and an equal one let through?",
        "",
        "Written by `python ci/speed_trials.py write`, from `speed_trials.jsonl`. A trial is one "
        f"`compare_speed` with {GATE:.0%} allowed and three minutes, of {MODEL} with {RECIPE} "
        "beside itself (A/A) or beside the same with a product planted into it. "
        f"{len(trials)} of {len([*wanted()])} have been run.",
        "",
        "- slower: an A/A trial that says so is a false alarm, a planted one found it",
        "- undecided: the time ended before the interval lay on one side, which is no failure",
        "- withheld: the share of the rounds' time in which the process waited for a core, or was "
        "kept from it by a hypervisor or a quota, mean; processor time, which times the rounds on "
        "one thread, leaves the waiting out",
        "- load: the load average of the machine at the end, mean",
        "- deviation: of the blocks' log ratios, the median of the trials",
        "",
    ]
    costs = sorted({fitted_to(one) for one in planted})
    lines += [f"- Planted: {one}" for one in costs]
    for machine in sorted({one["machine"] for one in trials}):
        lines.append(f"- Machine: {machine}")
    lines += ["", "## Undisturbed trials", "", f"At most {QUIET:.0%} of the time was withheld.", ""]
    lines += table(quiet)
    lines += ["", "## All trials", "", *table(trials)]
    return "\n".join(lines) + "\n"


def table(trials: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a row for each target, number of threads and kind."""
    heads = [
        *("target", "threads", "kind", "trials", "slower", "not slower", "undecided"),
        *("ratio", "seconds", "deviation", "withheld", "load"),
    ]
    rows = [f"| {' | '.join(heads)} |", f"| --- | --- | --- |{' ---: |' * (len(heads) - 3)}"]
    for key in itertools.product(TARGETS, THREADS, COUNTS):
        own = [one for one in trials if (one["target"], one["threads"], one["kind"]) == key]
        if own:
            rows.append(f"| {' | '.join((*key, *cells(own)))} |")
    return rows if len(rows) > 2 else ["None yet."]


def fitted_to(one: dict[str, Any]) -> str:
    """Returns what planted work costs, by the rounds that it was fitted in."""
    fitted = one["fitted"]
    return (
        f"{one['target']}, {one['threads']}: a product {fitted['width']} channels wide, which took "
        f"{fitted['ratio']:.3f} times as long, {fitted['withheld']:.0%} of the time withheld"
    )


def cells(trials: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the cells of a row: counts with their shares, and medians."""
    count = Counter(one["verdict"] for one in trials)
    yield str(len(trials))
    for verdict in ("slower", "not slower", "undecided"):
        yield f"{count[verdict]} ({count[verdict] / len(trials):.1%})"
    yield f"{statistics.median(one['ratio'] for one in trials):.3f}"
    yield f"{statistics.median(one['seconds'] for one in trials):.0f}"
    scattered = [one["deviation"] for one in trials if one["deviation"] is not None]
    yield f"{statistics.median(scattered):.1%}" if scattered else "–"
    yield f"{statistics.fmean(one['withheld'] for one in trials):.0%}"
    yield f"{statistics.fmean(one['load'] for one in trials):.1f}"


if __name__ == "__main__":
    sys.exit(main())
