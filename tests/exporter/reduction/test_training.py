"""A reduced model trains: gradients reach every weight through the merges."""

from __future__ import annotations

import pytest
import torch
from helpers.thorough import thorough_but
from models.plain_vits import build, image
from torch import Tensor, nn

import tokexport


def _digits() -> tuple[Tensor, Tensor]:
    """Returns 256 digits (256, 3, 48, 48) and their classes."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    x = torch.tensor(data[:256], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    large = nn.functional.interpolate(x, size=(48, 48), mode="nearest").expand(-1, 3, -1, -1)
    return large.contiguous(), torch.tensor(labels[:256])


@pytest.mark.parametrize(
    "recipe",
    thorough_but(
        ["tome:r=4", "evit"], ["tome:r=4", "mctf:r=5", "pitome", "tofu", "evit", "pyra:r=4"]
    ),
)
def test_a_few_steps_bring_the_loss_down(recipe: str) -> None:
    torch.manual_seed(0)
    x, labels = _digits()
    model = tokexport.reduce(build("timm DeiT"), recipe, image(1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(12):
        rows = slice(64 * (step % 4), 64 * (step % 4) + 64)
        loss = nn.functional.cross_entropy(model(x[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses


@pytest.mark.parametrize("recipe", ["tome:r=4", "mctf:r=5", "pitome", "dpcknn", "crossget:r=3"])
def test_gradients_reach_every_weight(recipe: str) -> None:
    model = tokexport.reduce(build("timm DeiT"), recipe, image(1)).train()
    model(image()).square().sum().backward()
    without = [name for name, one in model.named_parameters() if one.grad is None]
    assert without == []
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


def test_what_trains_the_reduced_model_trains_the_given_one() -> None:
    given = build("timm DeiT")
    model = tokexport.reduce(given, "tome:r=4", image(1)).train()
    before = {name: one.clone() for name, one in given.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image()).square().mean().backward()
    optimizer.step()
    changed = [n for n, one in given.state_dict().items() if not torch.equal(one, before[n])]
    assert len(changed) == len(before)


def test_its_weights_fit_the_given_model() -> None:
    given, other = build("timm DeiT", 0), build("timm DeiT", 1)
    reduced = tokexport.reduce(other, "mctf:r=5", image(1))
    given.load_state_dict(reduced.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(given(image()), other(image()))
