"""Vision towers that read Python numbers from an input, in the spellings of published ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, PATCH = 16, 12


class SplitAttention(nn.Module):
    """Rotary attention within the parts of a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cu_seqlens: Tensor, angles: Tensor, by_mask: bool) -> Tensor:
        n = x.shape[0]
        q, k, v = self.qkv(x).reshape(n, 3, 2, -1).permute(1, 2, 0, 3).unbind(0)
        q, k = _turned(q, angles), _turned(k, angles)
        if by_mask:
            mask = torch.zeros(1, n, n, dtype=torch.bool)
            for i in range(1, len(cu_seqlens)):
                start, end = cu_seqlens[i - 1], cu_seqlens[i]
                mask[..., start:end, start:end] = True
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
            parts = [torch.split(one, lengths, dim=1) for one in (q, k, v)]
            y = torch.cat(
                [F.scaled_dot_product_attention(*one) for one in zip(*parts, strict=True)], 1
            )
        return self.proj(y.transpose(0, 1).reshape(n, -1))


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


class GridTower(nn.Module):
    """Packs patches (N, 12) of grids (n, 3); windows, then all tokens of a frame; merges 2 × 2."""

    def __init__(self, window: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(PATCH, WIDTH)
        self.blocks = nn.ModuleList(SplitAttention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)
        self.window = window
        inverse = 1 / 10 ** (torch.arange(0, 4, 2).float() / 4)
        self.register_buffer("inverse", inverse, persistent=False)

    def angles(self, grid_thw: Tensor) -> Tensor:
        found = []
        for t, h, w in grid_thw:
            rows = torch.arange(h).unsqueeze(1).expand(-1, w)
            rows = rows.reshape(h // 2, 2, w // 2, 2).permute(0, 2, 1, 3).flatten()
            columns = torch.arange(w).unsqueeze(0).expand(h, -1)
            columns = columns.reshape(h // 2, 2, w // 2, 2).permute(0, 2, 1, 3).flatten()
            found.append(torch.stack([rows, columns], -1).repeat(t, 1))
        table = torch.outer(torch.arange(grid_thw[:, 1:].max()).float(), self.inverse)
        half = table[torch.cat(found)].flatten(1)
        return torch.cat([half, half], -1)

    def windows(self, grid_thw: Tensor) -> tuple[Tensor, Tensor]:
        index: list[Tensor] = []
        ends, base, size = [0], 0, self.window
        for t, h, w in grid_thw.tolist():
            h, w = h // 2, w // 2
            at = torch.arange(t * h * w).reshape(t, h, w)
            pad_h, pad_w = size - h % size, size - w % size
            rows, columns = (h + pad_h) // size, (w + pad_w) // size
            at = F.pad(at, (0, pad_w, 0, pad_h), "constant", -100)
            at = at.reshape(t, rows, size, columns, size).permute(0, 1, 3, 2, 4)
            at = at.reshape(t, rows * columns, size, size)
            lengths = (at != -100).sum([2, 3]).reshape(-1)
            at = at.reshape(-1)
            index.append(at[at != -100] + base)
            ends.extend((lengths.cumsum(0) * 4 + ends[-1]).tolist())
            base += t * h * w
        return torch.cat(index), torch.unique_consecutive(torch.tensor(ends, dtype=torch.int32))

    def forward(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        x, angles = self.embed(pixel_values), self.angles(grid_thw)
        index, of_windows = self.windows(grid_thw)
        n = x.shape[0]
        x = x.reshape(n // 4, 4, -1)[index].reshape(n, -1)
        angles = angles.reshape(n // 4, 4, -1)[index].reshape(n, -1)
        areas = grid_thw[:, 1] * grid_thw[:, 2]
        of_frames = torch.repeat_interleave(areas, grid_thw[:, 0]).cumsum(0, dtype=torch.int32)
        of_frames = F.pad(of_frames, (1, 0), value=0)
        for block, norm, ends in zip(self.blocks, self.norms, (of_windows, of_frames), strict=True):
            x = x + block(norm(x), ends, angles, by_mask=ends is of_windows)
        merged: Tensor = self.head(x.reshape(n // 4, 4, -1).mean(1))
        return merged[torch.argsort(index)]


class NaFlex(nn.Module):
    """Resizes its positions to the shape (B, 2) of each image; pads to (B, 12) patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(PATCH, WIDTH)
        self.positions = nn.Parameter(torch.randn(4, 4, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, pixel_values: Tensor, mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        x = self.embed(pixel_values)
        batch, n, _ = x.shape
        resized = torch.empty(batch, n, WIDTH)
        table = self.positions.permute(2, 0, 1)[None]
        for i in range(batch):
            h, w = spatial_shapes[i]
            one = F.interpolate(table, size=(h, w), mode="bilinear", antialias=True)
            one = one.reshape(WIDTH, h * w).transpose(0, 1)
            resized[i, : h * w] = one
            resized[i, h * w :] = one[0]
        x = x + resized
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        keys = mask[:, None, :].to(torch.bool)
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        weights = mask[..., None].float()
        found: Tensor = self.head((x * weights).sum(1) / weights.sum(1))
        return found


class Switches(nn.Module):
    """Goes by a flag, a number of a task and a scale, each a tensor; the flag comes first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, WIDTH)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, classes) for classes in (3, 5, 7))
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, use_cls: Tensor, x: Tensor, task: Tensor, scale: Tensor) -> Tensor:
        x = self.embed(x)
        if use_cls:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        if scale > 1.5:
            x = x * scale
        kept = max(1, int(x.shape[1] * scale.item() / 4))
        found: Tensor = self.heads[task](x[:, :kept].mean(1))
        return found


class Frames(nn.Module):
    """Takes a video and what describes it in one nested dict, into which it writes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        meta = inputs["meta"]
        x = self.embed(inputs["frames"])
        count, stride = meta["count"].item(), int(meta["stride"])
        x = x.view(len(x), count, -1, WIDTH)
        parts = [x[:, i : i + stride].mean((1, 2)) for i in range(0, count, stride)]
        kept = meta["keep"].nonzero().squeeze(-1)
        pooled = torch.stack(parts, 1)[:, kept]
        meta["count"] += 1
        return {"logits": self.head(pooled.mean(1)), "pooled": pooled}


def grid_tower() -> tuple[nn.Module, dict[str, Tensor]]:
    """One image of 4 × 6 patches."""
    patches = torch.randn(24, PATCH, generator=torch.Generator().manual_seed(1))
    return GridTower().eval(), {
        "pixel_values": patches,
        "grid_thw": torch.tensor([[1, 4, 6]]),
    }


def three_grids() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Two images and a video of two frames, packed."""
    grids = torch.tensor([[1, 4, 4], [1, 4, 6], [2, 4, 4]])
    patches = torch.randn(72, PATCH, generator=torch.Generator().manual_seed(1))
    return GridTower().eval(), (patches, grids)


def naflex(batch: int = 3) -> tuple[nn.Module, dict[str, Tensor]]:
    """Images of three shapes."""
    shapes = torch.tensor([[3, 4], [4, 2], [2, 5]])[:batch]
    mask = (torch.arange(12) < shapes.prod(1, keepdim=True)).int()
    patches = torch.randn(batch, 12, PATCH, generator=torch.Generator().manual_seed(1))
    return NaFlex().eval(), {"pixel_values": patches, "mask": mask, "spatial_shapes": shapes}


def switches(batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The flag is set."""
    x = torch.randn(batch, 9, 6, generator=torch.Generator().manual_seed(1))
    return Switches().eval(), (torch.tensor(True), x, torch.tensor(1), torch.tensor(2.0))


def frames(batch: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    """Eight frames, two at a time, of which one pair is left out."""
    x = torch.randn(batch, 32, 6, generator=torch.Generator().manual_seed(1))
    keep = torch.tensor([True, False, True, True])
    meta = {"count": torch.tensor(8), "stride": torch.tensor([2]), "keep": keep}
    return Frames().eval(), {"inputs": {"frames": x, "meta": meta}}
