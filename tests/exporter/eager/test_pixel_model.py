"""What is embedded of a preprocessing gives the numbers that the runner's own steps give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.eager.flat_model import call_spec
from tokexport.exporter.eager.pixel_model import PixelModel, Resize
from tokexport.exporter.errors import UsageError
from tokexport.runtimes.errors import PreprocessingError
from tokexport.runtimes.pictures import Preprocessing, parse_preprocessing

#: The largest difference from the runner's own steps, in levels of 255: scaling rounds otherwise.
OFF = 1e-3


class Same(nn.Module):
    """Returns what it takes."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def pixel_model(left: Preprocessing) -> PixelModel:
    assert left.embedded is not None
    example = torch.zeros(1, 3, *left.embedded.size)
    return PixelModel(Same(), call_spec(Same(), (example,), {}), left)


def off(steps: Preprocessing, pictures: list[np.ndarray], left: Preprocessing) -> float:
    """The largest difference on pictures (H, W, 3), in levels of 255."""
    assert Preprocessing.from_json(left.to_json()) == left
    assert left.whole == steps
    given = np.stack([left.apply(one) for one in pictures])
    assert given.dtype == np.uint8
    assert given.shape[1:] == (*left.size, 3)
    with torch.no_grad():
        found = pixel_model(left)(torch.from_numpy(given)).numpy()
    wanted = np.stack([steps.apply(one) for one in pictures])
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    std = np.array(steps.std or (1.0,) * 3)[:, None, None] / (steps.rescale_factor or 1 / 255) / 255
    return float(np.abs((found - wanted) * std).max() * 255)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Two photographs of 427 × 640."""
    from sklearn.datasets import load_sample_images

    return [np.ascontiguousarray(one) for one in load_sample_images().images]


def of_transformers(**options: Any) -> Preprocessing:
    """Steps as an image processor has them."""
    steps = parse_preprocessing("size=224,mean=imagenet")
    return replace(steps, crop_mode=None, crop_pct=None, **options)


STEPS = {
    "imagenet": parse_preprocessing("size=224,crop=0.9,mean=imagenet"),
    "bilinear": parse_preprocessing("size=224,crop=0.875,mean=half,interpolation=bilinear"),
    "lanczos": parse_preprocessing("size=96,crop=1,mean=clip,interpolation=lanczos"),
    "hamming": parse_preprocessing("size=95,mean=none,interpolation=hamming"),
    "box": parse_preprocessing("size=61x80,mean=half,interpolation=box"),
    "nearest": parse_preprocessing("size=112,mean=half,interpolation=nearest"),
    "squash": parse_preprocessing("size=160x224,mode=squash,mean=imagenet"),
    "border": parse_preprocessing("size=224,mode=border,mean=imagenet,crop=0.95"),
    "larger": parse_preprocessing("size=500,mean=imagenet"),
    "odd": of_transformers(size=(224, 224), resize=255, crop=(224, 224)),
    "padded": of_transformers(size=(64, 64), resize=41, crop=(64, 64)),
    "no crop": of_transformers(size=(100, 200), resize=(100, 200), crop=None),
    "crop alone": of_transformers(size=(300, 300), resize=None, crop=(300, 300)),
    "rows alone": of_transformers(size=(224, 640), resize=(224, 640), crop=None),
    "columns alone": of_transformers(size=(427, 224), resize=(427, 224), crop=None),
    "as bytes": of_transformers(
        size=(224, 224), resize=256, crop=(224, 224), rescale_factor=None, mean=None, std=None
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_embedded_steps_give_the_same_numbers(name: str, photographs: list[np.ndarray]) -> None:
    steps = STEPS[name]
    height, width = photographs[0].shape[:2]
    assert off(steps, photographs, steps.embedding((height, width))) < OFF
    assert off(steps, photographs, steps.embedding(None)) < OFF


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (301, 2), (37, 53), (224, 224)])
def test_any_size_of_pictures(size: tuple[int, int]) -> None:
    random = np.random.default_rng(6)
    pictures = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    pictures.append(np.where(pictures[0] < 128, 0, 255).astype(np.uint8))
    for text in ("size=24,crop=0.9,mean=imagenet", "size=24,mode=border,mean=clip"):
        steps = parse_preprocessing(text)
        assert off(steps, pictures, steps.embedding(size)) < OFF
        assert off(steps, pictures, steps.embedding(None)) < OFF


def test_bytes_are_those_of_pillow(photographs: list[np.ndarray]) -> None:
    steps = STEPS["as bytes"]
    left = steps.embedding((427, 640))
    with torch.no_grad():
        found = pixel_model(left)(torch.from_numpy(np.stack(photographs)))
    wanted = np.stack([steps.resized(one) for one in photographs]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("size", [(150, 100), (100, 150), (90, 90)])
def test_either_axis_may_come_first(size: tuple[int, int]) -> None:
    random = np.random.default_rng(7)
    pixels = random.integers(0, 256, (4, *size, 3), dtype=np.uint8)
    for wanted in ((50, 40), (50, 60), (20, 80), (99, 9)):
        steps = of_transformers(size=wanted, resize=wanted, crop=None)
        found = Resize(size, steps)(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        bytes_ = np.stack([steps.resized(one) for one in pixels]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(found.numpy(), bytes_)


@pytest.mark.parametrize("size", [(670, 2), (2, 670)])
def test_the_order_of_axes_is_found_for_one_pixel(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (300, *size, 3), dtype=np.uint8)
    steps = of_transformers(size=(1, 1), resize=(1, 1), crop=None, interpolation="lanczos")
    found = Resize(size, steps)(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    bytes_ = np.stack([steps.resized(one) for one in pixels]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found.numpy(), bytes_)


def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Preprocessing.resized
    monkeypatch.setattr(Preprocessing, "resized", lambda *given: right(*given) ^ 2)
    with pytest.raises(UsageError, match="resizes 64 × 64 pixels otherwise, by 2 levels"):
        Resize((64, 64), STEPS["imagenet"])


def test_pictures_of_another_size_are_refused(photographs: list[np.ndarray]) -> None:
    left = STEPS["imagenet"].embedding((480, 640))
    with pytest.raises(PreprocessingError, match="has 427 × 640 pixels"):
        left.apply(photographs[0])


def test_what_is_not_exact_is_refused() -> None:
    with pytest.raises(UsageError, match="sums that float32 does not hold"):
        pixel_model(parse_preprocessing("size=2,mean=half").embedding((8000, 8000)))
    with pytest.raises(UsageError, match="would become 8192 × 33554432"):
        pixel_model(parse_preprocessing("size=8192,mean=half").embedding((1, 4096)))


@pytest.mark.parametrize("value", ["x", [1], {"size": [1, 2]} | {"mean": "x"}, {"size": None}])
def test_untrusted_steps_are_checked(value: Any) -> None:
    data = STEPS["imagenet"].embedding(None).to_json() | {"embedded": value}
    with pytest.raises(PreprocessingError):
        Preprocessing.from_json(data)


def test_steps_do_not_nest_deeper() -> None:
    data = STEPS["imagenet"].embedding(None).to_json()
    data["embedded"]["embedded"] = data["embedded"] | {}
    found = Preprocessing.from_json(data)
    assert found.embedded is not None
    assert found.embedded.embedded is None
