"""DPC-KNN clustering of patches between the stages of a ViT (as in TCFormer, Zeng et al. 2022).

Density peaks with k nearest neighbours (Du et al. 2016): a token is a centre where it is dense and
far from the nearest denser token. Every token joins its nearest centre and clusters become means.
The noise that breaks ties of the density is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from models.zoo.vit import Block, Vit, images, patch, seeded
from torch import Tensor, nn

NEIGHBOURS = 5


def index_points(points: Tensor, idx: Tensor) -> Tensor:
    """Takes rows (B, K) of (B, N, C)."""
    batch = torch.arange(points.shape[0]).view(-1, 1).repeat(1, idx.shape[1])
    return points[batch, idx, :]


def cluster_dpc_knn(x: Tensor, cluster_num: int, k: int = NEIGHBOURS) -> Tensor:
    """Returns the cluster of each of the tokens (B, N, C): (B, N) below ``cluster_num``."""
    with torch.no_grad():
        B, _, C = x.shape
        dist = torch.cdist(x, x) / C**0.5
        near, _ = torch.topk(dist, k=k, dim=-1, largest=False)
        density = (-near.square().mean(dim=-1)).exp()
        denser = (density[:, None, :] > density[:, :, None]).type(x.dtype)
        dist_max = dist.flatten(1).max(dim=-1)[0][:, None, None]
        gap, _ = (dist * denser + dist_max * (1 - denser)).min(dim=-1)
        _, index_down = torch.topk(gap * density, k=cluster_num, dim=-1)
        idx_cluster = index_points(dist, index_down).argmin(dim=1)
        idx_batch = torch.arange(B)[:, None].expand(B, cluster_num)
        idx_cluster[idx_batch, index_down] = torch.arange(cluster_num)[None].expand(B, -1)
    return idx_cluster


def merge_tokens(token_dict: dict[str, Any], idx_cluster: Tensor, cluster_num: int) -> None:
    """Replaces the tokens of the dict by the means of their clusters."""
    x = token_dict["x"]
    B, N, C = x.shape
    idx = (idx_cluster + torch.arange(B)[:, None] * cluster_num).reshape(B * N)
    weight = x.new_ones(B, N, 1)
    all_weight = x.new_zeros(B * cluster_num, 1)
    all_weight.index_add_(dim=0, index=idx, source=weight.reshape(B * N, 1))
    norm_weight = weight / (all_weight + 1e-6)[idx].reshape(B, N, 1)
    merged = x.new_zeros(B * cluster_num, C)
    merged.index_add_(dim=0, index=idx, source=(x * norm_weight).reshape(B * N, C))
    token_dict["x"] = merged.reshape(B, cluster_num, C)
    token_dict["token_num"] = cluster_num


class ClusteringBlock(Block):
    """Clusters the patches between attention and MLP; the class token stays apart."""

    layer: int
    _info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        ratio = self._info["sample_ratio"].get(self.layer)
        if ratio is not None:
            token_dict = {"x": x[:, 1:], "token_num": x.shape[1] - 1}
            cluster_num = max(round(token_dict["token_num"] * ratio), 1)
            merge_tokens(token_dict, cluster_dpc_knn(token_dict["x"], cluster_num), cluster_num)
            x = torch.cat([x[:, :1], token_dict["x"]], dim=1)
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result


def apply_clustering(model: Vit, sample_ratio: dict[int, float]) -> None:
    """Patches a ViT in place."""
    patch(model, {"sample_ratio": sample_ratio}, ClusteringBlock)


def build(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """36 patches become 18 clusters, then 9."""
    model = seeded(seed)
    apply_clustering(model, {1: 0.5, 3: 0.5})
    return model, images()
