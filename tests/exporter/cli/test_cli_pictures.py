"""Pictures as --inputs: from a folder of them to a bundle, and to its answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import compile_model, refusal, tokexport
from helpers.torchvision_ops import define_torchvision_operators
from PIL import Image
from torch import nn

from tokexport.exporter.compile import compile
from tokexport.exporter.source.preprocessing import timm_preprocessing
from tokexport.runtimes import load
from tokexport.runtimes.pictures import Preprocessing, decode, parse_preprocessing

define_torchvision_operators()

import timm  # noqa: E402
import torch  # noqa: E402

STEPS = "size=32,crop=0.8,mean=0.4/0.5/0.6,std=half,interpolation=bilinear"


def small_vit() -> nn.Module:
    """A ViT of timm that says no preprocessing."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 1}
    model = timm.models.VisionTransformer(**options, num_classes=5)
    nn.init.normal_(model.head.weight)
    return model.eval()


def timm_vit() -> nn.Module:
    """The same kind of model with a configuration of timm."""
    torch.manual_seed(1)
    model = timm.create_model("test_vit", img_size=32, num_classes=7)
    nn.init.normal_(model.head.weight)
    return model.eval()


def logits(model: nn.Module, steps: Preprocessing, path: Path) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(steps.apply(decode(path).pixels))[None])[0]


def photographs(folder: Path, model: nn.Module, steps: Preprocessing) -> dict[str, int]:
    """Writes pictures into a subfolder each for the class that a model gives them.

    Returns:
        The class of each picture, by its path within the folder.
    """
    random = np.random.default_rng(3)
    classes = {}
    for index, mode in enumerate(["RGB", "L", "CMYK", "RGBA", "RGB", "RGB"]):
        size = [(40, 60), (33, 90), (64, 20), (5, 5), (1, 1), (60, 40)][index]
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        name = f"{index}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.fromarray(pixels).convert(mode).save(folder / name)
        label = int(logits(model, steps, folder / name).argmax())
        (folder / str(label)).mkdir(exist_ok=True)
        (folder / name).rename(folder / str(label) / name)
        classes[f"{label}/{name}"] = label
    return dict(sorted(classes.items()))


SOURCE = f"{Path(__file__).stem}:small_vit"
ASKED = ("--preprocess", STEPS)
CODE_PATH = ("--code-path", Path(__file__).parent)


@dataclass(frozen=True)
class Compiled:
    """A bundle of a model, compiled on pictures whose classes it names right."""

    model: nn.Module
    steps: Preprocessing
    photos: Path
    classes: dict[str, int]
    bundle: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiled by the command, with steps that are asked for."""
    folder = tmp_path_factory.mktemp("asked")
    model, steps, photos = small_vit(), parse_preprocessing(STEPS), folder / "photos"
    photos.mkdir()
    classes = photographs(photos, model, steps)
    given = [*CODE_PATH, "--inputs", photos, *ASKED, "--json"]
    answer = compile_model(SOURCE, folder / "bundle", *given)
    assert answer.code == 0
    return Compiled(model, steps, photos, classes, folder / "bundle", answer.json)


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compiled from Python, with the steps of timm."""
    folder = tmp_path_factory.mktemp("timm")
    model, photos, bundle = timm_vit(), folder / "photos", folder / "bundle"
    steps = timm_preprocessing(model)
    assert steps is not None
    photos.mkdir()
    classes = photographs(photos, model, steps)
    report = compile(model, target="ort", output=bundle, inputs=photos, timed=False).report
    return Compiled(model, steps, photos, classes, bundle, report.to_json())


@pytest.fixture(params=["asked", "of_timm"])
def compiled(request: pytest.FixtureRequest) -> Compiled:
    found: Compiled = request.getfixturevalue(request.param)
    return found


def test_a_folder_of_pictures_becomes_a_bundle(compiled: Compiled) -> None:
    report = compiled.report
    assert report["status"] == "PASSED"
    assert report["samples"] == len(compiled.classes)
    assert report["inputs"].startswith("6 pictures of photos (")
    assert (report["accuracy"]["before"], report["accuracy"]["after"]) == (1.0, 1.0)
    assert report["accuracy"]["samples"] == 6
    said = " ".join(report["warnings"])
    assert "In 1 of 6 pictures colours were converted" in said


