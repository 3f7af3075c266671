"""Only the rows that are read are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import TARGETS, assert_close, calls, checked, rewrite, run_eager, run_rewritten
from helpers.thorough import thorough_but
from hypothesis import given, settings
from hypothesis import strategies as st
from models.plain_vits import DEEPER, DEPTH, WIDTH, build, image
from torch import Tensor, nn

import tokexport
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.pass_runner import PassResult
from tokexport.graph_passes.torch_passes.trim.drop_unread_rows import DropUnreadRows

ops.register()
PASSES = (DropUnreadRows(),)
aten = torch.ops.aten
Outputs = Tensor | tuple[Tensor, ...]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shapes(rewritten: PassResult, *targets: Any) -> list[tuple[int, ...]]:
    """The shapes that calls of the targets give, in order."""
    return [
        tuple(node.meta["val"].shape)
        for node in rewritten.program.graph.nodes
        if node.op == "call_function" and node.target in targets
    ]


# What is computed on (2, 6, 8), what is read of it, and the operator whose result has that size.


def attended(q: Tensor, k: Tensor) -> Tensor:
    return torch.ops.tokexport.sized_attention(q[:, None], k[:, None], k[:, None], None, 0.3)[:, 0]


def heads(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention (2, 2, 6, 4) of (2, 6, 8)."""
    split = x.reshape(2, 6, 2, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(split, split, split * 2, mask)


FIRES: dict[str, tuple[Callable[[Tensor], Outputs], Any, tuple[int, ...]]] = {
    "an activation": (lambda x: F.gelu(x)[:, 0], aten.gelu.default, (2, 1, 8)),
    "a slice": (lambda x: F.gelu(x)[:, 1:3], aten.gelu.default, (2, 2, 8)),
    "a row from behind": (lambda x: F.gelu(x)[:, -1], aten.gelu.default, (2, 1, 8)),
    "another axis": (lambda x: F.gelu(x)[..., 2:4], aten.gelu.default, (2, 6, 2)),
    "an image": (lambda x: F.gelu(x)[:1], aten.gelu.default, (1, 6, 8)),
    "several readers": (
        lambda x: ((y := F.gelu(x))[:, 1] * y[:, 2], y[:, 1:3] + 1),
        aten.gelu.default,
        (2, 2, 8),
    ),
    "a cut of a cut": (lambda x: F.gelu(x)[:, 1:5][:, 1:3][:, 1], aten.gelu.default, (2, 1, 8)),
    "cuts of two axes": (lambda x: F.gelu(x)[:, 0:2][:, :, 3], aten.gelu.default, (2, 2, 1)),
    "a value with itself": (lambda x: (x * x)[:, :2], aten.mul.Tensor, (2, 2, 8)),
    "a broadcast row": (lambda x: (x + x[:, 5:])[:, :2], aten.add.Tensor, (2, 2, 8)),
    "a broadcast from the left": (lambda x: (x + x[0, :, :1])[:, :2], aten.add.Tensor, (2, 2, 8)),
    "a choice": (
        lambda x: torch.where(torch.arange(6)[:, None] % 4 == 1, x, x[:, 5:] * 2)[:, 1:3],
        aten.where.self,
        (2, 2, 8),
    ),
    "a clamp": (lambda x: x.clamp(x[:, 1:2], x[..., 1:2] + 1)[:, :3], aten.clamp.Tensor, (2, 3, 8)),
    "a fused sum": (lambda x: x.addcmul(x, x[..., :1])[:, 1], aten.addcmul.default, (2, 1, 8)),
    "integers": (lambda x: (torch.arange(6) * 3)[2:4] + x[:, :2, 0].long(), aten.mul.Tensor, (2,)),
    "truth values": (lambda x: x.isnan().logical_not()[0, 2], aten.logical_not.default, (1, 1, 8)),
    "another dtype": (lambda x: (x.double() * 2)[:, 1], aten.mul.Tensor, (2, 1, 8)),
    "a norm": (lambda x: F.layer_norm(x, (8,))[:, 0], aten.layer_norm.default, (2, 1, 8)),
    "a root mean square": (lambda x: F.rms_norm(x, (8,))[:, 0], aten.rms_norm.default, (2, 1, 8)),
    "a layer": (lambda x: F.linear(x, x[0])[:, 0], aten.linear.default, (2, 1, 6)),
    "a layer of its own rows": (
        lambda x: F.linear(x[0], x[0])[:2].exp(),
        aten.linear.default,
        (2, 6),
    ),
    "a product": (lambda x: (x @ x.mT)[:, 1:2].exp(), aten.matmul.default, (2, 1, 6)),
    "a square": (lambda x: ((y := x[:, :, :6]) @ y)[:, :2], aten.matmul.default, (2, 2, 6)),
    "a softmax": (lambda x: x.softmax(-1)[:, 0], aten.softmax.int, (2, 1, 8)),
    "a softmax over rows": (lambda x: x.softmax(1)[..., 0], aten.softmax.int, (2, 6, 1)),
    "a mean": (lambda x: x.mean(-1, keepdim=True)[:, :2], aten.mean.dim, (2, 2, 1)),
    "a sum that drops its axis": (lambda x: x.sum(0)[:2], aten.sum.dim_IntList, (2, 8)),
    "a sum over two axes": (lambda x: x.sum((0, -1))[:2], aten.sum.dim_IntList, (2,)),
    "a largest": (lambda x: x.amax(-1)[:, 4], aten.amax.default, (2, 1)),
    "a length": (lambda x: x.norm(dim=-1)[:, 4], aten.linalg_vector_norm.default, (2, 1)),
    "a permutation": (lambda x: x.exp().permute(2, 0, -2)[..., 0], aten.exp.default, (2, 1, 8)),
    "a transpose": (lambda x: x.exp().transpose(-1, 1)[:, :, 0], aten.exp.default, (2, 1, 8)),
    "split channels": (
        lambda x: x.exp().reshape(2, 6, 2, 4)[:, 1],
        aten.exp.default,
        (2, 1, 8),
    ),
    "a reshape that splits an axis": (
        lambda x: x.exp().reshape(2, 3, 2, 8)[:, 1],
        aten.exp.default,
        (2, 2, 8),
    ),
    "a reshape that joins axes": (
        lambda x: x.exp().reshape(12, 8)[:6].sin(),
        aten.exp.default,
        (1, 6, 8),
    ),
    "an expanded axis": (
        lambda x: x[:, :1].exp().expand(2, 6, 8)[:, 2:4].sin(),
        aten.expand.default,
        (2, 2, 8),
    ),
    "an axis beside an expanded one": (
        lambda x: x.exp()[None].expand(3, -1, -1, -1)[:, :, 0],
        aten.exp.default,
        (2, 1, 8),
    ),
    "a selection": (lambda x: x.exp()[1][:2], aten.exp.default, (1, 2, 8)),
    "every second of another axis": (
        lambda x: x.exp()[:, :, ::2][:, 1],
        aten.exp.default,
        (2, 1, 8),
    ),
    "a new axis": (lambda x: x.exp().unsqueeze(-2)[:, 2], aten.exp.default, (2, 1, 8)),
    "an axis of one dropped": (
        lambda x: x[:1].exp().squeeze(0)[1:3].sin(),
        aten.exp.default,
        (1, 2, 8),
    ),
    "an axis of more not dropped": (
        lambda x: x.exp().squeeze(1)[:, 1],
        aten.exp.default,
        (2, 1, 8),
    ),
    "a part of joined values": (
        lambda x: torch.cat([x.sin(), x.exp()], 1)[:, 7:9],
        aten.exp.default,
        (2, 2, 8),
    ),
    "parts of two joined values": (
        lambda x: torch.cat([x.sin(), x.exp()], -2)[:, 5:8],
        aten.exp.default,
        (2, 2, 8),
    ),
    "values joined along another axis": (
        lambda x: torch.cat([x, x.exp()], 2)[:, 1],
        aten.exp.default,
        (2, 1, 8),
    ),
    "an attention": (
        lambda x: heads(x)[:, :, :1],
        aten.scaled_dot_product_attention.default,
        (2, 2, 1, 4),
    ),
    "an attention with a mask for each row": (
        lambda x: heads(x, x[:, None, :, :6])[:, :, 1:3],
        aten.scaled_dot_product_attention.default,
        (2, 2, 2, 4),
    ),
    "an attention with one mask for all": (
        lambda x: heads(x, x[:, None, :1, :6])[:, :, 1:3],
        aten.scaled_dot_product_attention.default,
        (2, 2, 2, 4),
    ),
    "an attention of one value": (
        lambda x: torch.ops.tokexport.sized_attention(x[None], x[None], x[None], None, 0.3)[
            :, :, 1
        ],
        torch.ops.tokexport.sized_attention.default,
        (1, 2, 1, 8),
    ),
    "rows at positions": (
        lambda x: torch.ops.tokexport.gather_tokens(x, x[..., 0].argsort(1))[:, :2],
        torch.ops.tokexport.gather_tokens.default,
        (2, 2, 8),
    ),
}


@pytest.mark.parametrize("name", FIRES)
def test_what_is_read_is_computed(name: str) -> None:
    function, target, shape = FIRES[name]
    rewritten = checked(function, drawn(2, 6, 8), passes=PASSES)
    found = shapes(rewritten, target)
    assert shape in found, found
    assert rewritten.changes["drop unread rows"] > 0
    twice = rewrite(function, drawn(2, 6, 8), passes=PASSES * 2)
    assert twice.changes == rewritten.changes  # a second run finds nothing left


def merges(mode: str, read: slice) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        ops = torch.ops.tokexport
        a, b = x[:, ::2], x[:, 1::2]
        kept, src, dst = ops.bipartite_match(a @ b.mT, 1, "index")
        merged: Tensor = ops.merge_tokens(a, b, kept, src, dst, mode)
        return merged[:, read] * 2

    return function


@pytest.mark.parametrize("mode", ["sum", "mean", "none", "amax"])
def test_rows_that_were_kept_need_no_merge(mode: str) -> None:
    rewritten = checked(merges(mode, slice(2)), drawn(2, 6, 8), passes=PASSES)
    assert rewritten.recognised == {"bipartite_match": 1, "gather_tokens": 1}


@pytest.mark.parametrize("read", [slice(1, 3), slice(3, 4)])
def test_rows_that_took_others_in_do(read: slice) -> None:
    rewritten = checked(merges("sum", read), drawn(2, 6, 8), passes=PASSES)
    assert rewritten.recognised == {"bipartite_match": 1, "merge_tokens": 1}


STAYS: dict[str, Callable[[Tensor], Outputs]] = {
    "all is read": lambda x: ((y := x.exp())[:, :3] + 1, y[:, 3:] * 2),
    "most is read": lambda x: x.exp()[:, 1:],
    "something reads the whole": lambda x: ((y := x.exp())[:, 0], y.sum()),
    "parts of two axes": lambda x: ((y := x.exp())[:, 0], y[:, :, 0]),
    "every second row": lambda x: x.exp()[:, ::2],
    "no row": lambda x: x.exp()[:, 3:3],
    "an output": lambda x: ((y := x.exp()), y[:, 0]),
    "a norm over the axis": lambda x: F.layer_norm(x, (6, 8))[:, 0],
    "columns of a layer": lambda x: F.linear(x, x[0])[..., :2],
    "columns of a product": lambda x: (x @ x.mT)[..., :2],
    "a layer with a vector": lambda x: F.linear(x, torch.ones(8))[:, :2],
    "a softmax over the axis": lambda x: x.softmax(1)[:, 0],
    "a sum over the axis": lambda x: x.sum(1, keepdim=True).expand(2, 1, 8)[:, 0],
    "a running sum": lambda x: x.cumsum(1)[:, :2],
    "a reshape across rows": lambda x: x.reshape(2, 4, 12)[:, :1],
    "a part of joined axes": lambda x: x.reshape(12, 8)[:3],
    "a made axis": lambda x: x.unsqueeze(0)[0],
    "a comparison, which decides": lambda x: (x > 0.1)[:, 0],
    "an order, which decides": lambda x: x.argsort(1)[:, :2],
    "a causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)[:, :1],
    "heads of an attention": lambda x: heads(x)[:, :1],
    "channels of an attention": lambda x: heads(x)[..., :1],
    "mixed dtypes": lambda x: torch.cat([torch.arange(6), x.sum((0, 1))])[:3],
    "an empty vector among tensors": lambda x: torch.cat([x.new_empty(0), x[:, :3]], 1)[:, :1],
}


@pytest.mark.parametrize("name", STAYS)
def test_another_stays(name: str) -> None:
    rewritten = checked(STAYS[name], drawn(2, 6, 8), passes=PASSES)
    assert rewritten.changes == {"drop unread rows": 0}


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: x + torch.rand_like(x),
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: F.rrelu(x, 0.1, 0.9, training=True),
    ],
)
def test_what_is_drawn_is_drawn_once_and_whole(draw: Callable[[Tensor], Tensor]) -> None:
    def function(x: Tensor) -> Tensor:
        return (draw(x) * 2)[:, 0]

    x = drawn(2, 6, 8)
    rewritten = rewrite(function, x, passes=PASSES)
    assert rewritten.changes["drop unread rows"] > 0
    torch.manual_seed(3)
    wanted = run_eager(function, x)
    torch.manual_seed(3)
    assert_close(run_rewritten(rewritten, x), wanted)


