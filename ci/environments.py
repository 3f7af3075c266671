"""Classifies the same pictures in every environment that bundles are for, and compares the answers.

    PyTorch, eager          the reduced ViT, on the preprocessing of the runner
    onnxruntime, openvino   a virtual environment built from nothing: numpy, Pillow, the runtime and
                            the wheel of tokexport without what it depends on
    aarch64                 numpy, Pillow and onnxruntime for 64-bit ARM, on an emulated processor
    C++, Node.js            the programs of examples/, on a bundle that does its own preprocessing

The ViT is trained for a moment, and merges tokens in every block. Packages are fetched with pip and
apt, which takes minutes; ``--write`` writes ``ci/ENVIRONMENTS.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import arm_processors
import numpy as np

ROOT: Final = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from helpers.fresh_environments import Environment, new_environment  # noqa: E402
from helpers.other_languages import cpp_classifier, node_classifier  # noqa: E402
from helpers.picture_digits import (  # noqa: E402
    NAMES,
    Trained,
    compile_reduced,
    reduced_probabilities,
    train,
)

from tokexport.exporter.bench_bundle.own_wheel import build_wheel  # noqa: E402

PAGE: Final = ROOT / "ci" / "ENVIRONMENTS.md"
EAGER: Final = "PyTorch, eager"
#: What a fresh environment runs: the classes of pictures, as ``run --json`` prints them.
_PROGRAM: Final = """
import dataclasses
import json
import sys

import tokexport.runtimes
from tokexport.runtimes.pictures import classify

bundle, *photos = sys.argv[1:]
with tokexport.runtimes.load(bundle) as runner:
    found = classify(runner, photos)