def test_the_manifest_holds_the_steps(compiled: Compiled) -> None:
    manifest = json.loads((compiled.bundle / "manifest.json").read_text())
    assert Preprocessing.from_json(manifest["preprocessing"]) == compiled.steps
    assert manifest["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert manifest["classes"] == {str(label): label for label in compiled.classes.values()}


def test_run_takes_the_steps_of_the_manifest(compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "y.npz"
    given = ("run", compiled.bundle, "--inputs", compiled.photos, "--output", output)
    found = tokexport(*given, "--json").json
    assert found["accuracy"] == 1.0
    assert found["files"] == [*compiled.classes]
    with np.load(output) as arrays, load(compiled.bundle) as runner:
        (name,) = arrays.files
        for row, path in zip(arrays[name], compiled.classes, strict=True):
            picture = decode(compiled.photos / path).pixels
            x = compiled.steps.apply(picture)[None]
            (spec,) = runner.inputs
            np.testing.assert_array_equal(row, runner.run({spec.name: x})[name][0])
            wanted = logits(compiled.model, compiled.steps, compiled.photos / path)
            np.testing.assert_allclose(row, wanted.numpy(), atol=1e-4)
    said = tokexport(*given, "--force").said
    assert "; 100.00% of the labels are right" in said
    assert "warning: In 1 of 6 pictures colours" in said


def test_run_on_some_of_a_list_by_names(asked: Compiled, tmp_path: Path) -> None:
    names = ["one", "two", "three", "four", "five"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    wrong = (next(iter(asked.classes.values())) + 1) % 5
    rows = [f"{asked.photos / path},{names[label]}" for path, label in asked.classes.items()]
    rows[0] = rows[0].rpartition(",")[0] + f",{names[wrong]}"
    (tmp_path / "list.csv").write_text("\n".join(rows))
    given = ["run", asked.bundle, "--inputs", tmp_path / "list.csv"]
    given += ["--output", tmp_path / "y.npz", "--labels", tmp_path / "names.txt", "--json"]
    assert tokexport(*given).json["accuracy"] == pytest.approx(5 / 6)
    some = tokexport(*given, "--force", "--samples", "2").json
    assert (some["samples"], some["accuracy"]) == (2, 0.5)


def test_run_takes_the_classes_of_the_manifest(asked: Compiled, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(asked.bundle, tmp_path / "bundle"))
    names = ["one", "two", "three", "four", "five"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["classes"] = {name: number for number, name in enumerate(names)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    rows = [f"{asked.photos / path},{names[label]}" for path, label in asked.classes.items()]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    given = ["run", bundle, "--inputs", tmp_path / "list.csv", "--output", tmp_path / "y.npz"]
    found = tokexport(*given, "--json").json
    assert found["accuracy"] == 1.0
    assert "numbered as the bundle's manifest names them" in found["inputs"]


def test_classes_in_sorted_order_that_are_not_the_models_are_warned_of(
    asked: Compiled, tmp_path: Path
) -> None:
    shutil.copytree(asked.photos, tmp_path / "photos" / "cat")
    given = ["run", asked.bundle, "--inputs", tmp_path / "photos", "--output", tmp_path / "y.npz"]
    warnings = tokexport(*given, "--json").json["warnings"]
    assert any("and the model has 5" in one and "--labels" in one for one in warnings)


def test_other_steps_may_be_asked_for(of_timm: Compiled, tmp_path: Path) -> None:
    given = ["run", of_timm.bundle, "--inputs", of_timm.photos, "--output", tmp_path / "y.npz"]
    assert tokexport(*given, "--preprocess", "mean=none,mode=squash", "--json").code == 0
    with np.load(tmp_path / "y.npz") as arrays, load(of_timm.bundle) as runner:
        steps = parse_preprocessing("mean=none,mode=squash", (32, 32))
        x = steps.apply(decode(of_timm.photos / next(iter(of_timm.classes))).pixels)[None]
        (spec,) = runner.inputs
        (wanted,) = runner.run({spec.name: x}).values()
        np.testing.assert_array_equal(arrays[arrays.files[0]][0], wanted[0])


def test_other_commands_take_pictures(asked: Compiled) -> None:
    photos = ["--inputs", asked.photos, "--samples", "3"]
    against = ["--against", SOURCE, *CODE_PATH]
    found = tokexport("verify", asked.bundle, *against, *photos, "--json").json
    assert (found["verdict"], found["samples"]) == ("arithmetic", 3)
    assert found["inputs"].startswith("3 of 6 pictures")
    found = tokexport("compare", asked.bundle, SOURCE, *CODE_PATH, *photos, "--json").json
    assert found["samples"] == 3
    given = [*CODE_PATH, *ASKED, *photos, "--target", "ort", "--json"]
    assert tokexport("inspect", SOURCE, *given).json["inputs"] == {"x": [1, 3, 32, 32]}


def test_verify_against_another_preprocessing_fails(asked: Compiled) -> None:
    given = ["verify", asked.bundle, "--against", SOURCE, *CODE_PATH]
    answer = tokexport(*given, "--inputs", asked.photos, "--preprocess", "size=32,mean=none")
    assert answer.code == 1
    assert "the preprocessing is another" in answer.said


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((), ("Nothing says which size", "--preprocess size=224,crop=0.9")),
        (("--preprocess", "mean=none"), ("no size", "size=224")),
        (("--preprocess", "size=32"), ("says no mean",)),
        (("--preprocess", "size=32,mean=none,crops=1"), ("'crops=1' is no step",)),
        (("--preprocess", "size=16,mean=none", "--input-shape", "1,3,32,32"), ("become 16 × 16",)),
        (("--input-shape", "1,3,32,32"), ("Nothing says how a picture", "size=32,crop=0.9")),
    ],
)
def test_what_is_missing_is_said(
    options: tuple[str, ...], parts: tuple[str, ...], asked: Compiled, tmp_path: Path
) -> None:
    given = [*CODE_PATH, "--inputs", asked.photos, *options]
    refusal(compile_model(SOURCE, tmp_path / "out", *given), 2, tmp_path, *parts)


def test_a_broken_picture_ends_the_compile(asked: Compiled, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(asked.photos, tmp_path / "photos"))
    path = photos / next(name for name in asked.classes if name.endswith("jpg"))
    path.write_bytes(path.read_bytes()[:200])
    given = [*CODE_PATH, "--inputs", photos, *ASKED]
    answer = compile_model(SOURCE, tmp_path / "out", *given)
    refusal(answer, 2, tmp_path, "cannot be decoded", str(path), "leave it out")
