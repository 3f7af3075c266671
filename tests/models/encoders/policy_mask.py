"""Prunes by a policy that masks the softmax, as it is trained, and by places, as it is served.

The first stage marks the best patches in a policy (B, N, 1) which the softmax multiplies by, with a
little left for what is dropped; the second takes the best rows of what the policy still holds. The
noise of the training is an ``if`` that an encoder in evaluation mode does not take.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, HEADS, PATCHES = 32, 4, 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = (DIM // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(DIM, DIM * 3), nn.Linear(DIM, DIM)

    def softmax_with_policy(self, attn: Tensor, policy: Tensor, eps: float = 1e-6) -> Tensor:
        B, N, _ = policy.size()
        _, _, N, N = attn.size()
        attn_policy = policy.reshape(B, 1, 1, N)
        eye = torch.eye(N, dtype=attn_policy.dtype, device=attn_policy.device).view(1, 1, N, N)
        attn_policy = attn_policy + (1.0 - attn_policy) * eye
        max_att = torch.max(attn, dim=-1, keepdim=True)[0]
        attn = attn - max_att
        attn = attn.to(torch.float32).exp_() * attn_policy.to(torch.float32)
        attn = (attn + eps / N) / (attn.sum(dim=-1, keepdim=True) + eps)
        return attn.type_as(max_att)

    def forward(self, x: Tensor, policy: Tensor | None) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1) if policy is None else self.softmax_with_policy(attn, policy)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, DIM))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), policy=policy)
        return x + self.mlp(self.norm2(x))


class Predictor(nn.Module):
    """Logarithms of dropping and keeping each patch, (B, N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.GELU())
        self.out_conv = nn.Sequential(nn.Linear(DIM, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x: Tensor, policy: Tensor) -> Tensor:
        x = self.in_conv(x)
        _, N, C = x.size()
        local_x = x[:, :, : C // 2]
        global_x = (x[:, :, C // 2 :] * policy).sum(dim=1, keepdim=True)
        global_x = global_x / torch.sum(policy, dim=1, keepdim=True)
        x = torch.cat([local_x, global_x.expand(-1, N, -1)], dim=-1)
        return F.log_softmax(self.out_conv(x), dim=-1)


def batch_index_select(x: Tensor, idx: Tensor) -> Tensor:
    if len(x.size()) == 3:
        B, N, C = x.size()
        offset = torch.arange(B, dtype=torch.long, device=x.device).view(B, 1) * N
        return x.reshape(B * N, C)[(idx + offset).reshape(-1)].reshape(B, idx.size(1), C)
    raise NotImplementedError


class PolicyMask(nn.Module):
    """Images (B, 3, 16, 16) → logits (B, 10), the policy (B, 16, 1), what stayed (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM) * 0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, PATCHES + 1, DIM) * 0.5)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.score_predictor = nn.ModuleList([Predictor() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 10)

    def forward(self, img: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.patch_embed(img).flatten(2).transpose(1, 2)
        B = x.shape[0]
        x = torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1) + self.pos_embed
        prev_decision = torch.ones(B, PATCHES, 1, dtype=x.dtype, device=x.device)
        x = self.blocks[0](x)

        pred_score = self.score_predictor[0](x[:, 1:], prev_decision).reshape(B, -1, 2)
        if self.training:
            decision = F.gumbel_softmax(pred_score, hard=True)[:, :, 0:1] * prev_decision
        else:
            num_keep_node = int(PATCHES * 0.7)
            best = torch.argsort(pred_score[:, :, 0], dim=1, descending=True)[:, :num_keep_node]
            decision = torch.zeros_like(prev_decision[..., 0]).scatter_(1, best, 1.0)
            decision = decision.unsqueeze(-1) * prev_decision
        cls_policy = torch.ones(B, 1, 1, dtype=decision.dtype, device=decision.device)
        x = self.blocks[1](x, policy=torch.cat([cls_policy, decision], dim=1))

        score = self.score_predictor[1](x[:, 1:], decision)[..., 0]
        score = score.masked_fill(decision.squeeze(-1) < 0.5, float("-inf"))
        keep_policy = torch.argsort(score, dim=1, descending=True)[:, : int(PATCHES * 0.4)]
        cls_index = torch.zeros(B, 1, dtype=keep_policy.dtype, device=keep_policy.device)
        x = batch_index_select(x, torch.cat([cls_index, keep_policy + 1], dim=1))
        x = self.norm(self.blocks[2](x))
        return self.head(x[:, 0]), decision, keep_policy.sort(dim=1)[0]


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """11 of 16 patches are seen in block 1, and 6 rows are left in block 2."""
    torch.manual_seed(seed)
    return PolicyMask().eval(), (torch.zeros(batch, 3, 16, 16),)
