"""ToMe put into a timm ViT by patching classes at run time, the way its users do it.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023). The blocks share one dict: the
model's forward fills it, every block pops its own r and rewrites the token sizes. Written anew for
these tests from the paper and the description of the method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

Merge = Callable[..., Tensor]


def keep_all(x: Tensor, mode: str | None = None) -> Tensor:
    """The merge that merges nothing."""
    return x


def match(metric: Tensor, r: int, class_token: bool, distill_token: bool) -> Merge:
    """Pairs the r most similar even tokens of metric (B, N, C) with odd ones."""
    protected = int(class_token) + int(distill_token)
    r = min(r, (metric.shape[1] - protected) // 2)
    if r <= 0:
        return keep_all
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        even, odd = metric[..., ::2, :], metric[..., 1::2, :]
        similarity = even @ odd.transpose(-1, -2)
        if class_token:
            similarity[..., 0, :] = float("-inf")
        if distill_token:
            similarity[..., :, 0] = float("-inf")
        best, partner = similarity.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        kept = order[..., r:, :]
        merged = order[..., :r, :]
        target = partner[..., None].gather(dim=-2, index=merged)
        if class_token:
            kept = kept.sort(dim=1)[0]

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        sources, targets = x[..., ::2, :], x[..., 1::2, :]
        n, t1, c = sources.shape
        rest = sources.gather(dim=-2, index=kept.expand(n, t1 - r, c))
        sources = sources.gather(dim=-2, index=merged.expand(n, r, c))
        targets = targets.scatter_reduce(-2, target.expand(n, r, c), sources, reduce=mode)
        if distill_token:
            return torch.cat([rest[:, :1], targets[:, :1], rest[:, 1:], targets[:, 1:]], dim=1)
        return torch.cat([rest, targets], dim=1)

    return merge


def weighted_mean(merge: Merge, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Merges x (B, N, C) with the weights size (B, N, 1)."""
    if size is None:
        size = torch.ones_like(x[..., 0, None])
    x = merge(x * size, mode="sum")
    size = merge(size, mode="sum")
    return x / size, size


class MergingAttention(Attention):
    """Attention with log(size) on the keys, returning the head mean of the keys beside x."""

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        batch, n, channels = x.shape
        qkv = self.qkv(x).reshape(batch, n, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale) @ k.transpose(-2, -1)
        if size is not None:
            weights = weights + size.log()[:, None, None, :, 0]
        weights = self.attn_drop(weights.softmax(dim=-1))
        x = (weights @ v).transpose(1, 2).reshape(batch, n, channels)
        return self.proj_drop(self.proj(x)), k.mean(1)


class MergingBlock(Block):
    """A block that merges between attention and MLP."""

    _tome_info: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        size = self._tome_info["size"] if self._tome_info["prop_attn"] else None
        attended, metric = self.attn(self.norm1(x), size)
        x = x + self.drop_path1(self.ls1(attended))
        r = self._tome_info["r"].pop(0)
        if r > 0:
            merge = match(
                metric, r, self._tome_info["class_token"], self._tome_info["distill_token"]
            )
            x, self._tome_info["size"] = weighted_mean(merge, x, self._tome_info["size"])
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def schedule(depth: int, r: int | list[int] | tuple[int, float]) -> list[int]:
    """Tokens to merge per block: an int, a list, or (r, inflection)."""
    if isinstance(r, list):
        return r + [0] * (depth - len(r))
    inflection = 0.0
    if isinstance(r, tuple):
        r, inflection = r
    low = r * (1 - inflection)
    step = (2 * r - 2 * low) / (depth - 1)
    return [int(low + step * i) for i in range(depth)]


def apply_patch(model: VisionTransformer, prop_attn: bool = True) -> None:
    """Patches a timm VisionTransformer in place; its merging is then set by ``model.r``."""

    class MergingVisionTransformer(model.__class__):  # type: ignore[name-defined,misc]
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            self._tome_info["r"] = schedule(len(self.blocks), self.r)
            self._tome_info["size"] = None
            result: Tensor = super().forward(*args, **kwargs)
            return result

    model.__class__ = MergingVisionTransformer
    model.r = 0
    model._tome_info = {
        "r": 0,
        "size": None,
        "prop_attn": prop_attn,
        "class_token": model.cls_token is not None,
        "distill_token": getattr(model, "dist_token", None) is not None,
    }
    for module in model.modules():
        if isinstance(module, Block):
            module.__class__ = MergingBlock
            module._tome_info = model._tome_info
        elif isinstance(module, Attention):
            module.__class__ = MergingAttention


def patched(name: str = "deit_small_patch16_224", r: int = 13, **kwargs: Any) -> nn.Module:
    """A timm model with random weights under seed 0, patched; kwargs go to timm."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, **kwargs).eval()
    apply_patch(model)
    model.r = r  # type: ignore[assignment]
    return model
