"""Trains a small ViT on pictures of digits, and keeps pictures that it did not see as PNG files."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from helpers.torchvision_ops import define_torchvision_operators
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tokexport
from tokexport.runtimes.pictures import decode, parse_preprocessing

define_torchvision_operators()

import timm  # noqa: E402

#: From a picture to the model's input, as ``--preprocess`` takes it.
TEXT: Final = "size=32,crop=0.9,mean=half,interpolation=bicubic"
STEPS: Final = parse_preprocessing(TEXT)
NAMES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    "nine",
)
#: Height and width of the pictures.
PICTURE: Final = (48, 64)
#: What ``compile_reduced`` puts into the model.
REDUCTION: Final = "tome:r=3,blocks=blocks"
#: How far a probability may be off that of eager.
OFF: Final = 2e-5
_UNSEEN = 12


@dataclass(frozen=True)
class Trained:
    """A model that was trained, and pictures that it did not see.

    Attributes:
        model: The model.
        photos: A folder of pictures.
        names: A file of the names of its classes.
        paths: The pictures.
        probabilities: What it makes of them in eager, (pictures, 10).
        digits: What they show.
    """

    model: nn.Module
    photos: Path
    names: Path
    paths: list[Path]
    probabilities: np.ndarray
    digits: np.ndarray


def drawn(digit: np.ndarray) -> Image.Image:
    """Draws a digit (8, 8) of 0 … 16 in colour on a picture."""
    grey = Image.fromarray((digit * 15).astype(np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", PICTURE[::-1], (20, 30, 60))
    picture.paste(Image.merge("RGB", (grey, grey.rotate(180), grey)), (12, 4))
    return picture


def vit() -> nn.Module:
    """Returns a small ViT for pictures of 32 × 32, of fresh weights."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "depth": 3}
    made: nn.Module = timm.models.VisionTransformer(**options, mlp_ratio=2, num_classes=10)
    return made


@functools.cache
def _once() -> nn.Module:
    """Trains the ViT for a moment, once in a process."""
    torch.manual_seed(0)
    data = load_digits()
    x = _inputs([drawn(one) for one in data.images[:-_UNSEEN]])
    y = torch.from_numpy(data.target)
    model = vit().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows], label_smoothing=0.2).backward()
            optimizer.step()
    return model.eval()


def _inputs(pictures: Sequence[Image.Image]) -> Tensor:
    """Returns pictures as the model takes them, (N, 3, 32, 32)."""
    return torch.from_numpy(np.stack([STEPS.apply(np.asarray(one)) for one in pictures]))


def train(folder: Path) -> Trained:
    """Trains the ViT, and writes pictures and names into a folder."""
    model, data = copy.deepcopy(_once()), load_digits()
    pictures = [drawn(one) for one in data.images[-_UNSEEN:]]
    photos = folder / "photos"
    photos.mkdir()
    paths = [photos / f"{place:02}.png" for place in range(_UNSEEN)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    (folder / "names.txt").write_text("\n".join(NAMES))
    with torch.no_grad():
        probabilities = model(_inputs(pictures)).softmax(-1).numpy()
    digits = data.target[-_UNSEEN:]
    assert (probabilities.argmax(-1) == digits).mean() > 0.6
    return Trained(model, photos, folder / "names.txt", paths, probabilities, digits)


def hold(found: Sequence[Mapping[str, Any]], probabilities: np.ndarray, off: float = OFF) -> None:
    """Holds the five highest classes of pictures to probabilities, up to near-ties.

    Args:
        found: The pictures as ``run --json`` prints them.
        probabilities: (pictures, 10).
        off: How far a probability may be off.
    """
    assert len(found) == len(probabilities)
    for picture, wanted in zip(found, probabilities, strict=True):
        order = np.argsort(-wanted)[:6]
        values = wanted[order]
        assert len(picture["classes"]) == 5
        for rank, one in enumerate(picture["classes"]):
            assert one["score"] == pytest.approx(values[rank], abs=off)
            assert one["margin"] == pytest.approx(values[rank] - values[rank + 1], abs=2 * off)
            assert one["label"] == NAMES[one["index"]]
            apart = np.abs(np.delete(values, rank) - values[rank]).min()
            if apart > 4 * off:
                assert one["index"] == order[rank]


def compile_reduced(trained: Trained, output: Path, target: str, batch: int, embed: bool) -> Path:
    """Compiles the model with merging in every block.

    Args:
        trained: The model.
        output: The folder of the bundle.
        target: ``ort`` or ``openvino``.
        batch: How many pictures it takes at once.
        embed: Whether it takes the bytes of whole pictures, and resizes them itself.
    """
    done = tokexport.compile(
        *(trained.model, torch.rand(batch, 3, 32, 32), target),
        output=output,
        inputs=trained.photos,
        reduce=REDUCTION,
        preprocess=TEXT,
        labels=trained.names,
        embed_preprocess=f"{PICTURE[0]}x{PICTURE[1]}" if embed else None,
        timed=False,
        page=False,
    )
    assert done.status == "PASSED"
    return done.bundle


def reduced_probabilities(trained: Trained) -> np.ndarray:
    """Returns what the model with merging makes of the pictures in eager, (pictures, 10)."""
    model = tokexport.reduce(trained.model, REDUCTION, torch.rand(2, 3, 32, 32))
    x = torch.from_numpy(np.stack([STEPS.apply(decode(one).pixels) for one in trained.paths]))
    with torch.no_grad():
        found: np.ndarray = model(x).softmax(-1).numpy()
    assert np.abs(found - trained.probabilities).max() > 100 * OFF
    return found
