"""Reduction between a vision encoder and a language model: VTC-CLS and the merging stage of AIM.

Both take a CLIP-like tower that gives hidden states and attentions, and end in a projector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from models.zoo.vit import WIDTH, Attention, Block, Vit, images
from torch import Tensor, nn

PROJECTED = 64


class TowerOutput(NamedTuple):
    """Hidden states before every block and behind the last; attentions of every block."""

    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]


class Tower(Vit):
    """A vision encoder that keeps what its layers saw."""

    def forward(self, x: Tensor) -> TowerOutput:
        x = self.embed(x)
        states, attentions = [x], []
        for block in self.blocks:
            assert isinstance(block, Block)
            x, weights = self.run(block, block.attn, x)
            states.append(x)
            attentions.append(weights)
        return TowerOutput(tuple(states), tuple(attentions))

    @staticmethod
    def run(block: Block, attn: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs a block; returns its attention probabilities too."""
        q, k, v = attn.heads(block.norm1(x))
        weights = nn.functional.softmax(q @ k.transpose(2, 3) * attn.scale, dim=-1)
        x = x + attn.join(weights @ v)
        return x + block.mlp(block.norm2(x)), weights


def projector() -> nn.Module:
    """The two layers in front of the language model."""
    return nn.Sequential(nn.Linear(WIDTH, PROJECTED), nn.GELU(), nn.Linear(PROJECTED, PROJECTED))


class VtcCls(nn.Module):
    """Keeps the patches that the class token attended to over several layers."""

    def __init__(self, tokens: int, start_layer: int, select_layer: int = -2) -> None:
        super().__init__()
        self.vision_tower = Tower()
        self.mm_projector = projector()
        self.tokens, self.start, self.select = tokens, start_layer, select_layer

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns (B, tokens, PROJECTED)."""
        outs = self.vision_tower(pixel_values)
        features = outs.hidden_states[self.select][:, 1:]
        layers = outs.attentions[self.start : -1]
        score = torch.stack([a.mean(dim=1)[:, 0, 1:] for a in layers]).sum(dim=0)
        _, top = score.topk(self.tokens, dim=-1)
        top, _ = torch.sort(top, dim=-1)
        batch = torch.arange(features.shape[0]).unsqueeze(-1).expand(-1, self.tokens)
        result: Tensor = self.mm_projector(features[batch, top])
        return result


def merge_half(x: Tensor) -> Tensor:
    """One round of matching on the features themselves: (B, N, C) → (B, N - N // 2, C)."""
    B, N, C = x.shape
    r = N // 2
    metric = x / x.norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(-1, -2)
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
    unm_idx, src_idx = edge_idx[:, r:], edge_idx[:, :r]
    dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)
    src, dst = x[:, ::2], x[:, 1::2]
    unm = src.gather(dim=-2, index=unm_idx.expand(B, src.shape[1] - r, C))
    src = src.gather(dim=-2, index=src_idx.expand(B, r, C))
    dst = dst.scatter_reduce(-2, dst_idx.expand(B, r, C), src, reduce="mean")
    return torch.cat([unm, dst], dim=1)


class Aim(nn.Module):
    """Merges the projected features twice, to a quarter."""

    def __init__(self, rounds: int, cut: int) -> None:
        super().__init__()
        self.vision_tower = Tower()
        self.mm_projector = projector()
        self.rounds, self.cut = rounds, cut

    def forward(self, images: Tensor) -> Tensor:
        """Returns about a quarter of the features."""
        features = self.vision_tower(images).hidden_states[-2][:, 1:]
        x: Tensor = self.mm_projector(features)[:, self.cut :]
        for _ in range(self.rounds):
            x = merge_half(x)
        return x


def build_vtc_cls(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Nine of 36 patches, by the layers from the second on."""
    torch.manual_seed(seed)
    return VtcCls(9, 1).eval(), images()


def build_aim(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """36 features become 9; every even one merges, so none is left over."""
    torch.manual_seed(seed)
    return Aim(2, 0).eval(), images()


def build_aim_odd(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """35 features become 18, then 9."""
    torch.manual_seed(seed)
    return Aim(2, 1).eval(), images()
