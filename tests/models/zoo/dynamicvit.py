"""DynamicViT (Rao et al. 2021) as it runs at inference: a small predictor picks the patches.

Before each pruning block the predictor scores the patches from their own and their mean features;
int(36 · rate) of them stay, in score order, behind the class token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models.zoo.vit import Vit, images
from torch import Tensor, nn


class PredictorLG(nn.Module):
    """Scores of dropping and keeping (B, N, 2) from local and global features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, x: Tensor, policy: Tensor) -> Tensor:
        x = self.in_conv(x)
        B, N, C = x.size()
        local = x[:, :, : C // 2]
        total = (x[:, :, C // 2 :] * policy).sum(dim=1, keepdim=True)
        overall = total / torch.sum(policy, dim=1, keepdim=True)
        x = torch.cat([local, overall.expand(B, N, C // 2)], dim=-1)
        result: Tensor = self.out_conv(x)
        return result


def batch_index_select(x: Tensor, idx: Tensor) -> Tensor:
    """Takes rows (B, K) of (B, N, C) or (B, N) by flat positions in the batch."""
    B, N = x.shape[:2]
    offset = torch.arange(B, dtype=torch.long).view(B, 1) * N
    flat = (idx + offset).reshape(-1)
    return x.reshape(B * N, *x.shape[2:])[flat].reshape(B, idx.size(1), *x.shape[2:])


class DynamicVit(Vit):
    """A ViT that prunes before some of its blocks."""

    def __init__(
        self, pruning_loc: tuple[int, ...], token_ratio: tuple[float, ...], **options: Any
    ) -> None:
        super().__init__(**options)
        self.pruning_loc = pruning_loc
        self.token_ratio = token_ratio
        width = self.head.in_features
        self.score_predictor = nn.ModuleList(PredictorLG(width) for _ in pruning_loc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, p_count = x.shape[0], 0
        policy = torch.ones(B, self.num_patches, 1, dtype=x.dtype)
        for i, block in enumerate(self.blocks):
            if i in self.pruning_loc:
                spatial_x = x[:, 1:]
                pred_score = self.score_predictor[p_count](spatial_x, policy).reshape(B, -1, 2)
                if self.training:
                    policy = F.gumbel_softmax(pred_score, hard=True)[:, :, 0:1] * policy
                else:
                    score = pred_score[:, :, 0]
                    num_keep_node = int(self.num_patches * self.token_ratio[p_count])
                    keep_policy = torch.argsort(score, dim=1, descending=True)[:, :num_keep_node]
                    cls_policy = torch.zeros(B, 1, dtype=keep_policy.dtype)
                    now_policy = torch.cat([cls_policy, keep_policy + 1], dim=1)
                    x = batch_index_select(x, now_policy)
                    policy = batch_index_select(policy, keep_policy)
                p_count += 1
            x = block(x)
        result: Tensor = self.head(self.norm(x)[:, 0])
        return result


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Keeps 0.7, then 0.49 of the 36 patches."""
    torch.manual_seed(seed)
    return DynamicVit((1, 3), (0.7, 0.7**2)).eval(), images()
