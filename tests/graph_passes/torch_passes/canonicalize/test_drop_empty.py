"""Tensors without elements: every token operator of none, and what torch makes of nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.graphs import Outputs, calls, checked, emitted, lowered, rewrite
from torch import Tensor
from torch.nn import functional

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.canonicalize.drop_empty import DropEmpty
from tokexport.graph_passes.torch_passes.canonicalize.drop_identities import DropIdentities
from tokexport.graph_passes.torch_passes.graph.pass_runner import PassResult

Function = Callable[[Tensor], Outputs]

PASSES = (DropIdentities(), DropEmpty())
TARGETS = ("ort", "openvino", "trt")
BATCH, COUNT, WIDTH = 2, 6, 4

ops.register()
tokens = torch.ops.tokexport


def drawn() -> Tensor:
    return torch.randn(BATCH, COUNT, WIDTH, generator=torch.Generator().manual_seed(0))


def rows(*numbers: int) -> Tensor:
    """Returns an index of rows for each image, (B, K)."""
    return torch.tensor(numbers, dtype=torch.int64).expand(BATCH, -1)


def wide(*numbers: int) -> Tensor:
    """Returns an index of rows for each channel, (B, K, C)."""
    return rows(*numbers)[..., None].expand(-1, -1, WIDTH)


def scores(x: Tensor) -> Tensor:
    return x[:, ::2] @ x[:, 1::2].mT


def matched(r: int, order: str) -> Function:
    """A match whose results are all read."""

    def function(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        kept, src, dst = tokens.bipartite_match(scores(x), r, order)
        return torch.cat(
            [x.gather(1, i[..., None].expand(-1, -1, WIDTH)) for i in (kept, src, dst)] + [a, b], 1
        )

    return function


def merged(r: int, mode: str, order: str = "index") -> Function:
    def function(x: Tensor) -> Tensor:
        found: Tensor = tokens.merge_tokens(
            x[:, ::2], x[:, 1::2], *tokens.bipartite_match(scores(x), r, order), mode
        )
        return found

    return function


def tome(r: int) -> Function:
    """ToMe's merge, spelled in torch, of r tokens."""

    def function(x: Tensor) -> Tensor:
        a, b = x[..., ::2, :], x[..., 1::2, :]
        node_max, node_idx = (a @ b.transpose(-1, -2)).max(dim=-1)
        edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
        unm_idx, src_idx = edge_idx[..., r:, :], edge_idx[..., :r, :]
        dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)
        unm_idx = unm_idx.sort(dim=1)[0]
        n, t1, c = a.shape
        unm = a.gather(dim=-2, index=unm_idx.expand(n, t1 - r, c))
        src = a.gather(dim=-2, index=src_idx.expand(n, r, c))
        dst = b.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce="mean")
        return torch.cat([unm, dst], dim=1)

    return function


def scattered(mode: str, include_self: bool) -> Function:
    def function(x: Tensor) -> Tensor:
        found: Tensor = tokens.scatter_tokens(x + 1, rows(), x[:, :0], mode, include_self)
        return found

    return function


def attended(queries: int, keys: int) -> Function:
    def function(x: Tensor) -> Tensor:
        q, k = x[:, None, :queries], x[:, None, :keys]
        found: Tensor = tokens.sized_attention(q, k, k, x[:, :keys, 0], 0.5)
        return torch.cat([found[:, 0], x], 1)

    return function


