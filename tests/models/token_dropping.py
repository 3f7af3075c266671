"""Small ViTs that keep as many tokens as the image says, spelled as published repositories do.

Each is the idea of one method in a few lines: what matters is by which calls its code chooses rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from models.ragged import CLASSES, WIDTH, Block, Vit
from torch import Tensor, nn
from torch.nn import functional as f
from torch.nn.utils.rnn import pad_sequence

TOKENS = 12


def class_scores(attention: Tensor, v: Tensor) -> Tensor:
    """Returns the class token's attention times the values' lengths, (B, N - 1), summing to 1."""
    length = torch.linalg.norm(v.transpose(1, 2).flatten(2), ord=2, dim=2)
    scores = (attention[:, :, 0].sum(dim=1) * length)[:, 1:]
    return scores / scores.sum(dim=1, keepdim=True)


class InverseSampling(Block):
    """Adaptive token sampling as in ATS: inverse-CDF samples in order of score, repeats dropped.

    Its output has as many rows as the largest number of different samples in the batch.
    """

    def __init__(self) -> None:
        super().__init__(fused=False)
        self.nothing = nn.Parameter(torch.zeros(1, WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, most, 16), 0 where a sample kept fewer."""
        b, n, c = x.shape
        out, attention, v = self.attention(self.norm1(x))
        scores, order = torch.sort(class_scores(attention, v), descending=False, dim=1)
        cdf = torch.cumsum(scores, dim=1)
        low, high = cdf.min(dim=1)[0], cdf.max(dim=1)[0]
        cdf = (cdf - low.unsqueeze(1)) / ((high - low) / 1.0).unsqueeze(1)
        steps = torch.linspace(start=0, end=1.0, steps=n - 1).unsqueeze(0).repeat(b, 1)
        first = torch.min(cdf + (cdf == 0).float() * 1e8, dim=1)[0].unsqueeze(-1).expand_as(steps)
        every = torch.arange(0, n - 1).unsqueeze(0).expand_as(first)
        steps = first + ((steps * (n - 2)) - first * every) / (n - 2)
        near = torch.min(torch.abs(steps.unsqueeze(2) - cdf.unsqueeze(1)), dim=2)[1]
        near = torch.sort(near, dim=1)[0]
        later = f.pad(near[:, 1:], (0, 1), value=1.0)
        near = torch.where((later - near) == 0, (n - 1) * torch.ones_like(near), near)
        near = torch.sort(near, dim=1)[0][:, : n - 1]
        raw = torch.gather(x[:, 1:], 1, order.unsqueeze(-1).expand(b, n - 1, c))
        raw = torch.gather(f.pad(raw, (0, 0, 0, 1)), 1, near.unsqueeze(2).expand(b, n - 1, c))
        raw = torch.cat([x[:, 0:1], raw], dim=1)
        policy = f.pad((near != (n - 1)).unsqueeze(-1).float(), (0, 0, 1, 0), value=1.0)
        chosen = torch.nonzero(policy)

        most = policy.sum(1).max().int()  # the count of the batch
        goes = chosen[:, 0] * most + torch.cumsum(torch.ones_like(chosen[:, 0]), 0) - 1
        comes = (chosen[:, 0] * n + chosen[:, 1]).unsqueeze(-1).expand(-1, c)
        rows = torch.gather(raw.reshape(-1, c), 0, comes)
        nothing = self.nothing.expand(b * most, -1)
        to = goes.unsqueeze(-1).expand(-1, c)
        kept = nothing.scatter(0, to, rows, reduce="add").reshape((b, most, c))
        policy = nothing[:, 0].scatter(0, goes, 1, reduce="add").reshape(b, most, 1)
        return (kept + self.mlp(self.norm2(kept))) * policy


class PaddedSampling(Block):
    """Token sampling of another spelling: unique samples of each image, padded to the longest."""

    def __init__(self, samples: int) -> None:
        super().__init__(fused=False)
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 1 + most, 16)."""
        out, attention, v = self.attention(self.norm1(x))
        x = x + out
        cdf = class_scores(attention.pow(0.25), v).cumsum(dim=1)
        steps = (torch.arange(self.samples) + 0.5) / self.samples
        ids = (cdf[:, None, :] - steps[None, :, None]).abs().argmin(dim=-1) + 1
        ids = pad_sequence([torch.unique(one, sorted=True) for one in torch.unbind(ids)], True)
        mask = f.pad(ids != 0, (1, 0), value=True)
        ids = f.pad(ids, (1, 0), value=0)
        x = x.gather(1, ids[..., None].expand(-1, -1, WIDTH))
        x = x + self.mlp(self.norm2(x))
        return x * mask.unsqueeze(-1)


class GumbelSampling(Block):
    """Token sampling by Gumbel noise and the largest, as often as there are samples."""

    def __init__(self, samples: int) -> None:
        super().__init__(fused=False)
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 1 + most, 16)."""
        out, attention, v = self.attention(self.norm1(x))
        x = x + out
        logits = (class_scores(attention.pow(0.25), v) + 1e-6).log()
        logits = logits[:, None].repeat(1, self.samples, 1) + torch.linspace(0, 1, TOKENS).log1p()
        logits = logits * torch.linspace(-1, 1, self.samples)[:, None]
        noise = torch.zeros_like(logits).uniform_(0, 1)
        noise = -torch.log(-torch.log(noise + 1e-20) + 1e-20)
        ids = (logits + noise).argmax(dim=-1) + 1  # drawn here
        ids = pad_sequence([torch.unique(one, sorted=True) for one in torch.unbind(ids)], True)
        mask = f.pad(ids != 0, (1, 0), value=True)
        ids = f.pad(ids, (1, 0), value=0)
        x = x.gather(1, ids[..., None].expand(-1, -1, WIDTH)) * mask[..., None]
        return x + self.mlp(self.norm2(x))


