"""DivPrune (Alvar et al. 2025) before the projector: the subset of greatest minimal distance.

Distances are 1 - cosine. The token farthest from its nearest other comes first; then, greedily,
the one farthest from all that are chosen. Images are pruned one by one.
"""

from __future__ import annotations

import torch
from models.zoo.projector import Tower, projector
from models.zoo.vit import images
from torch import Tensor, nn


def pairwise_cosine_distance(x: Tensor) -> Tensor:
    """Returns the distances (N, N) of tokens (N, C)."""
    x = x / x.norm(dim=1, keepdim=True)
    return 1.0 - torch.mm(x, x.t())


def select_diverse(features: Tensor, threshold_ratio: float) -> Tensor:
    """Returns the positions of the share that stays of tokens (N, C), in the tokens' order."""
    matrix = pairwise_cosine_distance(features)
    count = round(threshold_ratio * features.shape[0])
    chosen = torch.empty(count, dtype=torch.long)
    for i in range(count):
        if i == 0:
            scores = torch.topk(matrix, 2, dim=0, largest=False).values[1, :]
        else:
            scores = torch.index_select(matrix, 0, chosen[:i]).min(dim=0).values
        chosen[i] = torch.argmax(scores)
    return torch.sort(chosen).values


class DivPrune(nn.Module):
    """Prunes what the tower's last but one layer gives, then projects it."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.vision_tower = Tower()
        self.mm_projector = projector()
        self.ratio = ratio

    def forward(self, images: Tensor) -> Tensor:
        """Returns (B, tokens, PROJECTED)."""
        features = self.vision_tower(images).hidden_states[-2][:, 1:]
        kept = [one[select_diverse(one, self.ratio)] for one in features]
        result: Tensor = self.mm_projector(torch.stack(kept, dim=0))
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Nine of 36 patches."""
    torch.manual_seed(seed)
    return DivPrune(0.25).eval(), images()