#: Each reads or makes something empty, and gives something that is not.
OF_NONE: dict[str, Function] = {
    "a match of none": matched(0, "index"),
    "a match of none by score": matched(0, "score"),
    "a match of all": matched(3, "index"),
    **{f"a merge of none, {mode}": merged(0, mode) for mode in ops.MODES},
    "a merge of none by score": merged(0, "mean", "score"),
    **{f"a merge of all, {mode}": merged(3, mode) for mode in ops.MODES},
    "a merge into none": lambda x: tokens.merge_tokens(
        x, x[:, :0], rows(3, 1), rows(), rows(), "mean"
    ),
    "ToMe of none": tome(0),
    "ToMe of all": tome(3),
    **{
        f"a scatter of none, {mode}, {own}": scattered(mode, own)
        for mode in ops.MODES
        for own in (True, False)
    },
    "rows of none": lambda x: torch.cat([tokens.gather_tokens(x, rows()), x * 2], 1),
    "a constant index of none": lambda x: torch.cat([x.gather(1, wide()), x * 2], 1),
    "an index_select of none": lambda x: torch.cat([x.index_select(1, rows()[0]), x * 2], 1),
    "an indexing of none": lambda x: torch.cat([x[:, rows()[0]], x * 2], 1),
    "an attention of no query": attended(0, COUNT),
    "an attention to no key": lambda x: (
        x
        + functional.scaled_dot_product_attention(x[:, None], x[:, None, :0], x[:, None, :0])[:, 0]
    ),
    "softmax over none": lambda x: x + (x @ x[:, :0].mT).softmax(-1) @ x[:, :0],
    "a split with an empty part": lambda x: torch.cat(x.split([2, 0, 4], 1)[::-1], 1),
    "a concatenation of ints with no floats": lambda x: torch.cat(
        [x.argmax(1), x[:, :0, 0], x.argmin(1)], 1
    ),
    "a vector of nothing among tokens": lambda x: torch.cat([x.new_empty(0), x * 2], 1),
    "scatter": lambda x: (x + 1).scatter(1, wide(), x),
    "scatter of a number": lambda x: (x + 1).scatter(1, wide(), 3.0),
    "scatter_add": lambda x: (x + 1).scatter_add(1, wide(), x[:, :0]),
    "scatter_reduce": lambda x: (x + 1).scatter_reduce(1, wide(), x, "amax", include_self=False),
    "index_add": lambda x: (x + 1).index_add(1, rows()[0], x[:, :0]),
    "index_copy": lambda x: (x + 1).index_copy(1, rows()[0], x[:, :0]),
    "index_put": lambda x: (x + 1).index_put((rows()[0],), x[:0]),
    "index_put that adds": lambda x: (x + 1).index_put((rows()[0],), x[:0], accumulate=True),
    "a slice written to": lambda x: torch.slice_scatter(x + 1, x[:, :0], 1, 2, 2),
    "no channels in a product": lambda x: x[..., :1] + x[..., :0] @ x[..., :0].mT[..., :1],
    "no channels in a linear layer": lambda x: (
        functional.linear(x[..., :0], torch.ones(3, 0), torch.arange(3.0)) + x[..., :3]
    ),
    "sum": lambda x: x + x[:, :0].sum(1, keepdim=True),
    "prod": lambda x: x + x[:, :0].prod(1, keepdim=True),
    "any and all": lambda x: (
        x + (x[:, :0] > 0).any(1, keepdim=True) + 2 * (x[:, :0] > 0).all(1, keepdim=True)
    ),
    "padding": lambda x: x + functional.pad(x[:, :0], (0, 0, 1, 0), value=2.0),
    "the best of none": lambda x: torch.cat([x.topk(0, dim=1).values, x * 2], 1),
    "no batch of two": lambda x: torch.cat([x[:0], x * 2]),
}


def left(rewritten: PassResult) -> list[str]:
    """Returns the values without elements that are read."""
    values = ((node, node.meta.get("val")) for node in rewritten.program.graph.nodes if node.users)
    return [node.name for node, value in values if isinstance(value, Tensor) and not value.numel()]


@pytest.mark.parametrize("name", OF_NONE)
def test_nothing_that_is_empty_stays(name: str) -> None:
    rewritten = checked(OF_NONE[name], drawn(), passes=PASSES)
    assert left(rewritten) == []


def everything(x: Tensor) -> tuple[Tensor, ...]:
    """Gives what each function gives."""
    found = (function(x) for function in OF_NONE.values())
    return tuple(one for one in found if isinstance(one, Tensor))


def test_what_is_made_of_nothing_is_right_on_each_target(tmp_path: Path) -> None:
    rewritten = checked(everything, drawn(), targets=TARGETS)
    assert left(rewritten) == []
    save_onnx(lowered(emitted(rewritten), "trt"), tmp_path / "model.onnx")
    build(BACKENDS["trt"], tmp_path / "model.onnx", tmp_path)
    assert (tmp_path / "model.engine").stat().st_size > 10_000


def test_a_merge_of_none_is_a_reorder() -> None:
    rewritten = checked(merged(0, "mean"), drawn(), passes=PASSES)
    found = calls(rewritten)
    assert rewritten.changes["drop empty tensors"] == 2
    assert (found["tokexport.gather_tokens"], found["aten.cat"]) == (1, 1)
    assert not any(
        name in found for name in ("tokexport.merge_tokens", "tokexport.bipartite_match")
    )


def test_a_split_becomes_slices_where_a_part_is_empty() -> None:
    assert calls(checked(OF_NONE["a split with an empty part"], drawn(), passes=PASSES)) == {
        "aten.slice": 2,
        "aten.cat": 1,
    }


def test_what_the_trimming_empties_goes_too() -> None:
    """Of a merge only the rows of b are read, so that it keeps none."""
    rewritten = checked(lambda x: merged(2, "mean")(x)[:, 1:] * 2, drawn(), targets=TARGETS)
    assert left(rewritten) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x, x * 2], 1).split([6, 4, 2], 1)[1],
        lambda x: x.scatter(1, wide(1), x),
        lambda x: torch.cat([torch.baddbmm(x, x[..., :0], x[:, :0], beta=2.0), x], 1),
        merged(1, "mean"),
    ],
)
def test_what_it_does_not_know_or_need_not_touch_stays(function: Function) -> None:
    before = rewrite(function, drawn(), passes=PASSES[:1])
    after = checked(function, drawn(), passes=PASSES)
    assert after.changes["drop empty tensors"] == 0
    assert calls(after) == calls(before)
