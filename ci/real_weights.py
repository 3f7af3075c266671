"""Tries trained weights on images: DINOv2 ViT-S/14, reduced and in every precision.

    python ci/real_weights.py rebuild    fetches weights and images, and rebuilds the model
    python ci/real_weights.py head       trains a linear head on Fashion-MNIST
    python ci/real_weights.py sides      how good and how slow the model is at other image sizes
    python ci/real_weights.py run        goes on where it stopped; --minutes 60 begins no more then
    python ci/real_weights.py table      writes REAL_WEIGHTS.md and its plot from what is known

Each command does what those before it left out, but ``table``. A configuration is a reduction, a
target and a precision: it is compiled as ``tokexport compile FOLDER --inputs`` does it, on training
images that the head did not see, and its bundle then classifies test images. Its result goes to a
line of ``ci/real_weights.jsonl`` at once, so the script may be stopped at any time. What it fetches
and makes lies in ``build/real-weights`` or under ``--cache``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from places import without_places

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "ci" / "real_weights.jsonl"
CACHE = ROOT / "build" / "real-weights"
SIDE = 112
SIDES = (56, 84, 112, 140, 168)
#: Target and precision; behind int8 of ort, how it finds its ranges.
PRECISIONS = (
    *(("ort", "fp32"), ("ort", "int8 dynamic"), ("openvino", "int8"), ("openvino", "fp32")),
    *(("openvino", "bf16"), ("ort", "int8 static"), ("openvino", "fp16")),
)
#: How many of the proof's images do in fp32; elsewhere the accuracy on them is a gate too.
FEW = 64
#: Reductions that are asked for in all of these, and those that are in the first four.
FULLY = ("", "tome:r=4", "evit:keep=0.65")
PARTLY = ("pitome:keep=0.9", "mctf:r=4", "dct:keep=0.9")
#: All, the others for ort in fp32; the middle strength of a method comes first.
RECIPES = (
    *(*FULLY, "tome:r=4,restore=true", *PARTLY, "tofu:keep=0.9", "topk:keep=0.65"),
    *("dpcknn:keep=0.65", "random:keep=0.65"),
    "diffrate:prune=[65,60,56,52,48,44,40,36,32,28,24,20],"
    "merge=[65,58,54,50,46,42,38,34,30,26,22,18]",
    *("tome:r=2", "tome:r=5", "pitome:keep=0.95", "pitome:keep=0.85", "tofu:keep=0.95"),
    *("tofu:keep=0.85", "dct:keep=0.95", "dct:keep=0.85", "mctf:r=2", "mctf:r=5"),
    *("evit:keep=0.8", "evit:keep=0.5", "topk:keep=0.8", "topk:keep=0.5", "dpcknn:keep=0.8"),
    *("dpcknn:keep=0.5", "random:keep=0.8", "random:keep=0.5"),
)


@dataclass(frozen=True)
class Configuration:
    """The configuration of one line of the results.

    Attributes:
        recipe: The reduction, '' for none.
        target: ``ort`` or ``openvino``.
        precision: The precision; behind it, for int8 of ort, how ranges are found.
        side: Height and width of the images.
    """

    recipe: str
    target: str
    precision: str
    side: int = SIDE

    @classmethod
    def of(cls, line: dict[str, Any]) -> Configuration:
        """Returns that of a line of the results."""
        return cls(line["recipe"], line["target"], line["precision"], line["side"])

    @property
    def name(self) -> str:
        """A name for files."""
        parts = (self.recipe.replace(":", "-") or "unreduced", self.target, self.precision)
        return f"{'-'.join(parts)}-{self.side}".replace(" ", "-")


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("rebuild", "head", "sides", "run", "table"))
    parser.add_argument("--cache", type=Path, default=CACHE, help="The folder of what it makes.")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--recipe", action="append", help="Only this one; '' for none.")
    parser.add_argument("--again", action="store_true", help="Run what is known anew, too.")
    options = parser.parse_args()
    if options.command == "table":
        from real_weights_page import write_page

        write_page(known(), list(configurations()))
        return 0
    # Its image models import torchvision, which needs an operator that some builds leave out.
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    from trained_classifier import Setting

    setting = Setting(options.cache, SIDE)
    if options.command == "rebuild":
        print(setting.backbone(), (setting.backbone() / "rebuilt.json").read_text())
    elif options.command == "head":
        print(setting.folder(), (setting.folder() / "head.json").read_text())
    elif options.command == "sides":
        sides(setting)
    else:
        run(setting, options)
    return 0


def configurations() -> Iterator[Configuration]:
    """Yields all configurations, the most informative ones of both lists first."""
    asked = [
        (place + further, Configuration(recipe, *one))
        for place, recipe in enumerate(RECIPES)
        for further, one in enumerate(PRECISIONS)
        if recipe in FULLY or further < (4 if recipe in PARTLY else 1)
    ]
    for _, one in sorted(asked, key=lambda each: each[0]):
        yield one


def known() -> list[dict[str, Any]]:
    """Returns the results there are, of each configuration or size the last."""
    if not RESULTS.exists():
        return []
    lines = [json.loads(text) for text in RESULTS.read_text(encoding="utf-8").splitlines()]
    by_key = {Configuration.of(line) if "recipe" in line else line["side"]: line for line in lines}
    return list(by_key.values())


def keep(line: dict[str, Any]) -> None:
    """Adds a result to the file."""
    text = without_places(json.dumps(line, ensure_ascii=False))
    print(text, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def sides(setting: Any) -> None:
    """Measures the unreduced model in eager at every size that is not known."""
    from trained_classifier import measured_side

    done = {line["side"] for line in known() if "recipe" not in line}
    for side in SIDES:
        if side not in done:
            keep({"side": side, **measured_side(type(setting)(setting.cache, side))})


def run(setting: Any, options: argparse.Namespace) -> None:
    """Runs the configurations that are missing."""
    end = time.monotonic() + 60 * options.minutes
    done = set() if options.again else {Configuration.of(one) for one in known() if "recipe" in one}
    for one in configurations():
        if one in done or (options.recipe and one.recipe not in options.recipe):
            continue
        if time.monotonic() > end:
            return
        begin, load = time.monotonic(), os.getloadavg()[0]
        found = measured(one, setting)
        found["seconds"] = round(time.monotonic() - begin, 1)
        found["load"] = [round(load, 1), round(os.getloadavg()[0], 1)]
        keep({**vars(one), **found})


def measured(one: Configuration, setting: Any) -> dict[str, Any]:
    """Compiles one configuration, and classifies the images of the evaluation with its bundle."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=setting.cache) as folder:
        bundle = Path(folder) / "bundle"
        said = compiled(one, setting, setting.proof(), bundle)
        found["proof"] = said
        if not bundle.exists() and "labelled samples" in said.get("refused", ""):
            # What the images of the evaluation lose is to be known all the same.
            found["unlabelled"] = compiled(one, setting, setting.proof(labelled=False), bundle)
        if bundle.exists():
            found["evaluation"] = evaluated(one, setting, bundle)
            found["speed"] = speed(one, setting, bundle)
            if not one.recipe and "refused" not in said:
                kept = setting.cache / f"bundle-{one.name}"
                shutil.rmtree(kept, ignore_errors=True)
                bundle.rename(kept)
    return found


