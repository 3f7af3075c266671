"""Makes a classifier of Fashion-MNIST on DINOv2's trained weights, and keeps it in a cache.

    cache/backbone               Dinov2Model, rebuilt from the file and held to it
    cache/features-bundle-112    that model compiled: class token and mean of the patches
    cache/features-112.npz       features (5000, 768) of the images of the head
    cache/classifier-112         Dinov2ForImageClassification with a linear head
    cache/eager-112.npy          its logits in eager (1000, 10) on the images of the evaluation

Each is made once. The head is a multinomial logistic regression on standardised features; its
weight decay is the best on a fifth of the images, and it is then trained on all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fashion_mnist
import numpy as np
import torch
from dinov2_rebuild import TOLERANCE, distance, load, read, write_backbone, write_classifier
from fetched_packages import fetch_images, fetch_onnx
from torch import Tensor, nn

HEAD, PROOF, EVALUATION = 5000, 200, 1000
WEIGHT_DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: The image that the rebuilt model is held to the file on, and its size.
HELD_ON, HELD_AT = 0, 224


@dataclass(frozen=True)
class Images:
    """Images with their classes.

    Attributes:
        grey: (N, 28, 28) bytes.
        labels: (N,) int64.
    """

    grey: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Setting:
    """A classifier at one size, and the images that it is made and judged with.

    Attributes:
        cache: The folder that everything is kept in.
        side: Height and width of its images.
    """

    cache: Path
    side: int

    @cached_property
    def data(self) -> Path:
        """The folder of the images."""
        return fetch_images(self.cache)

    def head_images(self) -> Images:
        """Returns the images that the head is trained on."""
        return self._drawn("train", slice(HEAD))

    def proof_images(self) -> Images:
        """Returns further training images, that compiling proves and measures ranges on."""
        return self._drawn("train", slice(HEAD, HEAD + PROOF))

    def evaluation_images(self) -> Images:
        """Returns test images, that neither the head nor the choice of its decay saw."""
        return self._drawn("t10k", slice(EVALUATION))

    def _drawn(self, part: str, which: slice) -> Images:
        grey, labels = fashion_mnist.images(self.data, part), fashion_mnist.labels(self.data, part)
        rows = np.random.default_rng(0).permutation(len(grey))[which]
        return Images(grey[rows], labels[rows])

    def pixels(self, images: Images) -> np.ndarray:
        """Returns (N, 3, side, side)."""
        return fashion_mnist.pixels(images.grey, self.side)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the classifier's input."""
        return 1, 3, self.side, self.side

    def backbone(self) -> Path:
        """Returns the folder of the rebuilt model.

        Raises:
            ValueError: It does not compute what the file computes.
        """
        folder = self.cache / "backbone"
        if not (folder / "rebuilt.json").exists():
            file = load(fetch_onnx(self.cache))
            write_backbone(file, folder)
            images = fashion_mnist.images(self.data, "train")[HELD_ON : HELD_ON + 1]
            off = distance(file, read(folder), fashion_mnist.pixels(images, HELD_AT))
            if not off <= TOLERANCE:
                raise ValueError(f"The rebuilt model is off by {off:.1e}, not {TOLERANCE:.0e}.")
            (folder / "rebuilt.json").write_text(json.dumps({"off_by": off}), encoding="utf-8")
        return folder

    def features_bundle(self) -> Path:
        """Returns the bundle whose output is the features: what a head of ones would see."""
        bundle = self.cache / f"features-bundle-{self.side}"
        if not bundle.exists():
            import tokexport

            ones = self.cache / f"features-{self.side}"
            write_classifier(self.backbone(), torch.eye(768), torch.zeros(768), ones)
            tokexport.compile(
                read(ones),
                torch.from_numpy(self.pixels(self.proof_images())[:1]),
                output=bundle,
                threads=1,
                timed=False,
            )
        return bundle

    def features(self) -> np.ndarray:
        """Returns (5000, 768) of the images of the head."""
        return self._kept(
            f"features-{self.side}.npy",
            lambda: answers(self.features_bundle(), self.pixels(self.head_images())),
        )

    def folder(self) -> Path:
        """Returns the folder of the classifier."""
        folder = self.cache / f"classifier-{self.side}"
        if not (folder / "head.json").exists():
            head = self.head_images()
            weight, bias, found = trained_head(self.features(), head.labels)
            names = fashion_mnist.CLASSES
            write_classifier(self.backbone(), weight, bias, folder, names)
            (folder / "head.json").write_text(json.dumps(found), encoding="utf-8")
        return folder

    def proof(self, labelled: bool = True) -> Path:
        """Returns the file that compile reads as ``--inputs``."""
        path = self.cache / f"proof-{self.side}{'' if labelled else '-unlabelled'}.npz"
        if not path.exists():
            images = self.proof_images()
            arrays: dict[str, Any] = {"pixel_values": self.pixels(images)}
            arrays |= {"labels": images.labels} if labelled else {}
            np.savez(path, **arrays)
        return path

    def eager(self) -> np.ndarray:
        """Returns the logits (1000, 10) of the classifier in eager on the evaluation's images."""

        def run() -> np.ndarray:
            model = read(self.folder())
            images = torch.from_numpy(self.pixels(self.evaluation_images()))
            with torch.no_grad():
                return torch.cat([model(part).logits for part in images.split(10)]).numpy()

        return self._kept(f"eager-{self.side}.npy", run)

    def _kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.cache / name
        if not path.exists():
            np.save(path, make())
        found: np.ndarray = np.load(path)
        return found


