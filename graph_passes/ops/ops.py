"""Defines the operators of domain ``tokexport``, of which token reductions are made.

B batch, N tokens, C channels, H heads, D head channels, K rows moved, r tokens merged.

========================  =======================================================================
``bipartite_match``       the r best pairs between two sets of tokens
``merge_tokens``          the kept rows of a, then b's rows with their sources reduced into them
``gather_tokens``         whole rows
``scatter_tokens``        whole rows, duplicates reduced
``sized_attention``       softmax attention with an additive bias for each key
========================  =======================================================================

``register()`` makes them torch custom operators, so eager, torch.export and the tests share one
meaning; ``onnx_functions`` gives each its body in standard ONNX.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

NAMESPACE: Final = "tokexport"
#: How rows that meet at one destination are reduced; ``none`` overwrites.
MODES: Final = ("none", "sum", "mean", "prod", "amax", "amin")
#: How the kept rows of a match are ordered.
ORDERS: Final = ("index", "score")

_SCHEMAS: Final = (
    "gather_tokens(Tensor x, Tensor index) -> Tensor",
    "scatter_tokens(Tensor dst, Tensor index, Tensor src, str mode, bool include_self) -> Tensor",
    "bipartite_match(Tensor scores, int r, str order) -> (Tensor, Tensor, Tensor)",
    "merge_tokens(Tensor a, Tensor b, Tensor kept, Tensor src, Tensor dst, str mode) -> Tensor",
    "sized_attention(Tensor q, Tensor k, Tensor v, Tensor? log_size, float scale) -> Tensor",
)

_library: torch.library.Library | None = None


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Takes whole rows: x (B, N, C), index (B, K) int64 -> (B, K, C)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def scatter_tokens(
    dst: Tensor, index: Tensor, src: Tensor, mode: str, include_self: bool
) -> Tensor:
    """Puts whole rows into dst: dst (B, N, C), index (B, K), src (B, K, C) -> (B, N, C).

    ``mode`` is one of ``MODES``; with ``include_self`` the row that was there takes part in the
    reduction (a mean counts it), without it only rows that nobody writes keep their value: the
    meaning of ``torch.Tensor.scatter_reduce``. Under ``none`` the last of several writers wins.
    """
    rows = index[:, :, None].expand(-1, -1, dst.shape[2])
    if mode == "none":
        return dst.scatter(1, rows, src)
    return dst.scatter_reduce(1, rows, src, reduce=mode, include_self=include_self)


def bipartite_match(scores: Tensor, r: int, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs each row of a with its best column of b and takes the r best pairs.

    scores (B, Na, Nb) -> kept (B, Na - r), src (B, r) by descending score, dst (B, r). ``kept`` is
    in index order or by descending score. Of equal scores the lower index comes first. Source: the
    matching of ToMe (Bolya et al. 2023, section 3), which most later methods share.
    """
    best, partner = scores.max(dim=-1)
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    src, kept = ranked[:, :r].clone(), ranked[:, r:].clone()
    if order == "index":
        kept = kept.sort(dim=-1).values
    return kept, src, partner.gather(1, src)


def merge_tokens(a: Tensor, b: Tensor, kept: Tensor, src: Tensor, dst: Tensor, mode: str) -> Tensor:
    """Merges rows of a into rows of b and joins what is left.

    a (B, Na, C), b (B, Nb, C), kept (B, Na - r), src (B, r), dst (B, r) -> (B, Na - r + Nb, C):
    first the kept rows of a, then b, whose rows take in their sources (the row itself counts in a
    mean). Under ``none`` the sources are dropped: pruning.
    """
    rest = gather_tokens(a, kept)
    if mode == "none":
        return torch.cat([rest, b], dim=1)
    return torch.cat([rest, scatter_tokens(b, dst, gather_tokens(a, src), mode, True)], dim=1)


def sized_attention(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, scale: float
) -> Tensor:
    """Computes softmax(q kᵀ scale + log_size) v.

    q (B, H, Nq, D), k (B, H, N, D), v (B, H, N, Dv), log_size (B, N) or None -> (B, H, Nq, Dv).
    A token that stands for s patches draws s times the attention: ToMe, section 3, "proportional
    attention".
    """
    logits = (q * scale) @ k.transpose(-2, -1)
    if log_size is not None:
        logits = logits + log_size[:, None, None, :]
    return logits.softmax(dim=-1) @ v


def _fake_gather(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], index.shape[1], x.shape[2]))


def _fake_scatter(dst: Tensor, index: Tensor, src: Tensor, mode: str, include_self: bool) -> Tensor:
    return dst.new_empty(dst.shape)


def _fake_match(scores: Tensor, r: int, order: str) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, _ = scores.shape
    like = scores.new_empty
    return (
        like((batch, rows - r), dtype=torch.int64),
        like((batch, r), dtype=torch.int64),
        like((batch, r), dtype=torch.int64),
    )


def _fake_merge(a: Tensor, b: Tensor, kept: Tensor, src: Tensor, dst: Tensor, mode: str) -> Tensor:
    return a.new_empty((a.shape[0], kept.shape[1] + b.shape[1], a.shape[2]))


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, scale: float
) -> Tensor:
    return q.new_empty((*q.shape[:3], v.shape[3]))


def register() -> None:
    """Registers the operators with torch, once; calling it again changes nothing."""
    global _library
    if _library is not None:
        return
    library = torch.library.Library(NAMESPACE, "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    for name, kernel, fake in (
        ("gather_tokens", gather_tokens, _fake_gather),
        ("scatter_tokens", scatter_tokens, _fake_scatter),
        ("bipartite_match", bipartite_match, _fake_match),
        ("merge_tokens", merge_tokens, _fake_merge),
        ("sized_attention", sized_attention, _fake_attention),
    ):
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    _library = library