print(json.dumps({"pictures": [dataclasses.asdict(one) for one in found]}))
"""
#: What a device does without.
_ABSENT: Final = ("torch", "onnx", "typer", "rich", "timm")
_TOP: Final = 5


@dataclass(frozen=True)
class Answer:
    """What one environment makes of the pictures.

    Attributes:
        environment: Which one it is.
        pictures: The highest classes of each: ``index``, ``label``, ``score`` and ``margin``.
    """

    environment: str
    pictures: list[list[Mapping[str, Any]]]


def ask(folder: Path, wheel: Path | None = None) -> list[Answer]:
    """Returns the answer of every environment, that of eager first.

    Args:
        folder: Where everything goes that is made; it is empty.
        wheel: The wheel of the checkout; None builds it.
    """
    digits = train(folder)
    answers = [Answer(EAGER, [_highest(row) for row in reduced_probabilities(digits)])]
    wheel = wheel or build_wheel(ROOT, folder / "wheel")
    for runtime, target in (("onnxruntime", "ort"), ("openvino", "openvino")):
        bundle = compile_reduced(digits, folder / target, target, batch=2, embed=False)
        environment = new_environment(folder / f"{target}-environment")
        answers.append(_ask_python(environment, runtime, wheel, bundle, digits))
        if runtime == "onnxruntime":
            answers.append(_ask_arm(folder / "arm", bundle, digits))
    embedded = compile_reduced(digits, folder / "embedded", "ort", batch=2, embed=True)
    for name, build in (("C++", cpp_classifier), ("Node.js", node_classifier)):
        program = build(folder / name)
        answers.append(Answer(name, _classes(program.pictures(embedded, *digits.paths))))
    return answers


def _ask_python(
    environment: Environment, runtime: str, wheel: Path, bundle: Path, digits: Trained
) -> Answer:
    environment.install("numpy", "pillow", runtime)
    environment.install("--no-deps", wheel)
    assert not any(environment.has(name) for name in _ABSENT)
    program = environment.folder / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = environment.python(program, bundle, *digits.paths)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return Answer(f"numpy + {runtime}", _classes(json.loads(done.stdout)["pictures"]))


def _ask_arm(folder: Path, bundle: Path, digits: Trained) -> Answer:
    """Asks an emulated processor, without the native kernels; ``ci/arm_checks.py`` runs those."""
    arm_processors.fetch()
    folder.mkdir()
    arm_processors.install(folder / "site", "--no-deps", "pillow")
    program = folder / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    places = os.pathsep.join([str(folder / "site"), str(ROOT / "ci" / "typing")])
    arguments = [str(program), str(bundle), *map(str, digits.paths)]
    environment = {"PYTHONPATH": places, "TOKEXPORT_NATIVE": "off"}
    done = arm_processors.run_python(arm_processors.PROCESSORS[1], arguments, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return Answer("aarch64, numpy + onnxruntime", _classes(json.loads(done.stdout)["pictures"]))


def _classes(pictures: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [picture["classes"] for picture in pictures]


def _highest(probabilities: np.ndarray) -> list[Mapping[str, Any]]:
    """Returns the highest classes of a picture by what eager gives, (classes,)."""
    order = np.argsort(-probabilities, kind="stable")
    scores = probabilities[order].astype(float)
    return [
        {
            "index": int(order[rank]),
            "label": NAMES[order[rank]],
            "score": scores[rank],
            "margin": scores[rank] - scores[rank + 1],
        }
        for rank in range(_TOP)
    ]


def differences(answer: Answer, eager: Answer, key: str) -> float:
    """Returns the largest difference of a score or a margin, rank by rank."""
    pairs = zip(answer.pictures, eager.pictures, strict=True)
    ranks = ((one, same) for row, wanted in pairs for one, same in zip(row, wanted, strict=True))
    return max(abs(float(one[key]) - float(same[key])) for one, same in ranks)


def alike(answer: Answer, eager: Answer, near: float = 0) -> int:
    """Returns of how many pictures the same five classes come in the same order.

    Args:
        answer: The answer of an environment.
        eager: That of eager.
        near: Classes whose scores are nearer to each other than this may change places.
    """
    pairs = zip(answer.pictures, eager.pictures, strict=True)
    return sum(_alike(row, wanted, near) for row, wanted in pairs)


def _alike(
    row: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], near: float
) -> bool:
    above = 1.0
    for one, same in zip(row, wanted, strict=True):
        if one["label"] != same["label"] and min(above, same["margin"]) >= near:
            return False
        above = same["margin"]
    return True


def table(answers: Sequence[Answer]) -> str:
    """Returns the tables: every environment beside eager, and its classes of one picture."""
    return "\n".join([*_summary(answers), "", *_first_picture(answers)]) + "\n"


def _summary(answers: Sequence[Answer]) -> Iterator[str]:
    eager = answers[0]
    yield "| environment | same five, in order | largest difference of a score | of a margin |"
    yield "|---|---:|---:|---:|"
    for one in answers[1:]:
        count = f"{alike(one, eager)} of {len(eager.pictures)}"
        score, margin = (differences(one, eager, key) for key in ("score", "margin"))
        yield f"| {one.environment} | {count} | {score:.1e} | {margin:.1e} |"


def _first_picture(answers: Sequence[Answer]) -> Iterator[str]:
    ranks = range(1, _TOP + 1)
    yield f"| first picture | {' | '.join(map(str, ranks))} |"
    yield f"|---|{'---|' * _TOP}"
    for one in answers:
        cells = (
            f"{each['label']} {each['score']:.6f} (+{each['margin']:.6f})"
            for each in one.pictures[0]
        )
        yield f"| {one.environment} | {' | '.join(cells)} |"


def main() -> None:
    """Asks every environment, and prints or writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help="the wheel of this checkout; built without it")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = table(ask(Path(folder), given.wheel))
    if given.write:
        head = (
            "# The same pictures in every environment\n\n"
            "`python ci/environments.py --write` writes this page: a ViT that was trained for a "
            "moment and merges tokens in every block,\non twelve pictures that it did not see, "
            "beside eager PyTorch. In parentheses is how far a score is above the next.\n\n"
        )
        PAGE.write_text(
            f"{head}{found}\nMachine: {platform.machine()}, {platform.system()}.\n",
            encoding="utf-8",
        )
    print(found, end="")


if __name__ == "__main__":
    main()