# Small graphs at random. What grows is bounded: the cosine of a large number is all rounding.

UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh,
    lambda x: (x * x).tanh(),
    lambda x: x.softmax(-1),
    lambda x: x.softmax(0),
    lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: (x * x.sum(0)).tanh(),
    lambda x: x.transpose(0, 1),
    lambda x: x.transpose(-1, -2),
    lambda x: x.permute(2, 0, 1),
    lambda x: (x @ x.mT).tanh(),
    lambda x: F.linear(x, x[0]).tanh(),
    lambda x: x.reshape(x.shape[1], x.shape[0], x.shape[2]),
    lambda x: x.reshape(-1, x.shape[2])[None],
    lambda x: x[1:] if len(x) > 1 else x,
    lambda x: x[:, ::2],
    lambda x: x[:, :1].expand(-1, 3, -1),
    lambda x: x.unsqueeze(1)[:, :, -1],
    lambda x: torch.where(torch.arange(x.shape[2]) % 2 == 1, x, -x),
    lambda x: x.masked_fill(x > 0.5, 0.25),
    lambda x: torch.cat([x, x.sin()], 1),
)


@settings(max_examples=12)
@given(st.data())
def test_small_graphs_compute_what_eager_computes(data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.sampled_from(UNARY), min_size=1, max_size=5))
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    dims = data.draw(st.lists(st.integers(-3, 2), min_size=1, max_size=3))
    starts = data.draw(st.lists(st.integers(-5, 5), min_size=3, max_size=3))
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3))
    both = data.draw(st.booleans())

    def function(x: Tensor) -> tuple[Tensor, ...]:
        for step in steps:
            x = step(x)
        found = []
        for dim, start, length in zip(dims, starts, lengths, strict=False):
            first = start % max(x.shape[dim], 1)
            cut = x.narrow(dim, first, min(length, x.shape[dim] - first))
            found.append(cut.cos())
            if not both:
                x = cut
        return (*found, x.select(dims[0], 0)) if x.shape[dims[0]] else tuple(found)

    checked(function, drawn(*shape, seed=1), passes=(*PASSES, *pipelines.TRIM), tolerance=1e-5)


