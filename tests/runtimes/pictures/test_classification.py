"""Pictures become classes: batches, padding, names, margins, and what is no classifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from tokexport.runtimes import Runner, TensorSpec, load
from tokexport.runtimes.bundle.class_scores import ClassScores
from tokexport.runtimes.errors import (
    BundleError,
    InputMismatchError,
    PictureError,
    PreprocessingError,
    RunError,
)
from tokexport.runtimes.ort.runner import OrtRunner
from tokexport.runtimes.pictures import Classifier, classify, decode, parse_preprocessing

BATCH, SIDE, CLASSES = 3, 4, 6
STEPS = parse_preprocessing(f"size={SIDE},mean=half")
LABELS = ("crane", "ibis", "", "crane", "stork", "heron")
WEIGHT = np.random.default_rng(2).standard_normal((3 * SIDE * SIDE, CLASSES), np.float32) / 4
MakeBundle = Callable[..., Path]


def linear(batch: int, times: float = 1) -> onnx.ModelProto:
    """X (batch, 3, 4, 4) to scores (batch, 6)."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    shapes = {"x": (batch, 3, SIDE, SIDE), "y": (batch, CLASSES)}
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    weight = WEIGHT * np.float32(times)
    graph = helper.make_graph(nodes, "graph", [x], [y], [numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> MakeBundle:
    """Writes a bundle of the linear classifier; keywords replace fields of its manifest."""

    def make(batch: int = BATCH, times: float = 1, **fields: Any) -> Path:
        path = tmp_path / "linear" / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(linear(batch, times), path)
        known = {
            "inputs": (TensorSpec("x", (batch, 3, SIDE, SIDE), "float32"),),
            "outputs": (TensorSpec("y", (batch, CLASSES), "float32"),),
            "gates": {"y": {"relative_tolerance": 1e-5, "scale": 1.0}},
            "preprocessing": STEPS.to_json(),
            "scores": ClassScores("y", "logits"),
            "labels": LABELS,
        }
        return make_bundle(artifact=path, **(known | fields))

    return make


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Seven pictures of different sizes."""
    random = np.random.default_rng(4)
    paths = [tmp_path / f"{place}.png" for place in range(7)]
    for place, path in enumerate(paths):
        pixels = random.integers(0, 256, (4 + place, 9 - place, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def scores_of(paths: list[Path]) -> np.ndarray:
    """What the linear classifier answers, in double precision."""
    with_pixels = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    x = np.stack([STEPS.apply(pixels) for pixels in with_pixels]).astype(np.float64)
    return x.reshape(len(paths), -1) @ WEIGHT.astype(np.float64)


def test_classes_are_those_of_the_model(bundle: MakeBundle, photos: list[Path]) -> None:
    logits = scores_of(photos)
    wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    with load(bundle()) as runner:
        found = classify(runner, photos, top=4)
    assert [one.file for one in found] == [*map(str, photos)]
    for one, row in zip(found, wanted, strict=True):
        order = np.argsort(-row)
        assert [scored.index for scored in one.classes] == [*order[:4]]
        assert [scored.label for scored in one.classes] == [LABELS[i] or None for i in order[:4]]
        np.testing.assert_allclose([s.score for s in one.classes], row[order[:4]], rtol=1e-5)
        margins = row[order[:4]] - row[order[1:5]]
        np.testing.assert_allclose([s.margin for s in one.classes], margins, rtol=1e-3, atol=1e-6)
        assert one.error is None


def test_batches_are_filled_up(bundle: MakeBundle, photos: list[Path]) -> None:
    with load(bundle(batch=3)) as runner:
        three = Classifier(runner, 2)
        assert (three.batch, three.classes, three.form) == (3, CLASSES, "probability")
        together = list(three.classified(photos))
        assert list(three.classified([])) == []
    with load(bundle(batch=1, name="one")) as runner:
        one_by_one = classify(runner, photos, top=2)
    for one, other in zip(together, one_by_one, strict=True):
        assert [s.index for s in one.classes] == [s.index for s in other.classes]
        np.testing.assert_allclose(
            [s.score for s in one.classes], [s.score for s in other.classes], rtol=1e-5
        )


def test_pictures_are_batched_by_a_caller(bundle: MakeBundle, photos: list[Path]) -> None:
    with load(bundle(batch=1), threads=1) as runner:
        classifier = Classifier(runner, 2)
        inputs = [classifier.prepared(decode(path).pixels) for path in photos]
        name = runner.inputs[0].name
        joined = np.concatenate([one[name] for one in inputs])
        ranked = classifier.ranked(runner.run({name: joined}))
        wanted = [one.classes for one in classifier.classified(photos)]
    assert [[one.index for one in classes] for classes in ranked] == [
        [one.index for one in classes] for classes in wanted
    ]


def test_broken_pictures_do_not_stop_the_others(bundle: MakeBundle, photos: list[Path]) -> None:
    with load(bundle()) as runner:
        whole = classify(runner, photos)
        photos[2].write_bytes(b"no picture")
        photos[6].write_bytes(photos[6].read_bytes()[:60])
        given = [*photos[:3], photos[0].with_name("missing.png"), *photos[3:]]
        found = classify(runner, given)
    said = {
        2: "not a picture",
        3: "does not exist",
        7: "cannot be decoded",
    }
    assert {place for place, one in enumerate(found) if one.error} == {*said}
    for place, words in said.items():
        assert isinstance(found[place].error, PictureError)
        assert words in str(found[place].error)
        assert found[place].classes == ()
    rest = [one for one in found if one.error is None]
    kept = [one for place, one in enumerate(whole) if place not in (2, 6)]
    for one, other in zip(rest, kept, strict=True):
        assert [s.index for s in one.classes] == [s.index for s in other.classes]


def test_pixels_and_notes(bundle: MakeBundle, photos: list[Path], tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(photos[0]))
    Image.fromarray(np.dstack([pixels, pixels[..., 0] // 2])).save(tmp_path / "alpha.png")
    with load(bundle()) as runner:
        of_pixels, of_file, clear = classify(
            runner, [pixels, str(photos[0]), tmp_path / "alpha.png"]
        )
        assert of_pixels.classes == of_file.classes == clear.classes
        assert (of_pixels.file, of_file.notes) == ("", ())
        assert "transparency was dropped" in clear.notes[0]
        with pytest.raises(PreprocessingError, match="pixels are float64"):
            classify(runner, [pixels / 255])
        for one in (str(photos[0]), photos[0], photos[0].read_bytes()):
            with pytest.raises(InputMismatchError, match="not several pictures"):
                classify(runner, one)  # type: ignore[arg-type]


def test_equal_scores_come_in_the_order_of_the_classes(bundle: MakeBundle) -> None:
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    steps = replace(parse_preprocessing(f"size={SIDE},mean=none"), mean=(0, 0, 0), std=(1e9,) * 3)
    with load(bundle(scores=ClassScores("y", "independent"))) as runner:
        (one,) = classify(runner, [grey * 0], steps=steps, top=9)
    assert [scored.index for scored in one.classes] == [*range(CLASSES)]
    assert [scored.margin for scored in one.classes] == [0.0] * (CLASSES - 1) + [None]


def test_numbers_that_are_no_logits_stay(bundle: MakeBundle, photos: list[Path]) -> None:
    for form, said in {"independent": "score", "probabilities": "probability"}.items():
        with load(bundle(scores=ClassScores("y", form), name=form)) as runner:
            found = Classifier(runner)
            assert found.form == said
            (one,) = found.classified(photos[:1])
        np.testing.assert_allclose(one.classes[0].score, scores_of(photos[:1]).max(), rtol=1e-5)


def test_labels_of_the_caller(bundle: MakeBundle, photos: list[Path]) -> None:
    with load(bundle(labels=None)) as runner:
        (one,) = classify(runner, photos[:1])
        assert {scored.label for scored in one.classes} == {None}
        (one,) = classify(runner, photos[:1], labels="abcdef", top=1)
        assert one.classes[0].label == "abcdef"[one.classes[0].index]
        with pytest.raises(InputMismatchError, match="2 labels, and the model has 6 classes"):
            classify(runner, photos, labels=["a", "b"])


def refused(path: Path, kind: type[Exception], match: str, **options: Any) -> None:
    with load(path) as runner, pytest.raises(kind, match=match) as caught:
        classify(runner, ["no.png"], **options)
    assert getattr(caught.value, "fix", "")


def test_what_is_no_classifier_of_pictures_is_refused(
    bundle: MakeBundle, make_bundle: MakeBundle
) -> None:
    refused(make_bundle(), InputMismatchError, "is no classifier")
    scores = ClassScores("logits", "logits")
    refused(make_bundle(scores=scores, name="2"), InputMismatchError, "takes no pictures")
    refused(bundle(scores=ClassScores("z", "logits"), name="3"), BundleError, "that is none: 'z'")
    refused(bundle(labels=("a",), name="4"), BundleError, "1 labels, and the model has 6")
    refused(bundle(preprocessing=None, name="5"), PreprocessingError, "Nothing says how")
    other = parse_preprocessing("size=8,mean=half")
    refused(bundle(name="6"), PreprocessingError, "become 8 × 8", steps=other)
    padded = STEPS.to_json() | {"other_steps": ["do_pad"]}
    refused(bundle(preprocessing=padded, name="7"), PreprocessingError, "do_pad")
    refused(bundle(name="8"), InputMismatchError, "number of classes is 0", top=0)


def test_a_runner_without_a_bundle_is_refused(tmp_path: Path) -> None:
    onnx.save(linear(1), tmp_path / "model.onnx")
    runner: Runner = OrtRunner.from_file(tmp_path / "model.onnx")
    with runner, pytest.raises(InputMismatchError, match="not loaded from a bundle"):
        classify(runner, [])


def test_scores_that_are_not_finite_are_no_answer(bundle: MakeBundle, photos: list[Path]) -> None:
    steps = replace(parse_preprocessing(f"size={SIDE},mean=none"), mean=(0, 0, 0), std=(1e-38,) * 3)
    with load(bundle(times=1e3)) as runner, pytest.raises(RunError, match="not finite"):
        classify(runner, photos, steps=steps)


def test_a_device_needs_numpy_and_pillow_alone(
    bundle: MakeBundle,
    photos: list[Path],
    run_python: Callable[[str], CompletedProcess[str]],
) -> None:
    done = run_python(f"""
import json, sys
from tokexport.runtimes import load
from tokexport.runtimes.pictures import classify
with load({str(bundle())!r}) as runner:
    found = [one.classes[0].index for one in classify(runner, {[*map(str, photos)]!r}, top=1)]
heavy = {{"torch", "onnx", "rich", "typer", "timm", "transformers"}} & {{*sys.modules}}
print(json.dumps([found, sorted(heavy)]))
""")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [scores_of(photos).argmax(-1).tolist(), []]
