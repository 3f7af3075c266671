"""Trains a small ViT that merges tokens on scikit-learn's digits, and compiles it.

Leaves in ``demo-output/``::

    model.pt      the whole module, as torch.save writes it
    weights.pt    its state dict
    test.npz      the test images and their labels
    model-ort/    the bundle
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from digits_vit import DigitsViT
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EXAMPLES = Path(__file__).parent
BATCH = 32


def main() -> int:
    """Trains, saves, compiles; returns the exit code of the compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--target", choices=("ort", "openvino", "trt"), default="ort")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)  # more of them only wait for each other on tensors this small
    train_x, test_x, train_y, test_y = digits(options.seed)
    torch.manual_seed(options.seed)
    model = train(DigitsViT(), train_x, train_y, options.epochs)
    print(f"Test accuracy in PyTorch: {accuracy(model, test_x, test_y):.2%}\n", flush=True)

    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(model, options.output / "model.pt")
    torch.save(model.state_dict(), options.output / "weights.pt")
    np.savez(options.output / "test.npz", image=test_x.numpy(), labels=test_y.numpy())

    # model.pt is a pickle: --trust-pickle says that its code may run, which is right for a file
    # made a moment ago, and --code-path says where the class of the module is found.
    command = ["tokexport", "compile", f"{options.output}/model.pt", "--trust-pickle"]
    command += ["--code-path", str(EXAMPLES), "--inputs", f"{options.output}/test.npz"]
    command += ["--target", options.target]
    command += ["--output", f"{options.output}/model-{options.target}", "--force"]
    print("$", shlex.join(command), flush=True)
    return subprocess.run([Path(sys.executable).with_name("tokexport"), *command[1:]]).returncode


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the images for training and testing, (B, 1, 8, 8) from 0 to 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return train_x, test_x, train_y, test_y


def train(model: DigitsViT, images: Tensor, labels: Tensor, epochs: int) -> DigitsViT:
    """Trains the model on the images, some of them moved by a pixel, and returns it for use."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    batches = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * batches)
    begin = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(
                model(moved(images[rows])), labels[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            seconds = time.monotonic() - begin
            print(
                f"epoch {epoch + 1:3}  loss {total / len(images):.3f}  {seconds:.0f} s", flush=True
            )
    return model.eval()


def moved(images: Tensor) -> Tensor:
    """Moves about half of the images by up to one pixel; what comes in is background."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # (B, 1, 3, 3, 8, 8)
    chosen = torch.rand(len(images)) < 0.5
    down, right = torch.where(chosen, torch.randint(3, (2, len(images))), 1)
    return windows[torch.arange(len(images)), :, down, right]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of images classified right, 0 to 1."""
    return float((model(images).argmax(dim=-1) == labels).float().mean())


if __name__ == "__main__":
    sys.exit(main())
