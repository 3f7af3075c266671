"""Tests the proof by mutation: plants faults into every stage of models, and counts what is caught.

    python ci/proof_mutations.py --list          draws the faults, once, into proof_plants.jsonl
    python ci/proof_mutations.py                 plants those that have not been; may be stopped
    python ci/proof_mutations.py --honest        runs right artifacts on fresh inputs
    python ci/proof_mutations.py --minutes 60    stops either after so long
    python ci/proof_mutations.py --write         PROOF_MUTATIONS.md and the summary in the docs

A fault goes into a copy of one stage's graph; what is right before it is made once for each model.
It is caught where its stage, or the artifact at the edges, leaves its gate. What is not
caught is measured: a fault whose largest effect lies within what is allowed, on the samples, on
the edges and on seeds that no proof saw, is an equivalent. Each result goes to a line at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marked_parts import put_part

if TYPE_CHECKING:
    from helpers.planting.ways import Way

ROOT = Path(__file__).parents[1]
PLANTS = ROOT / "ci" / "proof_plants.jsonl"
RESULTS = ROOT / "ci" / "proof_mutations.jsonl"
HONEST = ROOT / "ci" / "honest_runs.jsonl"
TABLE = ROOT / "ci" / "PROOF_MUTATIONS.md"
PAGE = ROOT / "docs" / "explanation" / "proof.md"
SEED = 0
#: How many faults are drawn for each stage of each model.
COUNTS = {
    "captured": 8,
    "rewritten": 10,
    "emitted": 10,
    "lowered for openvino": 10,
    "built for openvino": 8,
    "kernels of openvino": 4,
    "built for ort": 10,
}
ZOO = (
    *("tome", "mctf", "pitome", "tofu", "dct", "diffrate", "evit, fused token, distilled"),
    *("dynamicvit", "divprune", "dpc-knn", "kth matching", "crossget", "super tokens", "sinkhorn"),
)
MODELS = (*ZOO, "masked detector", "pixels and words")
BATCHES = (1, 3)
#: Seeds of honest runs; those that are whole multiples of HALF run in half precisions too.
SEEDS = range(1000, 1009)
HALF = 4


def main() -> int:
    """Draws, plants, runs or writes, as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="Draw the faults and stop.")
    parser.add_argument("--honest", action="store_true", help="Run right artifacts instead.")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--model", action="append", help="Only this one; may be repeated.")
    parser.add_argument("--write", action="store_true", help="Write table and summary and stop.")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    if options.write:
        text = summary()
        TABLE.write_text(table(), encoding="utf-8")
        put_part(PAGE, "mutations", text)
        return 0
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    end = time.monotonic() + 60 * options.minutes
    models = options.model or MODELS
    if options.list:
        draw_list(models)
    elif options.honest:
        run_honest(models, end)
    else:
        plant_all(models, end)
    return 0


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the results in a file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add(path: Path, result: dict[str, Any]) -> None:
    """Writes a result behind the others."""
    with path.open("a", encoding="utf-8") as file:
        # Lines of the models are named by their paths, relative to this checkout.
        text = json.dumps(result, ensure_ascii=False).replace(f"{Path(__file__).parents[1]}/", "")
        file.write(text + "\n")


@contextmanager
def way_of(name: str, batch: int | None = None) -> Iterator[Way]:
    """Runs the stages of a model, up to the lowered graphs."""
    from helpers.planting.ways import Way

    with tempfile.TemporaryDirectory(prefix="tokexport-") as folder:
        model, example = _made(name)
        _fill_zeros(model)
        yield Way(model, example, Path(folder), batch=batch)


def _fill_zeros(model: Any) -> None:
    """Draws weights that a library starts with zeros, where no fault would have an effect."""
    import torch

    draw = torch.Generator().manual_seed(SEED)
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1, generator=draw)