# Whole models: the last block of a classifier.


def last_linears(rewritten: PassResult, count: int = 5) -> list[int]:
    """The rows of an image in the last linear layers."""
    return [shape[1] for shape in shapes(rewritten, aten.linear.default) if len(shape) == 3][
        -count:
    ]


def test_a_class_token_is_all_that_the_last_block_computes() -> None:
    rewritten = checked(build("timm DeiT"), image(), tolerance=1e-5, targets=TARGETS)
    # Keys and values of all; query, projection and both layers of the MLP of the class token.
    assert last_linears(rewritten) == [37, 1, 1, 1, 1]
    assert shapes(rewritten, torch.ops.tokexport.sized_attention.default)[-2:] == [
        (2, 3, 37, WIDTH // 3),
        (2, 3, 1, WIDTH // 3),
    ]
    assert rewritten.recognised == {"sized_attention": DEPTH}
    assert rewritten.token_schedule == (37,) * DEPTH


def test_pooling_reads_all_tokens() -> None:
    model = build("timm DeiT")
    model.global_pool = "avg"
    rewritten = checked(model, image(), tolerance=1e-5)
    assert set(last_linears(rewritten)) == {37}


def test_tokens_that_are_returned_are_computed() -> None:
    model = build("timm DeiT")
    rewritten = checked(Features(model), image(), tolerance=1e-5)
    assert rewritten.changes["drop unread rows"] == 0


class Features(nn.Module):
    """All tokens of a ViT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        return tokens


class Pooled(nn.Module):
    """The class token of a transformers model, without the other tokens that it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.model(x).pooler_output
        return pooled


@pytest.mark.parametrize(
    "name",
    thorough_but(["transformers CLIP"], ["torchvision ViT", "transformers CLIP", "open_clip ViT"]),
)
def test_the_mlp_of_other_libraries_too(name: str) -> None:
    model = build(name)
    model = Pooled(model) if name == "transformers CLIP" else model
    layers = shapes(checked(model, image(), tolerance=1e-5), aten.linear.default)
    assert [rows for _, rows, *width in layers if width][-2:] == [1, 1]


def test_the_last_match_of_a_class_token_is_gone() -> None:
    reduced = tokexport.reduce(build("timm DeiT", depth=DEEPER), "tome:r=4", image())
    rewritten = checked(reduced, image(), tolerance=1e-5, targets=TARGETS)
    assert last_linears(rewritten) == [25, 1, 1, 1, 1]
    assert rewritten.recognised["bipartite_match"] == 4
    assert calls(rewritten)["tokexport.bipartite_match"] == 3
    assert rewritten.token_schedule == (37, 33, 29, 25)
