"""What makes tokens of images, joined for ONNX Runtime, held to eager with kernels and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.graphs import lowered_for_ort
from torch import Tensor, nn

CHANNELS = 24
Outputs = Tensor | tuple[Tensor, ...]
Forward = Callable[["Embedding", Tensor], Outputs]


class Embedding(nn.Module):
    """Patches of 8 × 6 pixels, tokens of its own and positions, put together as told."""

    def __init__(self, forward: Forward, **options: object) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, CHANNELS, (8, 6), **{"stride": (8, 6), **options})  # type: ignore[arg-type]
        self.cls = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.registers = nn.Parameter(torch.randn(1, 2, CHANNELS))
        self.positions = nn.Parameter(torch.randn(1, 15, CHANNELS))
        self.told = forward

    def forward(self, x: Tensor) -> Outputs:
        """(B, 3, 24, 32) -> (B, 15 or more, C)."""
        return self.told(self, x)

    def tokens(self, x: Tensor) -> Tensor:
        """The patches alone, (B, 15, C)."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def in_front(self, *which: Tensor) -> list[Tensor]:
        """Those tokens for each image."""
        return [one.expand(self.batch, -1, -1) for one in which]

    batch = 1


def all_before(m: Embedding, x: Tensor) -> Tensor:
    positions = torch.cat([m.registers[:, :1], m.positions], 1)
    return torch.cat([*m.in_front(m.cls), m.tokens(x)], 1) + positions


def patches_alone(m: Embedding, x: Tensor) -> Tensor:
    joined = [*m.in_front(m.cls, m.registers), m.tokens(x) + m.positions]
    return torch.cat(joined, 1)


def neither(m: Embedding, x: Tensor) -> Tensor:
    return m.tokens(x) * 2


def one_row_for_all(m: Embedding, x: Tensor) -> Tensor:
    return (m.tokens(x) + m.cls) * 2


JOINED: dict[str, tuple[Forward, dict[str, object]]] = {
    "positions of all": (all_before, {}),
    "positions of patches": (patches_alone, {}),
    "no positions": (neither, {}),
    "one row for all": (one_row_for_all, {}),
    "no bias": (all_before, {"bias": False}),
}


def lowered_and_checked(model: Embedding, x: Tensor, folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in lowered_for_ort(model, x, folder).graph)


def built(forward: Forward, batch: int, **options: object) -> Embedding:
    torch.manual_seed(0)
    model = Embedding(forward, **options).eval()
    model.batch = batch
    return model


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", JOINED)
def test_an_embedding_is_one_call(name: str, batch: int, tmp_path: Path) -> None:
    forward, options = JOINED[name]
    x = torch.randn(batch, 3, 24, 32, generator=torch.Generator().manual_seed(1))  # 2 columns over
    found = lowered_and_checked(built(forward, batch, **options), x, tmp_path)
    assert found["patch_embed"] == 1
    assert found["Conv"] == found["Concat"] == found["Add"] == 0


def of_the_image(m: Embedding, x: Tensor) -> Tensor:
    tokens = m.tokens(x)
    return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)


def behind(m: Embedding, x: Tensor) -> Tensor:
    return torch.cat([m.tokens(x), *m.in_front(m.cls)], 1)


def test_tokens_that_depend_on_the_image_stay_apart(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    found = lowered_and_checked(built(of_the_image, 2), x, tmp_path)
    assert found["Concat"] == 1


def read_twice(m: Embedding, x: Tensor) -> tuple[Tensor, Tensor]:
    tokens = m.tokens(x)
    return torch.cat([*m.in_front(m.cls), tokens], 1), tokens * 2


def test_tokens_that_are_read_twice_are_joined_up_to_there(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    found = lowered_and_checked(built(read_twice, 2), x, tmp_path)
    assert (found["patch_embed"], found["Concat"]) == (1, 1)


def one_for_each_image(m: Embedding, x: Tensor) -> Tensor:
    return torch.cat([torch.stack([m.cls[0], m.registers[0, :1]]), m.tokens(x)], 1)


def test_constant_tokens_that_differ_by_image_stay_apart(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    found = lowered_and_checked(built(one_for_each_image, 2), x, tmp_path)
    assert (found["patch_embed"], found["Concat"]) == (1, 1)


def test_tokens_behind_the_patches_stay_apart(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    found = lowered_and_checked(built(behind, 2), x, tmp_path)
    assert (found["patch_embed"], found["Concat"]) == (1, 1)


@pytest.mark.parametrize(
    "options",
    [{"stride": (4, 6)}, {"dilation": (2, 1)}, {"padding": (0, 3)}, {"groups": 3}],
    ids=str,
)
def test_patches_that_do_not_lie_side_by_side_stay_a_convolution(
    options: dict[str, object], tmp_path: Path
) -> None:
    x = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    found = lowered_and_checked(built(neither, 1, **options), x, tmp_path)
    assert (found["patch_embed"], found["Conv"]) == (0, 1)
