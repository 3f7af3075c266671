"""The classifiers in C++ and JavaScript answer as Python and eager do, on a ViT trained here."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.other_languages import Classifier, cpp_classifier, node_classifier
from helpers.picture_digits import (
    OFF,
    PICTURE,
    Trained,
    compile_reduced,
    hold,
    reduced_probabilities,
    train,
)
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

import tokexport
from tokexport.runtimes import load
from tokexport.runtimes.native_library import ort_kernels
from tokexport.runtimes.pictures import classify


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains the ViT for a moment."""
    return train(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def eager(digits: Trained) -> np.ndarray:
    """What the reduced model makes of the pictures in eager, (pictures, 10)."""
    return reduced_probabilities(digits)


@pytest.fixture(scope="module")
def bundle(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reduced model, which takes the bytes of two pictures at once."""
    output = tmp_path_factory.mktemp("reduced") / "bundle"
    return compile_reduced(digits, output, "ort", batch=2, embed=True)


@pytest.fixture(scope="module", params=[cpp_classifier, node_classifier], ids=["cpp", "node"])
def classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Classifier:
    """The program in each language."""
    build: Callable[[Path], Classifier] = request.param
    return build(tmp_path_factory.mktemp("program") / "built")


def test_the_same_classes_and_margins(
    classifier: Classifier, digits: Trained, bundle: Path, eager: np.ndarray
) -> None:
    """An odd number of pictures, so that the last batch of two is filled up."""
    paths, rows = digits.paths[:-1], eager[:-1]
    found = classifier.pictures(bundle, *paths)
    hold(found, rows)
    assert [one["file"] for one in found] == list(map(str, paths))
    with load(bundle) as runner:
        wanted = classify(runner, paths)
    for picture, by_python in zip(found, wanted, strict=True):
        for one, same in zip(picture["classes"], by_python.classes, strict=True):
            assert (one["index"], one["label"]) == (same.index, same.label)
            assert one["score"] == pytest.approx(same.score, abs=OFF)
            assert one["margin"] == pytest.approx(same.margin, abs=2 * OFF)
    assert list(found[0]["classes"][0]) == ["index", "label", "score", "margin"]


def test_native_kernels_run_in_cpp_alone(
    classifier: Classifier, digits: Trained, bundle: Path, eager: np.ndarray, tmp_path: Path
) -> None:
    if "node" in classifier.command[0]:
        usage = classifier.run("--kernels", "x.so", bundle, digits.paths[0])
        assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")
        return
    kernels = ort_kernels().library
    assert kernels is not None
    hold(classifier.pictures("--kernels", kernels, bundle, *digits.paths), eager)
    (tmp_path / "empty.so").touch()
    said = classifier.refusal("--kernels", tmp_path / "empty.so", bundle, digits.paths[0])
    assert "cannot load the kernels" in said


def test_all_classes_in_a_table(classifier: Classifier, digits: Trained, bundle: Path) -> None:
    done = classifier.run("--top", "99", bundle, digits.paths[0])
    assert done.returncode == 0
    first, *lines = done.stdout.splitlines()
    assert first == str(digits.paths[0])
    assert len(lines) == 10
    assert ["before the next" in line for line in lines] == [True] * 9 + [False]
    assert sum(float(line.split()[0]) for line in lines) == pytest.approx(100, abs=0.1)


def drawn(path: Path, **options: Any) -> Image.Image:
    """Writes a picture of noise with alpha, in the bundle's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (*PICTURE, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(path, **options)
    return picture


def test_pictures_are_decoded_as_in_python(
    classifier: Classifier, bundle: Path, tmp_path: Path
) -> None:
    picture = drawn(tmp_path / "alpha.png")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("LA").save(tmp_path / "grey and alpha.png")
    picture.convert("1").save(tmp_path / "bit.png")
    picture.convert("RGB").quantize(200).save(tmp_path / "palette.png")
    picture.convert("RGB").quantize(9).save(tmp_path / "nibbles.png", transparency=3)
    (tmp_path / "é 🦩 name.png").write_bytes((tmp_path / "grey.png").read_bytes())
    paths = sorted(tmp_path.glob("*.png"))
    assert len(paths) == 7
    with load(bundle) as runner:
        wanted = classify(runner, paths, top=10)
    for picture_found, one in zip(
        classifier.pictures("--top", "10", bundle, *paths), wanted, strict=True
    ):
        assert picture_found["file"] == one.file
        scores = {found["index"]: found["score"] for found in picture_found["classes"]}
        assert scores == pytest.approx({same.index: same.score for same in one.classes}, abs=OFF)


def test_pictures_that_are_refused(classifier: Classifier, bundle: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    drawn(whole)
    data = whole.read_bytes()
    faults: dict[str, tuple[bytes | None, str]] = {
        "missing": (None, "missing.png"),
        "empty": (b"", "is no PNG file"),
        "jpeg": (b"\xff\xd8\xff\xe0" * 20, "is no PNG file"),
        "short": (data[: len(data) // 2], "is damaged or cut off"),
        "flipped": (data[:500] + bytes([data[500] ^ 1]) + data[501:], "is damaged or cut off"),
    }
    for name, (content, said) in faults.items():
        path = tmp_path / f"{name}.png"
        if content is not None:
            path.write_bytes(content)
        assert said in classifier.refusal(bundle, path)
    begin = data.index(b"IDAT")
    end = begin + 4 + int.from_bytes(data[begin - 4 : begin])
    rows = data[begin : end - 1] + bytes([data[end - 1] ^ 1])
    checked = data[:begin] + rows + zlib.crc32(rows).to_bytes(4) + data[end + 4 :]
    (tmp_path / "sum.png").write_bytes(checked)
    assert "is damaged or cut off" in classifier.refusal(bundle, tmp_path / "sum.png")
    packed = zlib.compress(zlib.decompress(data[begin + 4 : end])[:-1])
    rows = b"IDAT" + packed + zlib.crc32(b"IDAT" + packed).to_bytes(4)
    fewer = data[: begin - 4] + len(packed).to_bytes(4) + rows + data[end + 4 :]
    (tmp_path / "fewer.png").write_bytes(fewer)
    assert "is damaged or cut off" in classifier.refusal(bundle, tmp_path / "fewer.png")
    Image.new("RGB", (48, 64)).save(tmp_path / "turned.png")
    said = classifier.refusal(bundle, tmp_path / "turned.png")
    assert "64 x 48" in said
    assert "takes 48 x 64" in said
    deep = np.zeros(PICTURE, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert "16 bits" in classifier.refusal(bundle, tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    drawn(tmp_path / "exif.png", exif=exif)
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", "<x/>")
    drawn(tmp_path / "xmp.png", pnginfo=xmp)
    for name in ("exif", "xmp"):
        assert "metadata that may turn it" in classifier.refusal(bundle, tmp_path / f"{name}.png")
    assert "whole.png" not in classifier.refusal(bundle, whole, tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"target": "openvino"}, "--target ort"),
        ({"status": "BUILT, NOT RUN"}, "never run"),
        ({"artifact": "../model.onnx"}, ""),
        ({"scores": None}, "no classifier"),
        ({"labels": ["one"]}, "labels"),
        ({"inputs": []}, "takes no bytes of pictures"),
        ({"inputs": 7}, "not valid"),
        ({"outputs": []}, "(pictures, classes)"),
        ({"preprocessing": None}, "--embed-preprocess HEIGHTxWIDTH"),
        ({"samples_independent": None}, "pass 2 at once"),
        ({"input_ranges": {"pixels": [1, 255]}}, "would not answer"),
        ({"requires": {"instruction_sets": ["of_no_machine"]}}, "processor"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
)
def test_bundles_that_are_refused(
    changes: dict[str, Any],
    said: str,
    classifier: Classifier,
    bundle: Path,
    tmp_path: Path,
) -> None:
    black = tmp_path / "black.png"
    Image.new("RGB", PICTURE[::-1]).save(black)
    manifest = json.loads((bundle / "manifest.json").read_text())
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    shutil.copy(bundle / "model.onnx", tmp_path)
    (changed / "manifest.json").write_text(json.dumps(manifest | changes))
    assert said in classifier.refusal(changed, black)


def test_a_bundle_that_is_not_whole(
    classifier: Classifier, digits: Trained, bundle: Path, tmp_path: Path
) -> None:
    photo = digits.paths[0]
    assert "manifest.json" in classifier.refusal(tmp_path / "nothing", photo)
    for text in ("", "{", "[]", '"text"', "\x00", '{"schema_version": 1}'):
        (tmp_path / "manifest.json").write_text(text)
        assert "manifest.json is not valid" in classifier.refusal(tmp_path, photo)
    shutil.copy(bundle / "manifest.json", tmp_path)
    assert "model.onnx" in classifier.refusal(tmp_path, photo, photo)
    model = (bundle / "model.onnx").read_bytes()
    weights = len(model) // 2
    changed = model[:weights] + bytes([model[weights] ^ 1]) + model[weights + 1 :]
    for damaged in (model[:5000], changed):
        (tmp_path / "model.onnx").write_bytes(damaged)
        said = classifier.refusal(tmp_path, photo, photo)
        assert "model.onnx is not what compile wrote" in said


class Bright(nn.Module):
    """Scores the bright pixels of a picture, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[0]
        kept = tokens[tokens.mean(-1) > 0.5]
        scores: Tensor = self.head(kept.sum(0, keepdim=True))
        return scores


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with room for eight bright pixels."""
    folder = tmp_path_factory.mktemp("capped")
    torch.manual_seed(0)
    for bright in range(1, 9):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[0, :bright] = 200
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "photos" / f"{bright}.png")
    tokexport.compile(
        *(Bright().eval(), torch.rand(1, 3, 8, 8), "ort"),
        output=folder / "bundle",
        inputs=folder / "photos",
        preprocess="size=8,mean=0/0/0,std=1/1/1",
        embed_preprocess="8x8",
        token_cap=8,
        timed=False,
        page=False,
    )
    return folder


def test_an_input_that_breaks_a_check_is_refused(
    classifier: Classifier, capped: Path, tmp_path: Path
) -> None:
    photos = sorted((capped / "photos").iterdir())
    found = classifier.pictures(capped / "bundle", *photos)
    with load(capped / "bundle") as runner:
        wanted = classify(runner, photos)
    for picture, one in zip(found, wanted, strict=True):
        scores = [found["score"] for found in picture["classes"]]
        assert scores == pytest.approx([same.score for same in one.classes], abs=OFF)
        assert {found["label"] for found in picture["classes"]} == {None}
    for colour, said in (("white", "more than 8 rows"), ("black", "no row is chosen")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "one.png")
        assert said in classifier.refusal(capped / "bundle", tmp_path / "one.png")


class Mean(nn.Module):
    """Scores the mean colour of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(3, 500), nn.Linear(500, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.wide(x.flatten(2).mean(-1)).relu())
        return scores


@pytest.mark.thorough
def test_weights_may_lie_beside_the_artifact(classifier: Classifier, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokexport.compile(
        *(Mean().eval(), torch.rand(1, 3, 8, 8), "ort"),
        output=tmp_path / "bundle",
        preprocess="size=8,mean=0/0/0,std=1/1/1",
        embed_preprocess="8x8",
        batch=[1, 4],
        timed=False,
        page=False,
    )
    weights = tmp_path / "bundle" / "model.onnx.data"
    assert weights.stat().st_size > 0
    Image.new("RGB", (8, 8), "orange").save(tmp_path / "one.png")
    with load(tmp_path / "bundle") as runner:
        (wanted,) = classify(runner, [tmp_path / "one.png"])
    (found,) = classifier.pictures(tmp_path / "bundle", tmp_path / "one.png")
    scores = [one["score"] for one in found["classes"]]
    assert scores == pytest.approx([same.score for same in wanted.classes], abs=OFF)
    weights.unlink()
    assert "model.onnx" in classifier.refusal(tmp_path / "bundle", tmp_path / "one.png")


def test_misuse_shows_the_usage(classifier: Classifier, bundle: Path) -> None:
    for arguments in ((), (bundle,), ("--top", "0", bundle, "x"), ("--other", bundle, "x")):
        done = classifier.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: ")