class BranchingSampling(Block):
    """Token sampling that looks whether the class token was sampled, and puts it in front once."""

    def __init__(self, samples: int) -> None:
        super().__init__(fused=False)
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, at most 1 + samples, 16)."""
        out, attention, v = self.attention(self.norm1(x))
        x = x + out
        length = v.transpose(1, 2).flatten(2).norm(dim=-1)
        cdf = (attention[:, :, 0].mean(1) * length).cumsum(dim=1)
        cdf = cdf / cdf[:, -1:]
        steps = torch.range(0, self.samples - 1) / self.samples
        ids = torch.searchsorted(cdf, steps[None].contiguous())
        ids, repeats = torch.unique(ids[0], return_counts=True)
        if (ids == 0).any():  # decided here
            ids = ids[1:]
            repeats = repeats[1:]
        x = torch.cat([x[:, :1], x[:, ids] * repeats[None, :, None].sqrt()], dim=1)
        return x + self.mlp(self.norm2(x))


class Halting(nn.Module):
    """A-ViT: adds up halting scores, masks what has halted, and weighs each block's output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(fused=False) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.places = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.1)
        self.spent = None
        self.rho = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        b, n, _ = x.shape
        if self.spent is None or b != self.spent.size()[0]:
            self.spent = torch.zeros(b, n)
            self.left = torch.ones(b, n)
            self.alive = torch.ones(b, n)
            self.rho = torch.zeros(b, n)
        spent, left, alive = self.spent.clone(), self.left.clone(), self.alive.clone()
        self.rho = self.rho.detach() * 0.0
        result = None
        out = x + self.places
        for i, block in enumerate(self.blocks):
            out.data = out.data * alive.float().view(b, n, 1)
            out = block(out).clone()
            score = torch.sigmoid(out[:, :, 0] * 2 - 1)
            held = out * alive.float().view(b, n, 1)
            if i == len(self.blocks) - 1:
                score = torch.ones(b, n)
            spent = spent + score
            self.rho = self.rho + alive.float()
            reached = (spent > 0.99).float() * alive.float()
            first = held * left.view(b, n, 1) * reached.view(b, n, 1)
            going = (spent < 0.99).float()
            left = left - going * score
            second = held * score.view(b, n, 1) * going.view(b, n, 1)
            alive = spent < 0.99
            result = first + second if result is None else result + (first + second)
            if not alive.any():  # stops early
                break
        return self.head(self.norm(result)[:, 0])


