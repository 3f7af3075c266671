"""Learned queries that read an image in four ways, as projectors of language models do.

Attention maps of a convolution pool tokens; latents attend to the media and to themselves; a low
resolution token reads its region of the high resolution; pooled tokens are what is left.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import Tensor, einsum, nn

DIM, GRID = 24, 4


class TokenLearner(nn.Module):
    """Maps of (B, H, W, C), one for each learned token: (B, S, C)."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(DIM)
        self.attention_maps = nn.Sequential(
            nn.Conv2d(DIM, num_tokens, kernel_size=(3, 3), padding=(1, 1), bias=False),
            nn.GELU(),
            nn.Conv2d(num_tokens, num_tokens, kernel_size=(1, 1), bias=False),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        selected = self.attention_maps(self.layer_norm(inputs).permute(0, 3, 1, 2))
        selected = torch.sigmoid(selected.permute(0, 2, 3, 1).contiguous())
        batch, height, width, maps = selected.shape
        selected = selected.view(batch, height * width, maps).permute(0, 2, 1)[..., None]
        feat = inputs.view(batch, height * width, -1).unsqueeze(1)
        return torch.mean(feat * selected, dim=2)


class PerceiverAttention(nn.Module):
    def __init__(self, heads: int = 3, dim_head: int = 8) -> None:
        super().__init__()
        self.scale, self.heads = dim_head**-0.5, heads
        self.norm_media, self.norm_latents = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.to_q = nn.Linear(DIM, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(DIM, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, DIM, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Takes media (B, T, N, C) and latents (B, T, L, C)."""
        x, latents = self.norm_media(x), self.norm_latents(latents)
        q = rearrange(self.to_q(latents), "b t n (h d) -> b h t n d", h=self.heads)
        k, v = self.to_kv(torch.cat((x, latents), dim=-2)).chunk(2, dim=-1)
        k, v = (rearrange(part, "b t n (h d) -> b h t n d", h=self.heads) for part in (k, v))
        sim = einsum("... i d, ... j d  -> ... i j", q * self.scale, k)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        out = einsum("... i j, ... j d -> ... i d", sim.softmax(dim=-1), v)
        return self.to_out(rearrange(out, "b h t n d -> b t n (h d)", h=self.heads))


class RegionReader(nn.Module):
    """Each token of the coarse map (B, 2, 2, C) attends to its four of the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.attn = nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.divide = Rearrange("b (h p) (w q) c -> (b h w) (p q) c", p=2, q=2)

    def forward(self, fine: Tensor) -> Tensor:
        B = fine.shape[0]
        coarse = nn.functional.interpolate(
            fine.permute(0, 3, 1, 2).float(), size=(2, 2), mode="bilinear"
        ).to(fine.dtype)
        q = self.q_proj(coarse.flatten(2).transpose(1, 2)).reshape(-1, 1, DIM)
        region = self.divide(fine)
        read, _ = self.attn(q, self.k_proj(region), self.v_proj(region))
        return read.reshape(B, -1, DIM)


class Resampler(nn.Module):
    """Images (B, 3, 16, 16) → (B, 14, 20): of maps 3, latents 3, regions 4, pools 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, DIM, 4, 4), Rearrange("b c h w -> b (h w) c"))
        self.encoder = nn.TransformerEncoderLayer(
            DIM, 3, 2 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.learner = TokenLearner(3)
        self.latents = nn.Parameter(torch.randn(3, DIM))
        self.frame_embs = nn.Parameter(torch.randn(1, DIM))
        self.layers = nn.ModuleList([PerceiverAttention() for _ in range(2)])
        self.regions = RegionReader()
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.mixer = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 20))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.encoder(self.stem(pixels))
        grid = rearrange(x, "b (h w) c -> b h w c", h=GRID)
        media = rearrange(x, "b n c -> b 1 n c") + self.frame_embs[:1, None]
        latents = repeat(self.latents, "n d -> b t n d", b=media.shape[0], t=media.shape[1])
        for attn in self.layers:
            latents = attn(media, latents) + latents
        pooled = self.pool(grid.movedim(-1, 1)).flatten(2).transpose(1, 2)
        parts = [self.learner(grid), latents.squeeze(1), self.regions(grid), pooled]
        return self.mixer(torch.cat(parts, dim=1))


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """16 patches become 14 tokens."""
    torch.manual_seed(seed)
    return Resampler().eval(), (torch.zeros(batch, 3, 16, 16),)
