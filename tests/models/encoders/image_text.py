"""Two towers, of images and of words, whose similarities are the answer; the image's tokens merge.

Tokens come first in both towers, (N, B, C), and the attention is torch's own. The text is read at
its highest token, which ends it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

WORDS, LENGTH, WIDTH, HEADS, JOINT = 50, 7, 24, 3, 16


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """A block on (N, B, C) that merges r pairs of tokens, but not the first, where r is given."""

    def __init__(self, d_model: int, n_head: int, attn_mask: Tensor | None = None, r: int = 0):
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            OrderedDict(
                [
                    ("c_fc", nn.Linear(d_model, d_model * 4)),
                    ("gelu", QuickGELU()),
                    ("c_proj", nn.Linear(d_model * 4, d_model)),
                ]
            )
        )
        self.ln_2 = nn.LayerNorm(d_model)
        self.attn_mask, self.r = attn_mask, r

    def attention(self, x: Tensor) -> Tensor:
        mask = self.attn_mask
        mask = mask.to(dtype=x.dtype, device=x.device) if mask is not None else None
        result: Tensor = self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
        return result

    def merge(self, x: Tensor) -> Tensor:
        """Takes the r nearest of the odd tokens into the even ones: (N, B, C) → (N - r, B, C)."""
        n, b, c = x.shape
        src, dst = x[1::2], x[0::2]
        metric = [torch.nn.functional.normalize(part, dim=-1) for part in (src, dst)]
        similar = torch.einsum("ibc,jbc->bij", *metric)
        similar[:, :, 0] = -2.0  # nothing goes into the class token
        value, partner = similar.max(dim=-1)
        edge = value.topk(self.r, dim=-1).indices  # (B, r)
        stay = torch.ones(b, src.shape[0], dtype=torch.bool, device=x.device)
        stay.scatter_(1, edge, False)
        kept = src.transpose(0, 1)[stay].reshape(b, -1, c)
        gone = torch.gather(src.transpose(0, 1), 1, edge.unsqueeze(-1).expand(-1, -1, c))
        into = partner.gather(1, edge)
        grown = dst.transpose(0, 1).scatter_reduce(
            1, into.unsqueeze(-1).expand(-1, -1, c), gone, reduce="mean", include_self=True
        )
        return torch.cat([grown, kept], dim=1).permute(1, 0, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        if self.r > 0:
            x = self.merge(x)
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Images (B, 3, 12, 12) → (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4, bias=False)
        scale = WIDTH**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(scale * torch.randn(10, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.resblocks = nn.Sequential(
            *[ResidualAttentionBlock(WIDTH, HEADS, r=r) for r in (2, 2, 0)]
        )
        self.proj = nn.Parameter(scale * torch.randn(WIDTH, JOINT))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        zeros = torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.cat([self.class_embedding.to(x.dtype) + zeros, x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0, :]) @ self.proj


class ImageText(nn.Module):
    """Images (B, 3, 12, 12) and words (B, 7) → similarities of both ways, (B, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = VisionTransformer()
        mask = self.build_attention_mask()
        self.transformer = nn.Sequential(
            *[ResidualAttentionBlock(WIDTH, HEADS, mask) for _ in range(2)]
        )
        self.token_embedding = nn.Embedding(WORDS, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.3)
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, JOINT) * WIDTH**-0.5)
        self.logit_scale = nn.Parameter(torch.ones([]) * 1.5)

    def build_attention_mask(self) -> Tensor:
        mask = torch.empty(LENGTH, LENGTH)
        mask.fill_(float("-inf"))
        mask.triu_(1)
        return mask

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x)
        result: Tensor = x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection
        return result

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image_features, text_features = self.visual(image), self.encode_text(text)
        image_features = image_features / image_features.norm(dim=1, keepdim=True)
        text_features = text_features / text_features.norm(dim=1, keepdim=True)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """10 tokens of an image become 8, then 6; a text of 7 words ends at its highest."""
    torch.manual_seed(seed)
    model = ImageText().eval()
    text = torch.randint(1, WORDS - 1, (batch, LENGTH))
    text[torch.arange(batch), torch.randint(2, LENGTH, (batch,))] = WORDS - 1
    return model, (torch.randn(batch, 3, 12, 12), text)
