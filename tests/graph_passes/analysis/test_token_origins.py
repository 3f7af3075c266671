"""Which patches each token holds, against what the model itself computes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models.tiny_vit import image, tiny_tome
from torch import Tensor, nn

from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.analysis.token_origins import END, TokenOrigins, token_origins
from tokexport.graph_passes.ops import ops

PATCHES, WIDTH, MERGED, KEPT = 36, 8, 6, 20


def merged(tokens: Tensor, others: Tensor) -> Tensor:
    """Merges pairs of tokens (B, N, C) by their scores, and others (B, N, D) with them, summed."""
    even, odd = tokens[:, ::2], tokens[:, 1::2]
    best, partner = (even @ odd.transpose(1, 2)).max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    kept, src = order[:, MERGED:], order[:, :MERGED]
    dst = partner[..., None].gather(1, src)
    from_even, into = others[:, ::2], others[:, 1::2]
    width = others.shape[-1]
    into = into.scatter_reduce(
        1, dst.expand(-1, -1, width), from_even.gather(1, src.expand(-1, -1, width)), reduce="sum"
    )
    return torch.cat([from_even.gather(1, kept.expand(-1, -1, width)), into], dim=1)


def pruned(tokens: Tensor, others: Tensor) -> Tensor:
    """Keeps the tokens with the largest sums, and those others (B, N, D)."""
    index = tokens.sum(-1).topk(KEPT, dim=1).indices
    return others.gather(1, index[..., None].expand(-1, -1, others.shape[-1]))


class Block(nn.Module):
    """Attention with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        heads = self.qkv(self.norm(x)).view(batch, count, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads.unbind(0))
        return x + mixed.transpose(1, 2).reshape(batch, count, WIDTH)


class Follows(nn.Module):
    """x (B, 3, 24, 24) → tokens behind two reductions, and which patches they hold (B, N, 36)."""

    def __init__(self, reduce: Callable[[Tensor, Tensor], Tensor], linear: bool) -> None:
        super().__init__()
        self.reduce, self.linear = reduce, linear
        self.conv, self.patch = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(48, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.linear:
            cut = x.view(-1, 3, 6, 4, 6, 4).permute(0, 2, 4, 1, 3, 5)
            tokens = self.patch(cut.reshape(-1, PATCHES, 48))
        else:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
        tokens = self.blocks[0](tokens)
        eye = torch.eye(PATCHES).expand(len(x), -1, -1)
        held = self.reduce(tokens, eye)
        tokens = self.blocks[1](self.reduce(tokens, tokens))
        if self.reduce is merged:
            held = self.reduce(tokens, held)
            tokens = self.reduce(tokens, tokens)
        return self.blocks[2](tokens), held


def origins(model: nn.Module, x: Tensor, images: int) -> TokenOrigins:
    ops.register()
    found: list[TokenOrigins] = []
    with torch_warnings_silenced():
        program = torch.export.export(model.eval(), (x,)).run_decompositions({})
        pipelines.rewrite(program, lambda look: found.append(token_origins(look, [(x,)], images)))
    return found[0]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("reduce", [merged, pruned])
def test_every_patch_is_where_the_model_puts_it(
    reduce: Callable[[Tensor, Tensor], Tensor], linear: bool
) -> None:
    torch.manual_seed(0)
    model, x = Follows(reduce, linear), torch.randn(2, 3, 24, 24)
    found = origins(model, x, images=2)
    assert (found.grid, found.why_not) == ((6, 6), "")
    assert [step.block for step in found.steps] == ["blocks.0", "blocks.1", "blocks.2"]
    with torch.no_grad():
        held = model(x)[1]
    last = found.steps[-1]
    assert last.tokens == held.shape[1]
    for row, sets in zip(last.holders, held, strict=True):
        expected = [
            int(column.argmax()) if column.sum() else -1 for column in (sets > 0).int().unbind(1)
        ]
        assert list(row) == expected
    assert set(found.steps[0].holders[0]) == set(range(PATCHES))
    assert (-1 in last.holders[0]) == (reduce is pruned)


def test_tome_in_a_model_of_timm_merges_three_in_each_block() -> None:
    x = torch.randn(1, *image().shape[1:], generator=torch.Generator().manual_seed(0))
    found = origins(tiny_tome(), x, images=1)
    assert [(step.block, step.tokens, step.special) for step in found.steps] == [
        ("blocks.0", 37, 1),
        ("blocks.1", 34, 1),
        (END, 31, 1),
    ]
    assert [len(set(step.holders[0])) for step in found.steps] == [36, 33, 30]
    assert all(-1 not in step.holders[0] for step in found.steps)


def test_without_a_grid_of_patches_it_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4))
    found = origins(model, torch.randn(1, 3, 24, 24), images=1)
    assert found.grid is None
    assert "no picture was found that is cut into a grid of patches" in found.why_not


def test_tokens_that_are_shuffled_by_a_sum_are_not_drawn() -> None:
    class Mixes(Follows):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            tokens = torch.einsum("bnc,bnm->bmc", tokens, tokens @ tokens.transpose(1, 2))
            return self.blocks[1](self.blocks[0](tokens.cumsum(1).sort(dim=1).values)), x

    found = origins(Mixes(merged, False), torch.randn(1, 3, 24, 24), images=1)
    assert (found.grid, found.steps) == ((6, 6), ())
    assert "could not be followed" in found.why_not
