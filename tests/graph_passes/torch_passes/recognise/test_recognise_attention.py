"""Softmax attention becomes ``sized_attention``, and what only looks like it stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, makers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns q (2, 3, 5, 4), k (2, 3, 7, 4), v (2, 3, 7, 6) and size (2, 7, 1)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, *s, generator=generator) for s in ((5, 4), (7, 4), (7, 6)))
    return q, k, v, torch.rand(2, 7, 1, generator=generator) + 1


def additive(size: Tensor) -> Tensor:
    """The log of the sizes (B, N, 1) over heads and queries, (B, 1, 1, N)."""
    return size.log()[:, None, None, :, 0]


ATTENTIONS: dict[str, Attend] = {
    "scaled queries": lambda q, k, v, s: ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v,
    "scaled logits": lambda q, k, v, s: torch.matmul(
        torch.softmax(torch.matmul(q, k.mT) * 0.5, dim=3), v
    ),
    "divided logits": lambda q, k, v, s: ((q @ k.permute(0, 1, 3, 2)) / 2.0).softmax(dim=-1) @ v,
    "scaled twice": lambda q, k, v, s: ((q / 2 @ k.mT) * 0.25).softmax(-1) @ v,
    "no scale": lambda q, k, v, s: (q @ k.mT).softmax(-1) @ v,
    "with sizes": lambda q, k, v, s: ((q * 0.5) @ k.mT + additive(s)).softmax(-1) @ v,
    "sizes first": lambda q, k, v, s: (additive(s) + (q @ k.mT) * 0.5).softmax(-1) @ v,
    "spread sizes": lambda q, k, v, s: (
        ((q @ k.mT) + s.log().view(2, 1, 1, 7).expand(2, 3, 5, 7)).softmax(-1) @ v
    ),
    "one size for all images": lambda q, k, v, s: (
        ((q @ k.mT) + s[:1, :, 0].log()[:, None, None]).softmax(-1) @ v
    ),
    "einsum": lambda q, k, v, s: torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).softmax(-1), v),
    "fused": lambda q, k, v, s: fused(q, k, v),
    "fused, own scale": lambda q, k, v, s: fused(q, k, v, scale=0.3),
    "fused, sizes": lambda q, k, v, s: fused(q, k, v, attn_mask=additive(s)),
    "fused, spread sizes": lambda q, k, v, s: fused(q, k, v, additive(s).expand(-1, 3, 5, -1)),
    "bias of rank 2": lambda q, k, v, s: ((q @ k.mT) + s[0, :, 0].log()).softmax(-1) @ v,
    "values for all images": lambda q, k, v, s: (q @ k.mT).softmax(-1) @ v[:1],
    "shared keys": lambda q, k, v, s: (q @ k[:, :1].mT).softmax(-1) @ v,
    "queries of a table": lambda q, k, v, s: (q[0, 0] @ k.mT).softmax(-1) @ v,
    "one bias for all keys": lambda q, k, v, s: ((q @ k.mT) + s[:, :1, :, None]).softmax(-1) @ v,
    "two biases": lambda q, k, v, s: (
        (((q @ k.mT) + additive(s)) + s[:1, None, None, :, 0]).softmax(-1) @ v
    ),
    "hidden keys": lambda q, k, v, s: (
        (q @ k.mT).masked_fill(additive(s) > 0.5, -torch.inf).softmax(-1) @ v
    ),
    "keys that are seen": lambda q, k, v, s: (
        torch.where(additive(s) > 0.1, q @ k.mT, -torch.inf).softmax(-1) @ v
    ),
    "maximum taken off": lambda q, k, v, s: (
        lambda x: (x - x.amax(-1, keepdim=True)).softmax(-1) @ v
    )((q @ k.mT) * 0.5),
    "bias spread over zeros": lambda q, k, v, s: (
        ((q @ k.mT) + (torch.zeros(2, 1, 5, 7) + additive(s))).softmax(-1) @ v
    ),
    "fused, full mask": lambda q, k, v, s: fused(
        q, k, v, (torch.arange(7) >= 0).expand(2, 3, 5, 7)
    ),
}


def test_every_spelling_is_one_sized_attention() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        # Queries of their own: what is computed alike is shared, and then read by several.
        return tuple(
            attend(q + i, k, v, s) for i, attend in enumerate(ATTENTIONS.values(), start=1)
        )

    rewritten = checked(function, *inputs(), targets=TARGETS, tolerance=1e-5)
    assert dict(zip(ATTENTIONS, makers(rewritten), strict=True)) == dict.fromkeys(
        ATTENTIONS, "tokexport.sized_attention"
    )
    left = {"aten.softmax", "aten.matmul", "aten.mul", "aten.scaled_dot_product_attention"}
    assert not left & set(calls(rewritten))


def test_where_k_comes_transposed() -> None:
    def function(q: Tensor, turned: Tensor, v: Tensor) -> Tensor:
        return (q @ turned * 0.5).softmax(-1) @ v

    q, k, v, _ = inputs()
    given = q, k.mT.contiguous(), v
    rewritten = checked(function, *given)
    assert rewritten.recognised == {"sized_attention": 1}


def wide(q: Tensor) -> Tensor:
    return q[..., :1] * torch.arange(7)


OTHERS: dict[str, Attend] = {
    "bias of queries": lambda q, k, v, s: ((q @ k.mT) + wide(q)[:1, :1]).softmax(-1) @ v,
    "bias of heads": lambda q, k, v, s: (
        ((q @ k.mT) + torch.arange(3.0)[None, :, None, None] * additive(s)).softmax(-1) @ v
    ),
    "filled with a number": lambda q, k, v, s: (
        (q @ k.mT).masked_fill(additive(s) > 0.5, -1e9).softmax(-1) @ v
    ),
    "five axes": lambda q, k, v, s: ((q[None] @ k[None].mT).softmax(-1) @ v[None])[0],
    "another maximum taken off": lambda q, k, v, s: (
        lambda x: (x - x.amax(-2, keepdim=True)).softmax(-1) @ v
    )(q @ k.mT),
    "fused, bias of queries": lambda q, k, v, s: fused(q, k, v, wide(q)),
    "causal": lambda q, k, v, s: fused(q, k, v, is_causal=True),
    "softmax over queries": lambda q, k, v, s: (q @ k.mT).softmax(2) @ v,
    "weighted bias": lambda q, k, v, s: torch.add(q @ k.mT, additive(s), alpha=2).softmax(-1) @ v,
    "scaled by a tensor": lambda q, k, v, s: ((q @ k.mT) * s[0, 0, 0]).softmax(-1) @ v,
    "multiplied after": lambda q, k, v, s: ((q @ k.mT).softmax(-1) * additive(s)) @ v,
    "clamped": lambda q, k, v, s: (q @ k.mT).clamp(max=1).softmax(-1) @ v,
    "softmax in another type": lambda q, k, v, s: (
        (q.double() @ k.double().mT).softmax(-1, dtype=torch.float32) @ v
    ),
}


def test_what_is_no_such_attention_stays() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        return tuple(attend(q + i, k, v, s) for i, attend in enumerate(OTHERS.values(), start=1))

    rewritten = checked(function, *inputs(), tolerance=1e-5)
    made = dict(zip(OTHERS, makers(rewritten), strict=True))
    assert [name for name, maker in made.items() if maker.startswith("tokexport")] == []
    assert rewritten.recognised == {}


OTHER_RANKS: dict[str, Attend] = {
    "three axes": lambda q, k, v, s: (q[:, 0] @ k[:, 0].mT).softmax(-1) @ v[:, 0],
    "three axes, sizes": lambda q, k, v, s: (
        (q[:, 0] @ k[:, 0].mT + s.log().mT).softmax(-1) @ v[:, 0]
    ),
    "images and heads in one": lambda q, k, v, s: torch.bmm(
        torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)
    ),
    "images and heads in one and back": lambda q, k, v, s: torch.bmm(
        ((torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT) / 2).unflatten(0, (2, 3)) + additive(s))
        .softmax(-1)
        .flatten(0, 1),
        v.flatten(0, 1),
    ).unflatten(0, (2, 3)),
    "a term of its own": lambda q, k, v, s: (
        torch.baddbmm(s[:1].log().mT, q[:, 0], k[:, 0].mT).softmax(-1) @ v[:, 0]
    ),
    "fused": lambda q, k, v, s: fused(q[:, 0], k[:, 0], v[:, 0]),
    "grouped heads": lambda q, k, v, s: fused(
        torch.cat([q, q + 1], 1), k.contiguous(), v.contiguous(), enable_gqa=True
    ),
}


@pytest.mark.parametrize("name", OTHER_RANKS)
def test_other_axes_are_laid_out_as_four(name: str) -> None:
    rewritten = checked(OTHER_RANKS[name], *inputs(), targets=TARGETS, tolerance=1e-5)
    assert rewritten.recognised == {"sized_attention": 1}


def test_a_mask_of_keys_is_a_bias_and_hides_all_of_an_image_too() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return fused(q, k, v, (s[:, :, 0] > 1.5)[:, None, None])

    q, k, v, s = inputs()
    s[1] = 1.0
    rewritten = checked(function, q, k, v, s, targets=(*TARGETS, "trt"), tolerance=1e-5)
    assert rewritten.recognised == {"sized_attention": 1}
    assert function(q, k, v, s)[1].abs().max() == 0.0


def test_the_attention_of_torch_itself() -> None:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()

    def function(x: Tensor) -> Tensor:
        return attention(x, x, x)[0]  # type: ignore[no-any-return]

    rewritten = checked(function, torch.randn(3, 7, 8), targets=TARGETS, tolerance=1e-5)
    assert rewritten.recognised == {"sized_attention": 1}


@pytest.mark.parametrize("what", ["probabilities", "logits", "product"])
def test_what_something_else_reads_too_stays(what: str) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        product = q @ k.mT
        logits = product + additive(s)
        probabilities = logits.softmax(-1)
        read = {"product": product, "logits": logits, "probabilities": probabilities}[what]
        return probabilities @ v, read.mean(1)

    given = inputs()
    rewritten = checked(function, *given)
    assert rewritten.recognised == {}


def test_scaled_queries_that_something_else_reads_keep_their_scale() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scaled = q * 0.5
        return (scaled @ k.mT).softmax(-1) @ v, scaled.mean(1)

    given = inputs()[:3]
    rewritten = checked(function, *given)
    assert rewritten.recognised == {"sized_attention": 1}
    assert calls(rewritten)["aten.mul"] == 1


def test_attention_in_half_types_is_recognised_as_computed_in_float32() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q.half() @ k.half().mT).softmax(-1, dtype=torch.float32)
        return (weights.half() @ v.half()).float()

    given = inputs()[:3]
    rewritten = checked(function, *given, tolerance=5e-3)
    assert rewritten.recognised == {"sized_attention": 1}


def test_a_bias_in_a_half_type_is_one_in_float32() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return ((q @ k.mT) + additive(s).half()).softmax(-1) @ v

    given = inputs()
    rewritten = checked(function, *given, targets=("ort",), tolerance=5e-3)
    assert rewritten.recognised == {"sized_attention": 1}


def test_logits_that_are_doubled_again_and_again() -> None:
    """Each sum has two ways to the product; they are not all walked."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2)
        for _ in range(30):
            logits = (logits + logits) * 0.5
        return (logits + logits).softmax(-1) @ v

    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    checked(attention, q, k, v)
