"""A model of pixels and words, whose inputs a person gives by name and in any order."""

from __future__ import annotations

import torch
from models.tiny_vit import tiny_tome
from torch import Tensor, nn

WORDS = 40
WIDTH = 48


class PixelsAndWords(nn.Module):
    """Joins merged patches with words; the mask and the kinds of the words have one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_tome()
        self.vit.reset_classifier(0, global_pool="")  # it gives its tokens, (B, N, C)
        self.words, self.kinds = nn.Embedding(WORDS, WIDTH), nn.Embedding(2, WIDTH)
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
    ) -> Tensor:
        patches = self.vit(pixel_values)
        words = self.words(input_ids) + self.kinds(token_type_ids)
        seen = attention_mask.new_ones(attention_mask.shape[0], patches.shape[1])
        seen = torch.cat([seen, attention_mask], dim=1)
        bias = torch.where(seen[:, None] > 0, 0.0, -1e4)
        q, k, v = self.qkv(self.norm(torch.cat([patches, words], dim=1))).chunk(3, dim=-1)
        mixed = torch.softmax(q @ k.transpose(1, 2) * WIDTH**-0.5 + bias, dim=-1) @ v
        return mixed.mean(dim=1)


def pixels_and_words() -> nn.Module:
    """The model, with random weights under a fixed seed."""
    torch.manual_seed(0)
    model = PixelsAndWords()
    for table in (model.words, model.kinds):
        nn.init.normal_(table.weight)
    return model.eval()


def sample(batch: int, seed: int) -> dict[str, Tensor]:
    """Inputs of one batch, in the order of ``forward``."""
    draw = torch.Generator().manual_seed(seed)
    position = torch.arange(9)[None]
    length = torch.randint(5, 10, (batch, 1), generator=draw)
    first = torch.randint(1, 5, (batch, 1), generator=draw)
    return {
        "pixel_values": torch.randn(batch, 3, 48, 48, generator=draw),
        "input_ids": torch.randint(0, WORDS, (batch, 9), generator=draw),
        "attention_mask": (position < length).long(),
        "token_type_ids": (position >= first).long(),
    }


def mixed_up(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs, in an order that is not that of ``forward``."""
    order = ("token_type_ids", "attention_mask", "pixel_values", "input_ids")
    return {name: inputs[name] for name in order}


def with_inputs() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and its example inputs in another order."""
    return pixels_and_words(), mixed_up(sample(1, 0))
