"""A detector in two stages: the best tokens of the encoder become the queries of the decoder.

The encoder updates only the tokens that a scorer picks, and writes them back; proposals are the
best of all tokens over all classes; each layer of the decoder refines the boxes it was given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

D, GRID, CLASSES = 32, 4, 4


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_embed(pos: Tensor) -> Tensor:
    """Returns sines and cosines of boxes (B, K, 4): (B, K, 32)."""
    dim_t = torch.arange(8, dtype=torch.float32, device=pos.device)
    dim_t = 20 ** (2 * torch.div(dim_t, 2, rounding_mode="floor") / 8)
    parts = []
    for coordinate in pos.unbind(-1):
        angle = coordinate[..., None] * 6.2831853 / dim_t
        parts.append(
            torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=3).flatten(2)
        )
    return torch.cat(parts, dim=2)


class EncoderLayer(nn.Module):
    """Updates some tokens, which attend to all."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(D, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.linear1, self.linear2 = nn.Linear(D, 48), nn.Linear(48, D)

    def forward(self, tgt: Tensor, src: Tensor, tgt_pos: Tensor, pos: Tensor) -> Tensor:
        attended = self.self_attn(tgt + tgt_pos, src + pos, src, need_weights=False)[0]
        tgt = self.norm1(tgt + attended)
        return self.norm2(tgt + self.linear2(torch.relu(self.linear1(tgt))))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = (
            nn.MultiheadAttention(D, 4, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(D) for _ in range(3)])
        self.ffn = nn.Sequential(nn.Linear(D, 48), nn.ReLU(), nn.Linear(48, D))

    def forward(self, tgt: Tensor, query_pos: Tensor, memory: Tensor) -> Tensor:
        q = k = tgt + query_pos
        tgt = self.norms[0](tgt + self.self_attn(q, k, value=tgt)[0])
        tgt = self.norms[1](tgt + self.cross_attn(tgt + query_pos, memory, memory)[0])
        result: Tensor = self.norms[2](tgt + self.ffn(tgt))
        return result


class QueryDetector(nn.Module):
    """Images (B, 3, 32, 32) → logits (B, 5, 4), boxes (B, 5, 4) of each layer and the last."""

    def __init__(self, num_queries: int = 5, updated: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, D, 2, 2)
        )
        self.row_embed, self.col_embed = nn.Embedding(8, D // 2), nn.Embedding(8, D // 2)
        self.level_score = nn.Linear(D, 1)
        self.encoder = nn.ModuleList([EncoderLayer() for _ in range(2)])
        self.enc_output, self.enc_output_norm = nn.Linear(D, D), nn.LayerNorm(D)
        self.class_embed = nn.ModuleList([nn.Linear(D, CLASSES) for _ in range(3)])
        self.bbox_embed = nn.ModuleList([nn.Linear(D, 4) for _ in range(3)])
        self.decoder = nn.ModuleList([DecoderLayer() for _ in range(2)])
        self.num_queries, self.updated = num_queries, updated

    def proposals(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes before their sigmoid, (B, N, 4), and memory with the border at 0."""
        N_, _, _ = memory.shape
        grid_y, grid_x = torch.meshgrid(
            torch.linspace(0, GRID - 1, GRID), torch.linspace(0, GRID - 1, GRID), indexing="ij"
        )
        grid = torch.cat([grid_x.unsqueeze(-1), grid_y.unsqueeze(-1)], -1)
        grid = (grid.unsqueeze(0).expand(N_, -1, -1, -1) + 0.5) / GRID
        wh = torch.ones_like(grid) * 0.25
        boxes = torch.cat((grid, wh), -1).view(N_, -1, 4)
        valid = ((boxes > 0.01) & (boxes < 0.8)).all(-1, keepdim=True)
        boxes = torch.log(boxes / (1 - boxes))
        boxes = boxes.masked_fill(~valid, float("inf"))
        return boxes, memory.masked_fill(~valid, 0.0)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        features = self.backbone(samples)
        h, w = features.shape[-2:]
        i, j = torch.arange(w), torch.arange(h)
        pos = torch.cat(
            [
                self.col_embed(i).unsqueeze(0).repeat(h, 1, 1),
                self.row_embed(j).unsqueeze(1).repeat(1, w, 1),
            ],
            dim=-1,
        )
        pos = pos.permute(2, 0, 1).unsqueeze(0).repeat(samples.shape[0], 1, 1, 1)
        src, pos = (part.flatten(2).transpose(1, 2) for part in (features, pos))
        salient = self.level_score(src).squeeze(-1)
        topk_inds = torch.topk(salient, self.updated, dim=1)[1]
        wide = topk_inds.unsqueeze(-1).repeat(1, 1, D)
        output = src
        tgt, tgt_pos = torch.gather(src, 1, wide), torch.gather(pos, 1, wide)
        for layer in self.encoder:
            tgt = layer(tgt, output, tgt_pos, pos)
            outputs = []
            for b in range(tgt.shape[0]):
                outputs.append(output[b].scatter(0, wide[b], tgt[b]))
            output = torch.stack(outputs)
        boxes, memory = self.proposals(output)
        memory = self.enc_output_norm(self.enc_output(memory))
        enc_class = self.class_embed[-1](memory)
        enc_coord = self.bbox_embed[-1](memory) + boxes
        best = torch.topk(enc_class.max(-1)[0], self.num_queries, dim=1)[1]
        refpoint = torch.gather(enc_coord, 1, best.unsqueeze(-1).repeat(1, 1, 4)).detach()
        reference = refpoint.sigmoid()
        tgt = torch.gather(memory, 1, best.unsqueeze(-1).expand(-1, -1, memory.size(-1)))
        logits, coords = [], []
        for lid, layer in enumerate(self.decoder):
            tgt = layer(tgt, sine_embed(reference), output)
            delta = self.bbox_embed[lid](tgt)
            reference = (delta + inverse_sigmoid(reference)).sigmoid()
            logits.append(self.class_embed[lid](tgt))
            coords.append(reference)
        classes, places = torch.stack(logits), torch.stack(coords)
        scores, flat = classes[-1].sigmoid().flatten(1).topk(4, dim=1)
        of_query, labels = torch.div(flat, CLASSES, rounding_mode="trunc"), flat % CLASSES
        cx, cy, bw, bh = places[-1].unbind(-1)
        corners = torch.stack([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], dim=-1)
        found = torch.gather(corners, 1, of_query.unsqueeze(-1).repeat(1, 1, 4))
        return {
            "pred_logits": classes[-1],
            "pred_boxes": places[-1],
            "scores": scores,
            "labels": labels,
            "found": found,
        }


def build(batch: int = 2, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """6 of 16 tokens are updated, 5 become queries, and 4 of 20 answers are given."""
    torch.manual_seed(seed)
    model = QueryDetector()
    norm = model.backbone[1]
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 1.5)
    return model.eval(), (torch.zeros(batch, 3, 32, 32),)
