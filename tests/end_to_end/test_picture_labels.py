"""From a PNG to labels: a ViT trained here, its names, and its preprocessing in or out of it.

The same five classes, in the same order, come from eager on the runner's own preprocessing, from
run on arrays, from run on pictures, and from bundles that hold their preprocessing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import refusal, tokexport
from helpers.json_schemas import check_bundle
from helpers.picture_digits import NAMES, OFF, PICTURE, STEPS, TEXT, Trained, hold, train
from helpers.thorough import thorough_but
from PIL import Image
from torch import nn

from tokexport.exporter.compile import compile
from tokexport.runtimes import load
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.pictures import (
    Preprocessing,
    classify,
    decode,
    parse_preprocessing,
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains the ViT for a moment."""
    return train(tmp_path_factory.mktemp("digits"))


def bundle_of(digits: Trained, output: Path, target: str, **options: Any) -> Path:
    """Compiles the model on its pictures, two at once."""
    done = compile(
        digits.model,
        torch.rand(2, 3, 32, 32),
        target,
        output=output,
        **{"inputs": digits.photos, "preprocess": TEXT, "labels": digits.names} | options,
        timed=False,
        page=False,
    )
    assert done.status == "PASSED"
    check_bundle(output)
    return output


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_the_same_labels_by_every_way(digits: Trained, target: str, tmp_path: Path) -> None:
    rows = digits.probabilities
    for embed in (None, "normalise", f"{PICTURE[0]}x{PICTURE[1]}"):
        bundle = bundle_of(digits, tmp_path / str(embed), target, embed_preprocess=embed)
        manifest = read_manifest(bundle)
        assert manifest.labels == NAMES
        assert manifest.preprocessing is not None
        left = Preprocessing.from_json(manifest.preprocessing)
        assert left.whole == STEPS
        (spec,) = manifest.inputs
        size = PICTURE if embed == "48x64" else (32, 32)
        wanted = (2, 3, *size) if embed is None else (2, *size, 3)
        assert (spec.shape, spec.dtype) == (wanted, "uint8" if embed else "float32")
        printed = tokexport("run", bundle, digits.photos, "--top", "5", "--json").json
        hold(printed["pictures"], rows)
        x = np.stack([left.apply(decode(path).pixels) for path in digits.paths])
        np.savez(tmp_path / "x.npz", **{spec.name: x})
        given = ("--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz", "--force")
        assert tokexport("run", bundle, *given, "--json").code == 0
        with np.load(tmp_path / "y.npz") as file:
            (logits,) = (torch.from_numpy(file[name]) for name in file.files)
        np.testing.assert_allclose(logits.softmax(-1).numpy(), rows, atol=OFF)
        with load(bundle) as runner:
            first = [one.classes[0].label for one in classify(runner, digits.paths, top=1)]
        assert first == [NAMES[row.argmax()] for row in rows]
        assert tokexport("verify", bundle, "--json").code == 0


