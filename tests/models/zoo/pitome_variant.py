"""PiToMe once more: the sorted list is laid out first, and merging is a product with one-hot rows.

On the weights of ``models.zoo.pitome`` it answers the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.vit import Block, Vit, images, seeded
from torch import Tensor, nn


def crowding(unit: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Returns the similarities (B, T, T) and their energies (B, T) of unit rows (B, T, C)."""
    alike = torch.einsum("bic,bjc->bij", unit, unit)
    return alike, torch.mean(F.elu(torch.sub(alike, margin)), 2)


def plan(keys: Tensor, share: float, margin: float, early: bool) -> tuple[Tensor, Tensor, int]:
    """Returns positions in their new order, and where the last ``r`` of them go, one-hot.

    The order is: those that stay alone, those that take others in, those that go.
    """
    unit = F.normalize(keys[:, 1:], dim=-1)
    count = unit.size(1)
    r = count - int(-(-count * share // 1))
    alike, energy = crowding(unit, margin)
    ranking = energy.topk(count, dim=1).indices
    movable = count if early else 2 * r
    calm = ranking.narrow(1, movable, count - movable)
    giving, taking = ranking[:, 0:movable:2], ranking[:, 1:movable:2]
    among = torch.take_along_dim(alike, giving.unsqueeze(2), dim=1)
    among = torch.take_along_dim(among, taking.unsqueeze(1), dim=2)
    nearest = torch.argmax(among, dim=2)
    if early:
        leaving, alone = among.amax(2).topk(giving.size(1), dim=1).indices.tensor_split([r], dim=1)
        nearest = nearest.gather(1, leaving)
        giving, calm = giving.gather(1, leaving), giving.gather(1, alone)
    onto = F.one_hot(nearest, taking.size(1)).to(keys.dtype)
    return torch.cat((calm, taking, giving), dim=1), onto, r


class EnergyMerging(nn.Module):
    """Runs the parts of a ViT with merging between attention and MLP."""

    def __init__(self, vit: Vit, share: float) -> None:
        super().__init__()
        self.vit, self.share = vit, share

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        tokens = self.vit.embed(pixels)
        mass = torch.ones(tokens.size(0), tokens.size(1), 1)
        depth = len(self.vit.blocks)
        for number, layer in enumerate(self.vit.blocks):
            assert isinstance(layer, Block)
            query, key, value = layer.attn.heads(layer.norm1(tokens))
            out = F.scaled_dot_product_attention(query, key, value, scale=layer.attn.scale)
            tokens = layer.attn.join(out) + tokens
            margin = 0.75 - 0.75 * number / depth
            order, onto, r = plan(key.mean(dim=1), self.share, margin, number < depth // 2)
            heavy = torch.cat((tokens * mass, mass), dim=2)
            merged = self.fold(heavy, order, onto, r)
            mass = merged[:, :, -1:]
            tokens = merged[:, :, :-1] / mass
            tokens = tokens + layer.mlp(layer.norm2(tokens))
        result: Tensor = self.vit.head(self.vit.norm(tokens).select(1, 0))
        return result

    @staticmethod
    def fold(rows: Tensor, order: Tensor, onto: Tensor, r: int) -> Tensor:
        """Adds the last r rows of the new order to those they go to."""
        first, rest = rows.split([1, rows.size(1) - 1], dim=1)
        rest = rest[torch.arange(rest.size(0)).unsqueeze(1), order]
        stay = rest[:, :-r]
        calm = stay.size(1) - onto.size(2)
        taking = stay[:, calm:] + torch.bmm(onto.transpose(1, 2), rest[:, -r:])
        return torch.cat((first, stay[:, :calm], taking), dim=1)


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Keeps 90 % of the patches in each block."""
    return EnergyMerging(seeded(seed), 0.9).eval(), images()
