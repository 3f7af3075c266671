"""MCTF once more: functions over a plain ViT instead of patched classes.

Merging is by one-hot products (in both directions) or by ``index_add_`` over the flattened batch
(in one); the scores are made and ranked by bmm, einsum, sort, topk and ``take_along_dim``. On the
weights of ``models.zoo.mctf`` both answer the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from models.zoo.mctf import TAU_INFO, TAU_SIZE
from models.zoo.vit import Attention, Block, Vit, images, seeded
from torch import Tensor, nn

#: Sums rows of (B, N, C) into fewer.
Fold = Callable[[Tensor], Tensor]


def outer(values: Tensor) -> Tensor:
    """Products of even and odd entries: (B, N) → (B, Na, Nb)."""
    evens, odds = values[:, 0::2], values[:, 1::2]
    return torch.bmm(evens.unsqueeze(2), odds.unsqueeze(1))


def rate(tokens: Tensor, seen: Tensor, mass: Tensor) -> Tensor:
    """Scores (B, Na, Nb) of tokens (B, N, C) that were seen (B, N) and have a mass (B, N)."""
    scarce = seen.reciprocal()
    scarce = scarce / scarce.amax(1, keepdim=True)
    light = mass.reciprocal()
    light = light / light.amax(1, keepdim=True)
    unit = F.normalize(tokens, dim=-1, eps=0.0)
    pairs = torch.einsum("bic,bjc->bij", unit[:, 0::2], unit[:, 1::2])
    pairs = torch.add(pairs, 1).mul(0.5)
    pairs = outer(scarce).pow(1 / TAU_INFO) * pairs
    pairs = outer(light).pow(1 / TAU_SIZE) * pairs
    first = torch.zeros(pairs.size(1), 1, dtype=torch.bool)
    first[0] = True
    return torch.masked_fill(pairs, first, float("-inf"))


def strongest(pairs: Tensor, dim: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits the tokens along the other dimension: who stays, who goes, and where to (B, K)."""
    whereto = pairs.argmax(dim)
    ranked = pairs.amax(dim).sort(dim=1, descending=True)[1]
    going, staying = ranked[:, :count], ranked[:, count:]
    return staying, going, torch.gather(whereto, 1, going)


def rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Takes rows (B, K) of (B, N, C)."""
    return torch.take_along_dim(tokens, index[..., None], dim=1)


def fold_both(pairs: Tensor, count: int) -> Fold:
    """Evens into odds, then odds into the evens that stay, by one-hot products."""
    stay_a, go_a, to_b = strongest(pairs, 2, count // 2)
    stay_a = torch.sort(stay_a, dim=1).values
    left = torch.take_along_dim(pairs, stay_a.unsqueeze(2), 1)
    stay_b, go_b, to_a = strongest(left, 1, count - count // 2)
    into_b = F.one_hot(to_b, pairs.size(2))
    into_a = F.one_hot(to_a, left.size(1))

    def fold(tokens: Tensor) -> Tensor:
        a, b = tokens[:, 0::2], tokens[:, 1::2]
        b = b + torch.bmm(into_b.to(a.dtype).mT, rows(a, go_a))
        a = rows(a, stay_a)
        a = a + torch.einsum("brk,brc->bkc", into_a.type_as(a), rows(b, go_b))
        return torch.cat((a, rows(b, stay_b)), 1)

    return fold


def fold_one(pairs: Tensor, count: int) -> Fold:
    """Evens into odds, added in place to the flattened batch."""
    batch, _, odds = pairs.shape
    strength, whereto = pairs.topk(1, dim=-1)
    going = torch.topk(strength.squeeze(-1), strength.size(1), dim=-1).indices
    going, staying = torch.tensor_split(going, (count,), dim=-1)
    staying = staying.sort().values
    start = torch.arange(batch).mul(odds).unsqueeze(1)
    target = (whereto[..., 0].gather(1, going) + start).flatten()

    def fold(tokens: Tensor) -> Tensor:
        a, b = tokens[:, 0::2], tokens[:, 1::2]
        total = b.flatten(0, 1).clone()
        total.index_add_(0, target, rows(a, going).flatten(0, 1))
        return torch.cat((rows(a, staying), total.unflatten(0, (batch, odds))), dim=1)

    return fold


def shares(mha: Attention, h: Tensor, mass: Tensor | None) -> Tensor:
    """Attention probabilities (B, H, N, N), of keys with a mass (B, N, 1)."""
    query, key, _ = mha.heads(h)
    logits = torch.einsum("bhqd,bhkd->bhqk", query * mha.scale, key)
    if mass is not None:
        logits = torch.log(mass).permute(0, 2, 1).unsqueeze(1) + logits
    return F.softmax(logits, -1)


class Condensing(nn.Module):
    """Runs the parts of a ViT; some blocks merge what they are given."""

    def __init__(self, vit: Vit, per_layer: list[int], both: bool) -> None:
        super().__init__()
        self.vit, self.per_layer = vit, per_layer
        self.choose = fold_both if both else fold_one

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.vit.embed(pixels)
        mass: Tensor | None = None
        for layer, count in zip(self.vit.blocks, self.per_layer, strict=True):
            assert isinstance(layer, Block)
            seen = shares(layer.attn, layer.norm1(h), mass)
            if count:
                mass = torch.ones(h.size(0), h.size(1), 1) if mass is None else mass
                h, mass, seen = self.condense(h, mass, seen, count)
            value = layer.attn.heads(layer.norm1(h))[2]
            h = h + layer.attn.join(torch.matmul(seen, value))
            h = h + layer.mlp(layer.norm2(h))
        result: Tensor = self.vit.head(self.vit.norm(h)[:, 0])
        return result

    def condense(
        self, h: Tensor, mass: Tensor, seen: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns tokens (B, M, C), masses (B, M, 1) and attention (B, H, M, M)."""
        batch, heads, _, _ = seen.shape
        received = seen.mean(2).mean(1)
        fold = self.choose(rate(h, received, mass.flatten(1)), count)
        weight = torch.mul(mass / mass.amax(dim=1, keepdim=True), received[:, :, None])
        total = fold(weight)
        flat = seen.permute(0, 3, 1, 2).flatten(2)
        keys = fold(flat).unflatten(2, (heads, -1)).permute(0, 3, 2, 1)
        queries = torch.div(fold(torch.mul(weight, keys.flatten(2))), total)
        seen = queries.view(batch, queries.size(1), heads, -1).transpose(1, 2)
        return torch.div(fold(torch.mul(weight, h)), total), fold(mass), seen


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Seven tokens go in each of the last three blocks, in both directions."""
    return Condensing(seeded(seed), [0, 7, 7, 7], both=True).eval(), images()


def build_one_way(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Seven tokens go in block 1 and five in block 3, in one direction."""
    return Condensing(seeded(seed), [0, 7, 0, 5], both=False).eval(), images()
