from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from models.tome_patched import patched

from tokexport.exporter.errors import PackageMissingError, SourceError, UsageError
from tokexport.exporter.source import Source, SourceOptions, load_source
from tokexport.exporter.source.preprocessing import timm_preprocessing

NAME = "timm:vit_tiny_patch16_224"


def load(name: str, checkpoint: Path | None = None) -> Source:
    return load_source(SourceOptions(name, checkpoint=checkpoint))


def test_a_name_gives_the_architecture_with_random_weights() -> None:
    source = load(NAME)
    assert source.kind == "timm"
    assert source.location == NAME
    assert not source.model.training
    assert source.example_args is None
    assert source.input_shapes == {"x": (1, 3, 224, 224)}
    assert source.notes == ("the weights are random: no checkpoint was given",)
    assert source.preprocessing is not None
    assert source.preprocessing.to_json() == {
        "size": [224, 224],
        "resize": 248,
        "crop": [224, 224],
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "rescale_factor": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "origin": "timm pretrained_cfg",
    }


def test_a_checkpoint_fills_it(tmp_path: Path) -> None:
    trained = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    torch.save({"model": trained.state_dict(), "epoch": 3}, tmp_path / "x.pth")
    source = load(NAME, tmp_path / "x.pth")
    x = torch.randn(1, 3, 224, 224)
    assert source.model(x).equal(trained(x))
    assert source.notes == ("the weights are those under 'model' in the checkpoint",)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    other = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(other.state_dict(), tmp_path / "x.pth")
    with pytest.raises(SourceError) as caught:
        load(NAME, tmp_path / "x.pth")
    assert "head.weight: (7, 192) in the file, (1000, 192) in the model" in str(caught.value)


def test_steps_agree_with_timms_own_transforms() -> None:
    from timm.data import create_transform, resolve_data_config

    for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_384", "eva02_tiny_patch14_336"):
        model = timm.create_model(name)
        steps = timm_preprocessing(model)
        assert steps is not None
        transform = create_transform(**resolve_data_config({}, model=model)).transforms
        by_name = {type(step).__name__: step for step in transform}
        resize = by_name["Resize"].size
        assert steps.resize == resize or steps.resize == tuple(resize)
        assert steps.crop == tuple(by_name["CenterCrop"].size)
        assert steps.interpolation == by_name["Resize"].interpolation.value
        assert steps.mean == pytest.approx(by_name["Normalize"].mean.tolist())
        assert steps.std == pytest.approx(by_name["Normalize"].std.tolist())


def test_a_size_asked_for_at_creation_is_the_models_size() -> None:
    model = patched("vit_tiny_patch16_224", r=2, img_size=64, depth=2, in_chans=1)
    steps = timm_preprocessing(model)
    assert steps is not None
    assert steps.size == steps.crop == (64, 64)


def test_a_factory_of_a_timm_model_brings_its_steps(tmp_path: Path) -> None:
    text = (
        "from models.tome_patched import patched\n"
        "def build(): return patched('vit_tiny_patch16_224', r=2, img_size=64, depth=2)\n"
    )
    (tmp_path / "source_patched.py").write_text(text, encoding="utf-8")
    source = load_source(SourceOptions("source_patched:build", (tmp_path,)))
    assert source.input_shapes == {"x": (1, 3, 64, 64)}
    assert source.preprocessing is not None
    assert source.preprocessing.size == (64, 64)


def test_an_unknown_name_gives_near_ones() -> None:
    with pytest.raises(SourceError) as caught:
        load("timm:vit_tiny_patch16_22")
    assert "There is no model 'vit_tiny_patch16_22' in timm" in str(caught.value)
    assert "vit_tiny_patch16_224" in str(caught.value)
    with pytest.raises(SourceError, match="All of them: python -c"):
        load("timm:")


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:a/b",
        "vit_tiny_patch16_224.hf-hub:a/b",
        "local-dir:/tmp",
        "vit_tiny_patch16_224/x",
        "",
    ],
)
def test_a_place_to_fetch_from_is_no_name(name: str) -> None:
    with pytest.raises(SourceError, match="There is no model"):
        load_source(SourceOptions(f"timm:{name}"))


def test_an_unknown_tag() -> None:
    with pytest.raises(SourceError) as caught:
        load(f"{NAME}.no_such_tag")
    assert f"Leave the tag out: {NAME}" in str(caught.value)


def test_timm_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PackageMissingError) as caught:
        load(NAME)
    assert "needs 'timm', which is not installed" in str(caught.value)
    assert "pip install 'tokexport[timm]'" in str(caught.value)


def test_a_torchvision_of_another_build_is_explained(tmp_path: Path) -> None:
    """Runs with a torchvision that fails as one built for another torch does."""
    folder = tmp_path / "torchvision"
    folder.mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (folder / "__init__.py").write_text(text, encoding="utf-8")
    code = (
        "from tokexport.exporter.source import *\n"
        "from tokexport.exporter.errors import *\n"
        f"try: load_source(SourceOptions({NAME!r}))\n"
        "except PackageMissingError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert "operator torchvision::nms does not exist" in done.stdout, done.stderr
    assert "they must be of one build" in done.stdout


def test_a_builder_does_not_go_with_it() -> None:
    with pytest.raises(UsageError, match="--builder does not go with this source"):
        load_source(SourceOptions(NAME, builder="a:b"))