def _made(name: str) -> Any:
    """Returns a model and its example inputs."""
    zoo, detectors, named = (
        importlib.import_module(f"models.{one}") for one in ("zoo", "detectors", "named_inputs")
    )
    if name == "masked detector":
        return detectors.masked_detector(2)
    if name == "pixels and words":
        return named.pixels_and_words(), named.sample(2, 0)
    return zoo.MODELS[name](SEED)


def draw_list(models: Any) -> None:
    """Draws the faults of the models that have none yet."""
    from helpers.planting.holding import draw_plants

    known = {one["model"] for one in lines(PLANTS)}
    for name in models:
        if name in known:
            continue
        with way_of(name) as way:
            for plant in draw_plants(way, name, COUNTS, SEED):
                add(PLANTS, asdict(plant))
        print(name, flush=True)


def plant_all(models: Any, end: float) -> None:
    """Plants every fault of the list that has no result."""
    from helpers.planting.holding import hold
    from helpers.planting.plants import Plant

    done = {one["key"] for one in lines(RESULTS)}
    plants = [Plant(**one) for one in lines(PLANTS)]
    for name in models:
        left = [one for one in plants if one.model == name and one.key not in done]
        if not left or time.monotonic() > end:
            continue
        with way_of(name) as way:
            for plant in left:
                if time.monotonic() > end:
                    break
                begin = time.monotonic()
                outcome = hold(way, plant)
                result = {"key": plant.key, "model": name, "stage": plant.stage}
                result |= {"kind": plant.kind, "node": plant.node, **asdict(outcome)}
                result["right"] = outcome.rightly(plant.stage)
                result["seconds"] = round(time.monotonic() - begin, 1)
                add(RESULTS, result)
        print(name, flush=True)


def run_honest(models: Any, end: float) -> None:
    """Runs the right artifacts on the inputs of every seed that has no result."""
    from helpers.planting.honest import Honest

    done = {(one["model"], one["batch"], one["seed"]) for one in lines(HONEST)}
    for batch in BATCHES:
        for name in models:
            left = [seed for seed in SEEDS if (name, batch, seed) not in done]
            if not left or time.monotonic() > end:
                continue
            with way_of(name, batch) as way:
                honest = Honest(way)
                for seed in left:
                    if time.monotonic() > end:
                        break
                    runs = honest.runs(seed, half=seed % HALF == 0)
                    add(HONEST, {"model": name, "batch": batch, "seed": seed, "runs": runs})
            print(name, batch, flush=True)


#: The outcomes of a planted fault, and their meanings.
STATES = {
    "caught": "its stage, or the artifact at the edges, fails, and that stage is named",
    "refused": "a runtime refuses to build or run it: a compile ends there",
    "equivalent": "its largest effect lies within what is allowed, on whatever was tried",
    "blamed wrong": "a compile fails, and names another stage",
    "excused": "a compile passes, and reports a near-tie that was crossed",
    "survived": "a compile passes, and the effect is beyond what is allowed",
    "gone": "the node does not exist any more",
}


#: What explains the plants of a state.
NOTES = {
    "survived": "All three change what TOFU matches by and nothing else: one channel of the keys, "
    "or the rounding of the rows that are compared. The scores are then off by less than they are "
    "apart, and the 37 tokens of an image are merged as before on all samples and edges; on other "
    "seeds one choice turns. Scores by themselves are compared only where a step leaves its gate. "
    "A model of 197 tokens makes some 1,000 of these choices an image.",
    "gone": "Passes that were added since the list was drawn removed the node.",
    "excused": "Equal scores come in another order where torch's own top-k has none for them, so "
    "any is taken for right, and the report says so. Where the model asks for one, by a stable "
    "sort or an arg-max, it is held to it.",
    "refused": "An argument of a kernel that is one more asks for rows that are not there, or "
    "gives another shape than the model says; the runtime checks both.",
    "equivalent": "An effect of 0 is that of a value that is compared, and not so closely: a "
    "factor on a metric goes in the norm of its cosine, a score may be off where no choice turns. "
    "Or nothing behind it reads that row or channel. An order among equals does nothing where no "
    "two scores are equal, as in most models on any input: positions make equal "
    "patches differ. Where a mask fills scores with one number, it is caught. All others lie "
    "between what rounding does and what it is allowed.",
}