def measured_side(setting: Setting) -> dict[str, Any]:
    """Measures a size on fewer images in eager; returns accuracy, tokens and time for an image.

    The head is trained on the first 1,600 of its images, and judged on the 400 behind them.
    """
    model = read(setting.backbone())
    head = setting.head_images()
    count, held = 2000, 400
    images = torch.from_numpy(setting.pixels(Images(head.grey[:count], head.labels[:count])))
    begin, found = time.process_time(), []
    with torch.no_grad():
        for part in images.split(10):
            tokens = model(part).last_hidden_state
            found.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    ms = 1000 * (time.process_time() - begin) / count
    features = torch.cat(found).numpy()
    weight, bias, _ = trained_head(features[:-held], head.labels[: count - held])
    logits = features[-held:] @ weight.numpy().T + bias.numpy()
    hits = float((logits.argmax(1) == head.labels[count - held : count]).mean())
    return {"tokens": tokens.shape[1], "accuracy": hits, "images": held, "processor_ms": ms}


def answers(bundle: Path, pixels: np.ndarray) -> np.ndarray:
    """Runs a bundle on images (N, 3, H, W), one by one on one thread; returns its only output."""
    import tokexport.runtimes

    with tokexport.runtimes.load(bundle, threads=1) as runner:
        (spec,) = runner.inputs
        found = [next(iter(runner.run({spec.name: one[None]}).values())) for one in pixels]
    return np.concatenate(found)


def trained_head(features: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Trains a linear head.

    Args:
        features: (N, channels)
        labels: (N,)

    Returns:
        The weight (classes, channels), the bias (classes,), and how it was found: the accuracy on
        the fifth held out of each weight decay, and the decay that was taken.
    """
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    mean, std = x.mean(0), x.std(0)
    x = (x - mean) / std
    held = len(x) // 5
    tried = {}
    for decay in WEIGHT_DECAYS:
        head = _fitted(x[held:], y[held:], decay)
        tried[decay] = float((head(x[:held]).argmax(1) == y[:held]).double().mean())
    best = max(tried, key=lambda decay: tried[decay])
    head = _fitted(x, y, best)
    weight = head.weight.detach() / std
    bias = head.bias.detach() - weight @ mean
    found = {"weight_decay": best, "held_out": {f"{one:g}": hit for one, hit in tried.items()}}
    return weight.float(), bias.float(), found


def _fitted(x: Tensor, y: Tensor, decay: float) -> nn.Linear:
    """Minimises the cross-entropy and ``decay / 2`` times the squared weight."""
    head = nn.Linear(x.shape[1], int(y.max()) + 1, dtype=x.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    search = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = nn.functional.cross_entropy(head(x), y) + decay / 2 * head.weight.square().sum()
        found.backward()
        return found

    search.step(loss)
    return head
