"""Puts every training-free method into plain ViTs at their real sizes, and compiles each pair.

    python ci/reduction_matrix.py                  goes on where it stopped
    python ci/reduction_matrix.py --minutes 60     stops after the cell that is then at work
    python ci/reduction_matrix.py --table          writes REDUCTION_MATRIX.md from what is known

A cell is a model, a method and a batch; one capture serves all three targets. Its result goes to a
line of ``ci/reduction_matrix.jsonl`` at once, so the script may be stopped at any time. The models
have random weights under a seed; open_clip, torchvision and timm build them at their published
sizes, transformers from its default configurations.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "ci" / "reduction_matrix.jsonl"
TABLE = ROOT / "ci" / "REDUCTION_MATRIX.md"
TARGETS = ("ort", "openvino", "trt")
BATCHES = (1, 4)
#: An input on which a near-tie is crossed proves nothing: this many others are tried.
SEEDS = 3
RECIPES = {
    "tome": "tome:r=8",
    "mctf": "mctf:r=8",
    "pitome": "pitome:keep=0.95",
    "tofu": "tofu:keep=0.95",
    "dct": "dct:keep=0.95",
    "diffrate": "",
    "evit": "evit:keep=0.7",
    "topk": "topk:keep=0.7",
    "random": "random:keep=0.7",
    "dpcknn": "dpcknn:keep=0.7",
    "divprune": "divprune:keep=0.098",
    "vtc-cls": "vtc-cls:tokens=16",
    "aim-merge": "aim-merge",
}
NO_POSITIONS = {("timm eva02_tiny", "dct"): "no rows to rotate: refused"}


def main() -> int:
    """Runs the cells that are missing, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--model", action="append", help="Only this one; may be repeated.")
    parser.add_argument("--table", action="store_true", help="Write the table and stop.")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    if options.table:
        TABLE.write_text(table(known()), encoding="utf-8")
        return 0
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    end = time.monotonic() + 60 * options.minutes
    done = {(one["model"], one["method"], one["batch"]) for one in known()}
    for batch in BATCHES:
        for name in options.model or MODELS:
            for method in RECIPES:
                if (name, method, batch) in done or (name, method) in NO_POSITIONS:
                    continue
                if time.monotonic() > end:
                    return 0
                for seed in range(SEEDS):
                    found = cell(name, method, batch, seed)
                    if "near-tie" not in found.get("failed", ""):
                        break
                result = {"model": name, "method": method, "batch": batch, **found}
                print(json.dumps(result), flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
    return 0


def known() -> list[dict[str, Any]]:
    """Returns the results so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def cell(name: str, method: str, batch: int, seed: int) -> dict[str, Any]:
    """Compiles one pair for all targets; returns what each gave, or why it failed."""
    import onnx_ir as ir
    import torch

    import tokexport
    from tokexport.exporter.backends.known import BACKENDS
    from tokexport.exporter.build.artifact import build
    from tokexport.exporter.build.onnx_file import save_onnx
    from tokexport.graph_passes import pipelines
    from tokexport.runtimes.openvino.runner import OpenVinoRunner
    from tokexport.runtimes.ort.runner import OrtRunner

    torch.manual_seed(0)
    model, side = MODELS[name]()
    model = model.eval()
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
    recipe = RECIPES[method] or diffrate(model, x)
    found: dict[str, Any] = {"recipe": recipe}
    begin = time.monotonic()
    try:
        reduced = tokexport.reduce(model, recipe, x)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            result = tokexport.compile(
                reduced, x, output=path / "ort", keep_stages=True, timed=False
            )
            report = result.report
            found["tokens"] = report.token_schedule
            found["ort"] = result.status
            found["error"] = max(
                one.relative for stage in report.stages for one in stage.comparisons.values()
            )
            found["ties"] = len([stage for stage in report.stages if getattr(stage, "ties", None)])
            emitted = path / "ort.stages" / "emitted" / "model.onnx"
            (gate,) = list(report.gates.values())[:1]
            with OrtRunner.from_file(path / "ort" / "model.onnx") as ort:
                (spec,) = ort.inputs
                wanted = ort.run({spec.name: x.numpy()})
            for target in TARGETS[1:]:
                lowered = path / f"{target}.onnx"
                try:
                    save_onnx(
                        pipelines.lower(ir.load(emitted), pipelines.lowering(target)).model, lowered
                    )
                    (path / target).mkdir()
                    build(BACKENDS[target], lowered, path / target)
                    found[target] = "BUILT, NOT RUN"
                    if target == "openvino":
                        with OpenVinoRunner.from_file(path / target / "model.xml") as runner:
                            given = runner.run({spec.name: x.numpy()})
                        first = next(iter(wanted))
                        off = float(abs(given[first] - wanted[first]).max()) / gate.scale
                        found["openvino_error"] = off
                        found[target] = "PASSED"
                        if off > 2 * gate.tolerance:  # a near-tie, or wrong: the compile decides
                            compiled = tokexport.compile(
                                reduced, x, target, output=path / "compiled", timed=False
                            )
                            found[target] = compiled.status
                except Exception as error:
                    found[target] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    found["seconds"] = round(time.monotonic() - begin, 1)
    return found


def diffrate(model: Any, x: Any) -> str:
    """Returns a schedule that falls evenly to a third, for as many blocks as the model has."""
    from tokexport.exporter.eager.flat_model import FlatModel, call_spec
    from tokexport.exporter.reduction.blocks.search import find_blocks

    blocks = find_blocks(FlatModel(model, call_spec(model, (x,), {})), (x,), None)
    count, depth = int(blocks[0].call.x.shape[1]), len(blocks)
    merge = [count - count * 2 * layer // (3 * depth) for layer in range(depth)]
    prune = [min(count, left + 3) for left in merge]
    return f"diffrate:prune={prune},merge={merge}"


def table(results: list[dict[str, Any]]) -> str:
    """Returns what is known in Markdown: a row a model and batch, a column a method."""
    lines = [
        "# Every training-free method in plain ViTs at their real sizes",
        "",
        "Written by `python ci/reduction_matrix.py --table`. A cell holds ort / openvino / trt: "
        "✓ passed the fp32 gate, b built and not run, – refused with a reason, ✗ failed, "
        "empty not run yet.",
        "",
        f"| model | batch | {' | '.join(RECIPES)} |",
        f"|{' --- |' * (len(RECIPES) + 2)}",
    ]
    cells = {(one["model"], one["batch"], one["method"]): one for one in results}
    for name in MODELS:
        for batch in BATCHES:
            row = [shown(name, method, cells.get((name, batch, method))) for method in RECIPES]
            lines.append(f"| {name} | {batch} | {' | '.join(row)} |")
    failed = [one for one in results if any("✗" in mark(one, target) for target in TARGETS)]
    lines += ["", f"{len(results)} cells run, {len(failed)} with a failure."]
    lines += [
        f"- {one['model']}, {one['method']}, batch {one['batch']}: {why(one)}" for one in failed
    ]
    if results:
        worst = max((one for one in results if "error" in one), key=lambda one: one["error"])
        lines.append(
            f"\nLargest error of any stage of ort: {worst['error']:.1e} of the output's scale "
            f"({worst['model']}, {worst['method']}, batch {worst['batch']})."
        )
    return "\n".join(lines) + "\n"


def shown(name: str, method: str, found: dict[str, Any] | None) -> str:
    """Returns one cell."""
    if (name, method) in NO_POSITIONS:
        return "–"
    return "" if found is None else "/".join(mark(found, target) for target in TARGETS)


def mark(found: dict[str, Any], target: str) -> str:
    """Returns one letter for one target."""
    return {"PASSED": "✓", "BUILT, NOT RUN": "b"}.get(found.get(target, ""), "✗")


def why(found: dict[str, Any]) -> str:
    """Returns the reasons of a cell that failed."""
    reasons = [found["failed"]] if "failed" in found else []
    reasons += [
        f"{target}: {found[target]}"
        for target in TARGETS
        if found.get(target) not in (None, "PASSED", "BUILT, NOT RUN")
    ]
    return "; ".join(reasons)


def _timm(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, **options)


def _torchvision() -> Any:
    import torch
    import torchvision

    model = torchvision.models.vit_b_16()
    # torchvision starts the head with zeros, and what is zero proves nothing.
    torch.nn.init.trunc_normal_(model.heads[-1].weight, std=0.02)
    return model


def _transformers(kind: str) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")())


def _open_clip() -> Any:
    import open_clip

    return open_clip.create_model("ViT-B-32").visual


#: Builds a model and says the side of its square images; the cheap ones come first.
MODELS: dict[str, Callable[[], tuple[Any, int]]] = {
    "timm deit_tiny": lambda: (_timm("deit_tiny_patch16_224"), 224),
    "timm eva02_tiny": lambda: (_timm("eva02_tiny_patch14_224"), 224),
    "timm deit_small": lambda: (_timm("deit_small_patch16_224"), 224),
    "open_clip ViT-B-32": lambda: (_open_clip(), 224),
    "transformers CLIP": lambda: (_transformers("CLIPVision"), 224),
    "timm dinov2 small reg4": lambda: (_timm("vit_small_patch14_reg4_dinov2", img_size=224), 224),
    "torchvision vit_b_16": lambda: (_torchvision(), 224),
    "transformers ViT": lambda: (_transformers("ViT"), 224),
    "transformers DINOv2": lambda: (_transformers("Dinov2"), 224),
    "timm vit_base": lambda: (_timm("vit_base_patch16_224"), 224),
}


if __name__ == "__main__":
    sys.exit(main())