def compiled(one: Configuration, setting: Any, inputs: Path, bundle: Path) -> dict[str, Any]:
    """Compiles as the command line does; returns the report's figures, or why it failed."""
    import tokexport
    from tokexport.exporter.exit_codes import ExitCode, exit_code_of
    from tokexport.exporter.source import SourceOptions, load_source

    precision, _, quantization = one.precision.partition(" ")
    try:
        report = tokexport.compile(
            load_source(SourceOptions(source=str(setting.folder()))),
            target=one.target,
            output=bundle,
            inputs=inputs,
            samples=FEW if precision == "fp32" else None,
            input_shape=setting.shape,
            reduce=one.recipe or None,
            precision=precision,
            quantization=quantization or None,
            threads=1,
            timed=False,
        ).report
    except Exception as error:
        code = exit_code_of(error)
        if code is ExitCode.INTERNAL:
            raise
        partly = getattr(error, "report", None)
        refused = {"refused": str(error), "code": int(code)}
        return refused | ({} if partly is None else reported(partly))
    return {"status": report.status} | reported(report)


def reported(report: Any) -> dict[str, Any]:
    """Returns what is kept of a report."""
    use, edges = report.reduction, report.edges
    return {
        "samples": report.samples,
        "tokens": list(report.token_schedule),
        "stages": {stage.name: stage_said(stage) for stage in report.stages},
        "accuracy": report.accuracy and [report.accuracy.before, report.accuracy.after],
        "unreduced_accuracy": use and use.accuracy_unreduced,
        "edges": list(edges.lines()) if edges is not None else [],
        "warnings": list(report.warnings),
        "runtime": report.runtime and f"{report.runtime.flavour} {report.runtime.version}",
        "stage_seconds": {name: round(s, 1) for name, s in report.stage_seconds.items()},
    }