@pytest.fixture(scope="module")
def reduced(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the reduced model that resizes pictures itself."""
    output = tmp_path_factory.mktemp("reduced") / "out"
    options = {"reduce": "tome:r=2,blocks=blocks", "embed_preprocess": "48x64"}
    return bundle_of(digits, output, "ort", **options)


def test_a_reduction_goes_into_the_model_behind_its_preprocessing(
    digits: Trained, reduced: Path
) -> None:
    manifest = json.loads((reduced / "manifest.json").read_text())
    assert manifest["reduction"]["blocks"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert manifest["token_schedule"] == [17, 15, 13]
    assert manifest["options"]["embed_preprocess"] == "48x64"
    report = json.loads((reduced / "report.json").read_text())
    assert report["accuracy"] is None
    assert report["reduction"]["agreement"] is not None
    found = [one.classes[0].index for one in classify(load(reduced), digits.paths, top=1)]
    assert np.mean(np.array(found) == digits.digits) > 0.5


def test_a_bundle_is_held_to_its_source(digits: Trained, reduced: Path, tmp_path: Path) -> None:
    torch.save(digits.model, tmp_path / "model.pt")
    source = ("--against", tmp_path / "model.pt", "--trust-pickle")
    found = tokexport("verify", reduced, *source, "--json")
    assert found.code == 0, found
    assert found.json["verdict"] in ("identical", "arithmetic")
    assert (found.json["weights"], found.json["structure"]) == ("same", "same")
    assert found.json["preprocessing"] == {}


@pytest.mark.thorough
def test_a_source_with_other_steps_is_noticed(
    digits: Trained, reduced: Path, tmp_path: Path
) -> None:
    torch.save(digits.model, tmp_path / "model.pt")
    source = ("--against", tmp_path / "model.pt", "--trust-pickle")
    other = ("--preprocess", "size=32,crop=0.9,mean=imagenet")
    answer = tokexport("verify", reduced, *source, "--inputs", digits.photos, *other)
    assert answer.code == 1
    assert "the preprocessing is another" in answer.said


class Same(nn.Module):
    """Returns the picture that it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


#: Steps whose result is the bytes of the resized picture.
BYTES = "size=24,crop=0.9,mean=0/0/0,std=" + "/".join(["0.00392156862745098"] * 3)


@pytest.mark.parametrize("precision", thorough_but(["bf16"], ["fp32", "bf16", "fp16"]))
def test_resizing_stays_exact_in_a_reduced_precision(precision: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"embed_preprocess": "48x64", "preprocess": BYTES}
    options |= {"precision": precision, "timed": False, "page": False}
    compile(Same(), torch.rand(1, 3, 24, 24), "openvino", output=tmp_path / "out", **options)
    pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with load(tmp_path / "out") as runner:
        (found,) = runner.run({"pixels": pixels[None]}).values()
    wanted = parse_preprocessing(BYTES).resized(pixels).transpose(2, 0, 1)
    np.testing.assert_array_equal(found[0], wanted)


@pytest.mark.thorough
@pytest.mark.parametrize("embed", ["normalise", "48x64"])
def test_tensorrt_takes_bytes(
    embed: str, digits: Trained, tmp_path: Path, without_gpu: None
) -> None:
    options: dict[str, Any] = {"embed_preprocess": embed, "preprocess": TEXT, "timed": False}
    done = compile(
        digits.model, torch.rand(1, 3, 32, 32), "trt", output=tmp_path / "out", **options
    )
    assert done.status == "BUILT, NOT RUN"
    lowered = {stage.name: stage for stage in done.report.stages}["lowered"]
    assert lowered.passed
    assert read_manifest(tmp_path / "out").inputs[0].dtype == "uint8"


def test_whole_numbers_are_the_bytes_of_a_picture(reduced: Path) -> None:
    with load(reduced) as runner:
        assert runner.ranges.get("pixels", (0, 255)) == (0, 255)
        ends = np.zeros((2, *PICTURE, 3), np.uint8)
        ends[1] = 255
        assert all(np.isfinite(one).all() for one in runner.run({"pixels": ends}).values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--embed-preprocess", "normalize"), "--embed-preprocess is 'normalize'."),
        (("--embed-preprocess", "48"), "--embed-preprocess is '48'."),
        (("--embed-preprocess", "0x48"), "--embed-preprocess is '0x48'."),
        (("--embed-preprocess", "48x9999"), "--embed-preprocess is '48x9999'."),
        (("--embed-preprocess", f"48x{'9' * 5000}"), "--embed-preprocess is '48x999"),
        (("--embed-preprocess", "normalise", "--constant", "x=1"), "goes with a model of one"),
        (
            ("--embed-preprocess", "20x20", "--inputs", "PHOTOS"),
            "and the artifact takes 20 × 20",
        ),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    options: tuple[str, ...], said: str, digits: Trained, tmp_path: Path
) -> None:
    given = [str(digits.photos) if one == "PHOTOS" else one for one in options]
    where = ("--target", "ort", "--output", tmp_path / "out")
    answer = tokexport("compile", "timm:test_vit", *where, *given)
    refusal(answer, 2, tmp_path, said)


def test_a_model_without_pictures_or_steps_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 2), tmp_path / "model.pt")
    where = ("--trust-pickle", "--target", "ort", "--output", tmp_path / "out")
    given = ("compile", tmp_path / "model.pt", *where, "--embed-preprocess", "normalise")
    refusal(
        tokexport(*given, "--input-shape", "1,4"),
        2,
        tmp_path,
        "no single input that takes pictures",
    )
    torch.save(nn.Conv2d(3, 2, 4), tmp_path / "model.pt")
    answer = tokexport(*given, "--input-shape", "1,3,8,8")
    refusal(answer, 2, tmp_path, "Nothing says how a picture becomes", "--preprocess")


def test_other_steps_for_an_artifact_that_has_its_own_are_refused(
    digits: Trained, reduced: Path, tmp_path: Path
) -> None:
    answer = tokexport("run", reduced, digits.photos, "--preprocess", "mean=none")
    refusal(answer, 2, tmp_path, "the artifact does some of them itself")
    Image.new("RGB", (99, 99)).save(tmp_path / "other.png")
    answer = tokexport("run", reduced, tmp_path / "other.png")
    refusal(answer, 2, tmp_path, "Some pictures cannot be used: 1 of 1", "99 × 99")