#: How what is no false alarm begins.
TOLD = ("tied", "refused")


def state(one: dict[str, Any]) -> str:
    """Returns the outcome of a planted fault."""
    if one["result"] == "caught":
        return "caught" if one["right"] else "blamed wrong"
    if one["result"] in ("did not run", "gone"):
        return "refused" if one["result"] == "did not run" else "gone"
    if one["effect"] <= 1:
        return "equivalent"
    return "excused" if one["result"] == "excused" else "survived"


def summary() -> str:
    """Returns the summary for the docs."""
    results = lines(RESULTS)
    found = Counter(map(state, results))
    runs = [said for one in lines(HONEST) for said in one["runs"].values()]
    tied, refused = (sum(said.startswith(word) for said in runs) for word in TOLD)
    failed = sum(bool(said) for said in runs) - tied - refused
    counts = ", ".join(f"{found[one]} {one}" for one in STATES if found[one])
    return (
        f"{len(results)} faults of {len({one['kind'] for one in results})} kinds in "
        f"{len(COUNTS)} stages of {len({one['model'] for one in results})} models, of "
        f"{len(lines(PLANTS))} on the list: {counts}. {len(runs)} runs of right stages on fresh "
        f"inputs: {failed} false alarms, {tied} near-ties that were reported, and "
        f"{refused} refused where rounding to the half type decides."
    )


def table() -> str:
    """Returns the results in Markdown: by stage and kind, and the faults that were not caught."""
    results = lines(RESULTS)
    text = [
        "# Faults planted into the stages of a compile, and what the proof made of them",
        "",
        "Written by `python ci/proof_mutations.py --write`. The faults are those of "
        "`proof_plants.jsonl`, drawn before any was planted.",
        "",
        summary(),
        "",
        *(f"- {name}: {said}" for name, said in STATES.items()),
    ]
    for title, key in (("stage", "stage"), ("kind of fault", "kind"), ("model", "model")):
        text += ["", f"| {title} | planted | {' | '.join(STATES)} |"]
        text += [f"|{' --- |' * (len(STATES) + 2)}"]
        for name in dict.fromkeys(one[key] for one in results):
            found = Counter(state(one) for one in results if one[key] == name)
            cells = " | ".join(str(found[one] or "") for one in STATES)
            text.append(f"| {name} | {sum(found.values())} | {cells} |")
    for title in [one for one in STATES if one != "caught"]:
        some = [_replay(one) for one in results if state(one) == title]
        note = [NOTES[title], ""] if title in NOTES else []
        text += ["", f"## {title.capitalize()}", "", *note, *some] if some else []
    alarms = [
        f"- {one['model']}, batch {one['batch']}, seed {one['seed']}, {run}: {said}"
        for one in lines(HONEST)
        for run, said in one["runs"].items()
        if said and not said.startswith(TOLD)
    ]
    text += ["", "## False alarms", "", *(alarms or ["None."])]
    return "\n".join(text) + "\n"


def _replay(one: dict[str, Any]) -> str:
    """Returns the line of a plant that was not caught."""
    effect = "" if one["effect"] is None else f"; {one['effect']:.1e} of what is allowed"
    on = f" on {one['on']}" if one["on"] else ""
    at = f" at '{one['at']}'" if one["at"] else ""
    detail = f": {one['detail']}" if one["detail"] else ""
    what = f"{one['model']}, {one['stage']}, {one['node']}: {one['kind']}"
    return f"- {what}{effect}{on}{at}{detail}"


if __name__ == "__main__":
    sys.exit(main())