def stage_said(stage: Any) -> dict[str, Any]:
    """Returns what is kept of a step of the proof."""
    (comparison,) = stage.comparisons.values() or (None,)
    (gate,) = stage.gates.values() or (None,)
    said: dict[str, Any] = {"passed": stage.passed, "detail": stage.detail}
    if comparison is not None:
        said |= {"relative": comparison.relative, "cosine": comparison.cosine}
    if comparison is not None and gate is not None and gate.holds_over_all:
        said["of_spread"] = gate.spread_error(comparison)
    for worst in stage.worst.values():
        said["share_of_gate"] = worst.share
    if stage.ties is not None:
        ties = stage.ties
        said["ties"] = {"images": len(ties.batches), "flips": ties.flips, "margin": ties.margin}
        said["ties"] |= {"noise": ties.score_error, "decisions": list(ties.decisions)}
    return said


def evaluated(one: Configuration, setting: Any, bundle: Path) -> dict[str, Any]:
    """Classifies the images of the evaluation; holds the answers to their classes and to eager."""
    import numpy as np
    from trained_classifier import answers

    images = setting.evaluation_images()
    logits = answers(bundle, setting.pixels(images))
    folder = setting.cache / "logits"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{one.name}.npy", logits)
    found: dict[str, Any] = {"images": len(logits)}
    found |= {"accuracy": float((logits.argmax(1) == images.labels).mean())}
    found["unreduced"] = agreement(setting.eager(), logits)
    in_fp32 = folder / f"{Configuration(one.recipe, 'ort', 'fp32', one.side).name}.npy"
    if (one.target, one.precision) != ("ort", "fp32") and in_fp32.exists():
        wanted = np.load(in_fp32)
        far = np.abs(logits - wanted).max(1) / np.abs(wanted).max()
        found["ort_fp32"] = agreement(wanted, logits)
        found["ort_fp32"]["beyond"] = {f"{x:g}": int((far > x).sum()) for x in (1e-5, 1e-4, 1e-2)}
    return found


def agreement(wanted: Any, found: Any) -> dict[str, Any]:
    """Returns how logits (N, classes) agree, as ``--reduce`` measures it."""
    from tokexport.exporter.inputs.batches import Batches
    from tokexport.exporter.reduction.agreement import agreements

    batches = Batches(("x",), {"x": wanted[:, None]}, len(wanted), None, "")
    said = agreements({"logits": wanted[:, None]}, {"logits": found[:, None]}, batches)["logits"]
    assert said is not None
    return {"top1": said.top1, "cosine": said.cosine, "kl": said.kl}


def speed(one: Configuration, setting: Any, bundle: Path) -> dict[str, Any] | None:
    """Times a bundle in interleaved rounds with the unreduced one in fp32 on the same runtime."""
    import tokexport.runtimes
    from tokexport.exporter.speed.interleaved import measure

    plain = Configuration("", one.target, "fp32", one.side)
    kept = setting.cache / f"bundle-{plain.name}"
    if one == plain or not kept.exists():
        return None
    image = setting.pixels(setting.evaluation_images())[:1]
    with (
        tokexport.runtimes.load(bundle, threads=1) as runner,
        tokexport.runtimes.load(kept, threads=1) as baseline,
    ):
        given = {runner.inputs[0].name: image}
        found = measure(
            {"plain": lambda: baseline.run(given), "this": lambda: runner.run(given)},
            baseline="plain",
        )
    ratio = found.ratios["this"]
    return {
        "over_plain": [ratio.of_medians, ratio.low, ratio.high, ratio.of_minima],
        "median_ms": found.timings["this"].median_ms,
        "plain_median_ms": found.timings["plain"].median_ms,
        "pairs": found.pairs,
    }


if __name__ == "__main__":
    sys.exit(main())