class DeleteGate(nn.Module):
    """MrT5: a gate deletes tokens, and those left move together in every sample of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Block(), Block(fused=False)
        self.gate = nn.Linear(WIDTH, 1)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        x = self.first(x)
        b, n, c = x.shape
        keep = torch.sigmoid(self.gate(x)).squeeze(-1) > 0.45
        target = torch.cumsum(keep, dim=1) - 1
        longest = target[:, -1].max().item() + 1
        target = target.clamp(min=0)
        positions = torch.arange(n).repeat(b, 1) * keep.long()
        moved = torch.zeros(b, longest, dtype=torch.long)
        moved.scatter_add_(1, target, positions)
        lengths = keep.sum(dim=1, keepdim=True)
        mask = torch.arange(longest).unsqueeze(0) < lengths
        x = x.gather(1, moved.unsqueeze(2).expand(-1, -1, c))
        q = self.last.norm1(x)
        scores = (q @ q.transpose(1, 2)).masked_fill(~mask[:, None, :], -1e9)
        x = x + scores.softmax(dim=-1) @ q
        x = (x * mask[..., None]).sum(1) / lengths
        return self.head(self.norm(x))


class EarlyExit(nn.Module):
    """Tokens whose score is high leave early: their features go to their place in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.score = nn.Linear(WIDTH, 1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        result = torch.zeros_like(x)
        where = torch.arange(x.shape[1])
        for block in self.blocks[:-1]:
            x = block(x)
            leaves = torch.sigmoid(self.score(x))[..., 0] > 0.6
            result[:, where[leaves[0]]] = x[:, leaves[0]]  # left here
            x, where = x[:, ~leaves[0]], where[~leaves[0]]
        result[:, where] = self.blocks[-1](x)
        return self.head(result.amax(dim=1))


class SparseClusters(nn.Module):
    """Clusters tokens around the distinct nearest anchors, and averages by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(), Block()
        self.register_buffer("anchors", torch.randn(8, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (1, 5)."""
        x = self.block(x)[0]
        near = torch.cdist(x, self.anchors).argmin(dim=1)
        labels, inverse, counts = torch.unique(near, return_inverse=True, return_counts=True)
        count = labels.numel()
        matrix = torch.sparse_coo_tensor(
            torch.stack([inverse, torch.arange(x.shape[0])]),
            torch.ones(x.shape[0]),
            (count, x.shape[0]),
        )
        merged = torch.sparse.mm(matrix, x) / counts.unsqueeze(1)
        merged = self.last(merged[None])
        return self.head((merged * counts[None, :, None]).sum(1) / counts.sum())


class LearnedThresholds(nn.Module):
    """LTMP: merges what is more alike, and prunes what matters less, than learned thresholds."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(fused=False) for _ in range(2))
        self.alike = nn.Parameter(torch.tensor(0.3))
        self.matters = nn.Parameter(torch.tensor(0.06))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def step(self, block: Block, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tokens and their sizes behind a block."""
        out, attention, v = block.attention(block.norm1(x))
        x = x + out
        importance = torch.mean(attention, dim=(1, 2))
        importance[..., 0] = math.inf
        metric = v.mean(1)
        metric = metric / metric.norm(p=2, dim=-1, keepdim=True)
        a, b = metric[..., ::2, :], metric[..., 1::2, :]
        scores = a @ b.transpose(-1, -2)
        scores[..., 0, :] = -math.inf
        b, _, c = x.shape
        best, to = scores.max(dim=-1)
        merges = best > self.alike
        x = x * size
        source, dest = x[..., ::2, :], x[..., 1::2, :]
        source_size, dest_size = size[..., ::2, :], size[..., 1::2, :]
        source_score, dest_score = importance[..., ::2], importance[..., 1::2]
        left = source[~merges].reshape(b, -1, c)
        left_size = source_size[~merges].reshape(b, -1, 1)
        left_score = source_score[~merges].reshape(b, -1)
        index = torch.argwhere(merges)[..., 1].reshape(b, -1)
        to = to.gather(dim=-1, index=index)
        wide = to.unsqueeze(-1).expand(to.shape + (c,))
        dest = dest.scatter_reduce(1, wide, source[merges].reshape(b, -1, c), reduce="sum")
        dest_size = dest_size.scatter_reduce(
            1, to.unsqueeze(-1), source_size[merges].reshape(b, -1, 1), reduce="sum"
        )
        dest_score = dest_score.scatter_reduce(
            1, to, source_score[merges].reshape(b, -1), reduce="amax"
        )
        x = torch.cat([left, dest], dim=1)
        size = torch.cat([left_size, dest_size], dim=1)
        keeps = torch.cat([left_score, dest_score], dim=1) > self.matters
        x, size = x[keeps].reshape(b, -1, c), size[keeps].reshape(b, -1, 1)
        x = x / size
        return x + block.mlp(block.norm2(x)), size

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        size = torch.ones_like(x[..., :1])
        x, size = self.step(self.blocks[0], x, size)
        return self.head(self.norm(x * size).sum(1) / size.sum(1))


class ThresholdPruning(Vit):
    """DynamicViT with a threshold in place of a count: all of a batch must keep equally many."""

    def __init__(self) -> None:
        super().__init__([Block(), Block()])
        self.score = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2), nn.LogSoftmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 5)."""
        b, n, c = x.shape
        x = self.blocks[0](x)
        keep = self.score(x)[..., 0] > math.log(0.5)
        kept = x[keep].view(b, -1, c)  # regrouped here
        number = torch.tensor([keep[0].sum().item()])
        kept = self.blocks[1](kept)
        return self.head(self.norm(kept.sum(1) / number))


def inverse_sampling() -> tuple[nn.Module, Tensor]:
    return _model(lambda: Vit([Block(), InverseSampling(), Block()]))


def padded_sampling(batch: int = 2) -> tuple[nn.Module, Tensor]:
    return _model(lambda: Vit([Block(), PaddedSampling(6), Block()]), batch)


def gumbel_sampling() -> tuple[nn.Module, Tensor]:
    return _model(lambda: Vit([Block(), GumbelSampling(5), Block()]), 2)


def branching_sampling() -> tuple[nn.Module, Tensor]:
    return _model(lambda: Vit([Block(), BranchingSampling(5), Block()]))


def halting() -> tuple[nn.Module, Tensor]:
    return _model(Halting)


def delete_gate(batch: int = 2) -> tuple[nn.Module, Tensor]:
    return _model(DeleteGate, batch)


def early_exit() -> tuple[nn.Module, Tensor]:
    return _model(EarlyExit)


def sparse_clusters() -> tuple[nn.Module, Tensor]:
    return _model(SparseClusters)


def learned_thresholds() -> tuple[nn.Module, Tensor]:
    return _model(LearnedThresholds)


def threshold_pruning() -> tuple[nn.Module, Tensor]:
    return _model(ThresholdPruning)


def _model(make: Callable[[], nn.Module], batch: int = 1) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make().eval(), torch.randn(batch, TOKENS, WIDTH)
