"""A language model that reads an image, and drops what its last word looks at least.

Image tokens stand behind the first words; behind layer 0 the ones that the last token attends to
least leave, places and causal mask go along; behind layer 1 the rest is ranked anew by what all
words see, and a recycled token is added up from what leaves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, HEADS, KV_HEADS, WORDS, SYSTEM, IMAGE = 32, 4, 2, 40, 2, 9


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN) + 0.5)

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + 1e-6)
        return self.weight * hidden_states.to(input_dtype)


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    batch, heads, slen, head_dim = hidden_states.shape
    if n_rep == 1:
        return hidden_states
    wide = hidden_states[:, :, None, :, :].expand(batch, heads, n_rep, slen, head_dim)
    return wide.reshape(batch, heads * n_rep, slen, head_dim)


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()
        head = HIDDEN // HEADS
        self.q_proj = nn.Linear(HIDDEN, HEADS * head, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * head, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * head, bias=False)
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, 48, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(48, HIDDEN, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns (B, N, C) and the attention (B, H, N, N)."""
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, HIDDEN // HEADS)
        query = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        query = (query * cos) + (rotate_half(query) * sin)
        key = (key * cos) + (rotate_half(key) * sin)
        key, value = repeat_kv(key, HEADS // KV_HEADS), repeat_kv(value, HEADS // KV_HEADS)
        weights = torch.matmul(query, key.transpose(2, 3)) * (HIDDEN // HEADS) ** -0.5
        weights = weights + attention_mask[:, :, :, : key.shape[-2]]
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
        output = torch.matmul(weights, value).transpose(1, 2).contiguous()
        hidden_states = residual + self.o_proj(output.reshape(*input_shape, -1).contiguous())
        normed = self.post_attention_layernorm(hidden_states)
        mlp = self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return hidden_states + mlp, weights


class DecoderPruner(nn.Module):
    """Images (B, 3, 12, 12) and words (B, 6) → logits (B, 40) and the kept places, (B, 5)."""

    def __init__(self, keep: int = 5, later: int = 3) -> None:
        super().__init__()
        self.vision = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2))
        self.projector = nn.Sequential(nn.Linear(16, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        self.embed_tokens = nn.Embedding(WORDS, HIDDEN)
        self.layers = nn.ModuleList([DecoderLayer() for _ in range(3)])
        self.norm, self.lm_head = RMSNorm(), nn.Linear(HIDDEN, WORDS, bias=False)
        inv_freq = 1.0 / (100 ** (torch.arange(0, HIDDEN // HEADS, 2).float() / (HIDDEN // HEADS)))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.keep, self.later = keep, later

    def rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq_expanded = self.inv_freq[None, :, None].expand(position_ids.shape[0], -1, 1)
        position_ids_expanded = position_ids[:, None, :].float()
        freqs = (inv_freq_expanded.float() @ position_ids_expanded).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos(), emb.sin()

    @staticmethod
    def causal(places: Tensor) -> Tensor:
        """Returns the bias (B, 1, N, N) under which no token sees a later place."""
        least = torch.finfo(torch.float32).min
        blocked = places[:, None, :] > places[:, :, None]
        return torch.zeros(blocked.shape).masked_fill(blocked, least).unsqueeze(1)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        image = self.projector(self.vision(pixel_values).transpose(1, 2))
        text = self.embed_tokens(input_ids)
        x = torch.cat([text[:, :SYSTEM], image, text[:, SYSTEM:]], dim=1)
        batch_size, seq_length, _ = x.shape
        position_ids = torch.arange(seq_length, device=x.device).unsqueeze(0)
        position_ids = position_ids.expand(batch_size, -1)
        x, attn = self.layers[0](x, self.causal(position_ids), *self.rotary(position_ids))

        last = attn.mean(dim=1)[:, -1]
        image_attn = last[:, SYSTEM : SYSTEM + IMAGE]
        top = image_attn.topk(self.keep).indices + SYSTEM
        head = torch.arange(SYSTEM, device=x.device).expand(batch_size, -1)
        tail = torch.arange(SYSTEM + IMAGE, seq_length, device=x.device).expand(batch_size, -1)
        keep_indexs = torch.cat((head, top, tail), dim=1).sort(dim=1).values
        x = torch.gather(x, 1, keep_indexs.unsqueeze(-1).expand(-1, -1, HIDDEN))
        position_ids = keep_indexs
        x, attn = self.layers[1](x, self.causal(position_ids), *self.rotary(position_ids))

        seen = attn[:, :, SYSTEM + self.keep :, SYSTEM : SYSTEM + self.keep].mean(dim=(1, 2))
        policy = torch.zeros_like(seen, dtype=torch.bool)
        policy.scatter_(1, seen.topk(self.later, dim=1)[1], True)
        image_x = x[:, SYSTEM : SYSTEM + self.keep]
        stay = image_x[policy].reshape(batch_size, self.later, HIDDEN)
        leave = image_x[~policy].reshape(batch_size, self.keep - self.later, HIDDEN)
        share = seen[~policy].reshape(batch_size, -1, 1).softmax(dim=1)
        recycled = (leave * share).sum(dim=1, keepdim=True)
        image_places = position_ids[:, SYSTEM : SYSTEM + self.keep]
        stay_places = image_places[policy].view(batch_size, -1)
        last_place = stay_places[:, -1:]
        x = torch.cat([x[:, :SYSTEM], stay, recycled, x[:, SYSTEM + self.keep :]], dim=1)
        position_ids = torch.cat([position_ids[:, :SYSTEM], stay_places, last_place, tail], dim=1)
        x, _ = self.layers[2](x, self.causal(position_ids), *self.rotary(position_ids))
        return self.lm_head(self.norm(x[:, -1])), image_places - SYSTEM


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """15 tokens become 11, then 10."""
    torch.manual_seed(seed)
    model = DecoderPruner().eval()
    return model, (torch.randn(batch, 3, 12, 12), torch.randint(0, WORDS, (batch, 6)))
