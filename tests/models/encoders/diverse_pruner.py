"""A vision tower that keeps what the class token sees, and of the rest what differs most.

Half of the kept patches are those seen most; the others are picked one by one, each the farthest
from all that are kept already. A second stage drops near repeats: rounds in which the even ones of
what is left, most like an odd one, go.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 24, 3


class Layer(nn.Module):
    """An encoder layer with separate projections, of (B, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def shape(self, tensor: Tensor, length: int, batch: int) -> Tensor:
        return tensor.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2).contiguous()

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, N, C) and the attention (B, H, N, N)."""
        bsz, tgt_len, embed_dim = hidden_states.size()
        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
        query_states = self.q_proj(hidden_states) * (WIDTH // HEADS) ** -0.5
        proj_shape = (bsz * HEADS, -1, WIDTH // HEADS)
        query_states = self.shape(query_states, tgt_len, bsz).view(*proj_shape)
        key_states = self.shape(self.k_proj(hidden_states), -1, bsz).view(*proj_shape)
        value_states = self.shape(self.v_proj(hidden_states), -1, bsz).view(*proj_shape)
        weights = torch.bmm(query_states, key_states.transpose(1, 2))
        weights = F.softmax(weights, dim=-1, dtype=torch.float32)
        attn_output = torch.bmm(weights, value_states)
        attn_output = attn_output.view(bsz, HEADS, tgt_len, WIDTH // HEADS).transpose(1, 2)
        hidden_states = residual + self.out_proj(attn_output.reshape(bsz, tgt_len, embed_dim))
        mlp = self.fc1(self.layer_norm2(hidden_states))
        mlp = mlp * torch.sigmoid(1.702 * mlp)
        return hidden_states + self.fc2(mlp), weights.view(bsz, HEADS, tgt_len, tgt_len)


def pick_diverse(features: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Adds ``count`` places to those chosen (B, K), each with the largest least distance."""
    batch = torch.arange(features.shape[0], device=features.device)
    normed = features / features.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    distance = 1.0 - torch.matmul(normed, normed.transpose(1, 2))
    to_chosen = distance.gather(1, chosen.unsqueeze(-1).expand(-1, -1, features.shape[1]))
    nearest = to_chosen.min(dim=1).values
    nearest.scatter_(1, chosen, -1.0)
    added = []
    while len(added) < count:
        far = nearest.argmax(dim=-1)
        added.append(far)
        nearest = torch.minimum(nearest, distance[batch, far])
        nearest[batch, far] = -1.0
    return torch.cat([chosen, torch.stack(added, dim=1)], dim=-1)


def drop_repeats(features: Tensor, places: Tensor, keep: int, step: int = 2) -> Tensor:
    """Drops up to ``step`` places (B, K) a round until ``keep`` are left."""
    while places.shape[1] > keep:
        r = min(step, places.shape[1] - keep, places.shape[1] // 2)
        rows = torch.gather(features, 1, places[..., None].repeat(1, 1, features.shape[-1]))
        rows = F.normalize(rows, p=2, dim=-1)
        a, b = rows[:, ::2], rows[:, 1::2]
        scores = (a @ b.transpose(-1, -2)).max(dim=-1).values
        order = scores.argsort(dim=-1, descending=True)[:, r:]
        places = torch.cat([places[:, ::2].gather(1, order), places[:, 1::2]], dim=1)
    return places


class DiversePruner(nn.Module):
    """Images (B, 3, 16, 16) → features (B, 8, 40), their places and those of the second stage."""

    def __init__(self, visual_token_num: int = 8, important_ratio: float = 0.5) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, WIDTH, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.position_embedding = nn.Embedding(17, WIDTH)
        self.register_buffer("position_ids", torch.arange(17).expand((1, -1)), persistent=False)
        self.pre_layrnorm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.mm_projector = nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Linear(40, 40))
        self.visual_token_num, self.important_ratio = visual_token_num, important_ratio

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch_size = images.shape[0]
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        embeds = torch.cat([self.class_embedding.expand(batch_size, 1, -1), patches], dim=1)
        hidden = self.pre_layrnorm(embeds + self.position_embedding(self.position_ids))
        hidden_states, attentions = (hidden,), ()
        for layer in self.layers:
            hidden, weights = layer(hidden)
            hidden_states += (hidden,)
            attentions += (weights,)
        image_features = hidden_states[-2][:, 1:]
        cls_attn = attentions[-2][:, :, 0, 1:].mean(dim=1)
        important = int(self.visual_token_num * self.important_ratio)
        order = cls_attn.argsort(dim=-1, descending=True)
        diverse = pick_diverse(
            image_features, order[:, :important], self.visual_token_num - important
        )
        index = diverse.sort(dim=-1).values
        repeats = drop_repeats(image_features, order[:, important:], 4)
        second = torch.cat([order[:, :important], repeats], dim=1).sort(dim=1)[0]
        kept = image_features.gather(1, index.unsqueeze(-1).expand(-1, -1, WIDTH))
        other = image_features[torch.arange(batch_size).unsqueeze(-1), second]
        return self.mm_projector(torch.cat([kept, other], dim=1)), index, second


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """8 of 16 patches, and 8 others chosen by rounds."""
    torch.manual_seed(seed)
    return DiversePruner().eval(), (torch.zeros(batch, 3, 16, 16),)
