"""What every kind of node costs, by hand-made numbers, and that nothing is counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import Outputs, rewrite, trace
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokexport.graph_passes.analysis.macs import count_macs
from tokexport.graph_passes.torch_passes.kinds.product_kinds import Kind

Costs = dict[str, int]


def costs(function: Callable[..., Outputs], *inputs: Tensor) -> Costs:
    """The cost by kind; a node that is counted twice fails."""
    counted = count_macs(trace(function, *inputs))
    nodes = [one.node for one in counted]
    assert len(nodes) == len(set(nodes))
    assert all(one.macs > 0 for one in counted)
    found: Counter[str] = Counter()
    for one in counted:
        found[str(one.kind)] += one.macs
    return dict(found)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


class FirstTwoThirds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, _ = self.qkv(x).chunk(3, -1)
        return q * k


class ByAVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)[:, :1]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], Costs]] = {
    "linear": (nn.Linear(5, 7), (2, 3, 5), {"linear": 2 * 3 * 5 * 7}),
    "linear of one row": (nn.Linear(5, 7), (5,), {"linear": 5 * 7}),
    "linear whose last third nothing reads": (
        FirstTwoThirds(),
        (2, 3, 5),
        {"linear": 2 * 3 * 5 * 4},
    ),
    "linear with a vector": (ByAVector(), (2, 3, 5), {"linear": 2 * 3 * 5}),
    "linear of nothing": (nn.Linear(5, 7), (0, 5), {}),
    "convolution": (nn.Conv2d(3, 8, 4, 4), (2, 3, 8, 12), {"convolution": 2 * 8 * 6 * 48}),
    "padded, strided": (nn.Conv2d(3, 8, 3, 2, 1), (1, 3, 9, 9), {"convolution": 8 * 25 * 27}),
    "same padding": (nn.Conv1d(3, 8, 3, padding="same"), (2, 3, 9), {"convolution": 2 * 8 * 9 * 9}),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (1, 6, 5, 5), {"convolution": 6 * 9 * 9}),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (1, 6, 5, 5), {"convolution": 4 * 9 * 3 * 9}),
    "one axis": (nn.Conv1d(4, 5, 3), (2, 4, 9), {"convolution": 2 * 5 * 7 * 4 * 3}),
    "three axes": (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3), {"convolution": 2 * 8 * 8}),
    "transposed": (nn.ConvTranspose2d(4, 5, 2, 2), (1, 4, 3, 3), {"convolution": 9 * 4 * 5 * 4}),
    "bilinear": (
        nn.Bilinear(3, 3, 2).requires_grad_(False),
        (4, 3),
        {"linear": 4 * 2 * 3 * 3},
    ),
    "embedding": (nn.Embedding(9, 4), (3,), {}),
    "activations": (nn.Sequential(nn.GELU(), nn.Softmax(-1), nn.Dropout()), (3, 4), {}),
    "pooling": (nn.AdaptiveAvgPool2d(1), (1, 3, 4, 4), {}),
    "layer norm": (nn.LayerNorm(6), (2, 3, 6), {"normalisation": 5 * 36}),
    "layer norm, plain": (
        nn.LayerNorm(6, elementwise_affine=False),
        (2, 3, 6),
        {"normalisation": 4 * 36},
    ),
    "layer norm of two axes": (nn.LayerNorm((3, 6)), (2, 3, 6), {"normalisation": 5 * 36}),
    "rms norm": (nn.RMSNorm(6), (2, 3, 6), {"normalisation": 3 * 36}),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 3), {"normalisation": 5 * 36}),
    "batch norm": (nn.BatchNorm2d(6).eval(), (2, 6, 3, 1), {"normalisation": 2 * 36}),
    "batch norm, plain": (
        nn.BatchNorm2d(6, affine=False).eval(),
        (2, 6, 3, 1),
        {"normalisation": 36},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str) -> None:
    layer, shape, wanted = LAYERS[name]
    example = zeros(*shape).long() if name == "embedding" else zeros(*shape)
    inputs = [example, example] if name == "bilinear" else [example]
    assert costs(layer.eval(), *inputs) == wanted


#: Products of values with values: (…, m, k) and (…, k, n) cost … · m · n · k.
PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], int]] = {
    "matmul": (torch.matmul, ((2, 3, 4, 5), (2, 3, 5, 7)), 6 * 4 * 5 * 7),
    "matmul, broadcast": (torch.matmul, ((2, 1, 4, 5), (3, 5, 7)), 6 * 4 * 5 * 7),
    "matmul, broadcast to more": (torch.matmul, ((4, 5), (6, 5, 7)), 6 * 4 * 5 * 7),
    "rows by a vector": (torch.matmul, ((2, 4, 5), (5,)), 2 * 4 * 5),
    "a vector by columns": (torch.matmul, ((5,), (2, 5, 7)), 2 * 5 * 7),
    "two vectors": (torch.matmul, ((5,), (5,)), 5),
    "mm": (torch.mm, ((4, 5), (5, 7)), 4 * 5 * 7),
    "mv": (torch.mv, ((4, 5), (5,)), 4 * 5),
    "dot": (torch.dot, ((5,), (5,)), 5),
    "bmm": (torch.bmm, ((3, 4, 5), (3, 5, 7)), 3 * 4 * 5 * 7),
    "addmm": (lambda a, b: torch.addmm(zeros(7), a, b), ((4, 5), (5, 7)), 4 * 5 * 7),
    "addmv": (lambda a, b: torch.addmv(zeros(4), a, b), ((4, 5), (5,)), 4 * 5),
    "baddbmm": (
        lambda a, b: torch.baddbmm(zeros(1, 1, 7), a, b, alpha=0.5),
        ((3, 4, 5), (3, 5, 7)),
        3 * 4 * 5 * 7,
    ),
    "addbmm": (
        lambda a, b: torch.addbmm(zeros(4, 7), a, b),
        ((3, 4, 5), (3, 5, 7)),
        3 * 4 * 5 * 7,
    ),
    "einsum": (
        lambda a, b: torch.einsum("bhid,bhdj->bhij", a, b),
        ((2, 3, 4, 5), (2, 3, 5, 7)),
        6 * 4 * 5 * 7,
    ),
    "einsum, other order": (
        lambda a, b: torch.einsum("bjhd,bihd->bhij", a, b),
        ((2, 7, 3, 5), (2, 4, 3, 5)),
        6 * 4 * 5 * 7,
    ),
    "einsum, ellipsis": (
        lambda a, b: torch.einsum("...id,...jd->...ij", a, b),
        ((2, 3, 4, 5), (2, 3, 7, 5)),
        6 * 4 * 5 * 7,
    ),
    "einsum, no result given": (
        lambda a, b: torch.einsum("ij,jk", a, b),
        ((4, 5), (5, 7)),
        4 * 5 * 7,
    ),
    "tensordot": (
        lambda a, b: torch.tensordot(a, b, dims=([2], [0])),
        ((2, 4, 5), (5, 7)),
        8 * 5 * 7,
    ),
    "inner": (torch.inner, ((2, 4, 5), (7, 5)), 8 * 5 * 7),
    "multi_dot": (
        lambda a, b: torch.linalg.multi_dot((a, b, b.mT)),
        ((4, 5), (5, 7)),
        # The cheaper order: b · bᵀ first costs 5 · 5 · 7 + 4 · 5 · 5, a · b first 2 · 4 · 5 · 7.
        5 * 5 * 7 + 4 * 5 * 5,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product(name: str) -> None:
    function, shapes, wanted = PRODUCTS[name]
    assert costs(function, *(zeros(*shape) for shape in shapes)) == {"other": wanted}


#: Torch's own counter knows no product with a vector, and not addbmm.
UNKNOWN_TO_TORCH = ("rows by a vector", "a vector by columns", "two vectors", "mv", "dot", "addmv")


@pytest.mark.parametrize("name", sorted({*PRODUCTS} - {*UNKNOWN_TO_TORCH, "addbmm"}))
def test_torch_counts_the_same(name: str) -> None:
    function, shapes, wanted = PRODUCTS[name]
    with FlopCounterMode(display=False) as counter:
        function(*(zeros(*shape) for shape in shapes))
    assert counter.get_total_flops() == 2 * wanted


def test_a_product_with_weights_is_linear_on_either_side() -> None:
    weight = torch.ones(5, 7)
    left, right = (lambda x: x @ weight), (lambda x: weight.mT @ x.mT)
    for function in (left, right):
        assert costs(function, zeros(2, 4, 5)) == {"linear": 2 * 4 * 5 * 7}
    counted = count_macs(trace(left, zeros(2, 4, 5)))
    assert [one.sizes[one.rows_axis or 0] for one in counted] == [2 * 4]


def test_fused_attention_costs_both_of_its_products() -> None:
    q, k, v = zeros(2, 3, 4, 8), zeros(2, 3, 9, 8), zeros(2, 3, 9, 5)
    assert costs(F.scaled_dot_product_attention, q, k, v) == {"attention": 6 * 4 * 9 * (8 + 5)}


def test_grouped_queries_cost_as_many_heads_as_there_are_queries() -> None:
    q, k = zeros(1, 4, 6, 8), zeros(1, 2, 6, 8)

    def grouped(q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    assert costs(grouped, q, k) == {"attention": 4 * 6 * 6 * 16}


def by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.3).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(dim=-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    return torch.bmm(torch.baddbmm(zeros(1), q, k.mT, alpha=0.3).softmax(-1), v)


def by_exp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.exp(q @ k.mT)
    return (weights / weights.sum(-1, keepdim=True)) @ v


@pytest.mark.parametrize("attend", [by_matmul, by_einsum, by_bmm, by_exp])
def test_attention_by_hand_costs_what_the_fused_one_does(attend: Callable[..., Tensor]) -> None:
    q, k, v = zeros(2, 3, 4, 8), zeros(2, 3, 9, 8), zeros(2, 3, 9, 5)
    assert costs(attend, q, k, v) == {"attention": 6 * 4 * 9 * (8 + 5)}


@pytest.mark.parametrize("weights_too", [False, True])
def test_the_attention_of_torch_itself(weights_too: bool) -> None:
    layer = nn.MultiheadAttention(12, 3, batch_first=True).eval()

    def attend(x: Tensor) -> Outputs:
        out, weights = layer(x, x, x, need_weights=weights_too)
        return (out, weights) if weights_too else out

    wanted = {"linear": 4 * 2 * 5 * 12 * 12, "attention": 2 * 2 * 5 * 5 * 12}
    assert costs(attend, zeros(2, 5, 12)) == wanted


def test_the_encoder_of_torch_itself() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    rows = 2 * 5
    wanted = {
        "linear": 2 * rows * (4 * 12 * 12 + 2 * 12 * 24),
        "attention": 2 * 2 * rows * 5 * 12,
        "normalisation": 2 * 2 * 5 * rows * 12,
    }
    assert costs(encoder, zeros(2, 5, 12)) == wanted


def test_what_only_chooses_rows_is_matching() -> None:
    def choose(x: Tensor) -> Tensor:
        scores = x[:, ::2] @ x[:, 1::2].mT
        best = scores.amax(-1).topk(2, dim=1).indices
        return x.gather(1, best[..., None].expand(-1, -1, 6))

    assert costs(choose, zeros(2, 8, 6)) == {"matching": 2 * 4 * 4 * 6}


def test_a_best_score_that_weighs_is_still_of_matching() -> None:
    def weigh(x: Tensor) -> Tensor:
        best, partner = (x[:, :3] @ x[:, 3:].mT).max(dim=-1)
        index = partner[..., None].expand(-1, -1, 6)
        return x[:, 3:].scatter_add(1, index, x[:, :3] * best[..., None])

    assert costs(weigh, zeros(2, 8, 6)) == {"matching": 2 * 3 * 5 * 6}


def test_scores_that_are_read_beside_their_best_are_no_matching() -> None:
    def answer(x: Tensor) -> Outputs:
        scores = x @ x.mT
        return scores.amax(-1), scores.sum(-1)

    assert costs(answer, zeros(2, 8, 6)) == {"other": 2 * 8 * 8 * 6}


def test_distances_that_choose_are_matching_and_others_are_not() -> None:
    def nearest(x: Tensor) -> Tensor:
        return x.gather(1, torch.cdist(x, x).argmin(-1)[..., None].expand(-1, -1, 6))

    assert costs(nearest, zeros(2, 8, 6)) == {"matching": 2 * 8 * 8 * 6}
    assert costs(lambda x: torch.cdist(x, x), zeros(2, 8, 6)) == {"other": 2 * 8 * 8 * 6}


def test_moving_rows_costs_nothing() -> None:
    index = torch.tensor([[0, 2], [1, 1]])

    def move(x: Tensor) -> Tensor:
        rows = x.gather(1, index[..., None].expand(-1, -1, 6))
        x = x.scatter_add(1, index[..., None].expand(-1, -1, 6), rows)
        return x.index_select(1, index[0]).repeat(1, 2, 1).flip(1)

    assert costs(move, zeros(2, 4, 6)) == {}


def test_a_batch_costs_as_many_times_as_much() -> None:
    layer = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))

    def block(x: Tensor) -> Tensor:
        x = layer(x)
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])

    one, three = costs(block, zeros(1, 4, 8)), costs(block, zeros(3, 4, 8))
    assert three == {kind: 3 * count for kind, count in one.items()}


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(5, 5)
    assert costs(lambda x: layer(layer(x)), zeros(3, 5)) == {"linear": 2 * 3 * 25}


def test_what_runs_under_a_context_is_counted_once() -> None:
    layer = nn.Linear(5, 5)

    def inside(x: Tensor) -> Tensor:
        with torch.no_grad():
            x = layer(x)
        with torch.autocast("cpu", enabled=False):
            return x @ x.mT

    assert costs(inside, zeros(3, 5)) == {"linear": 3 * 25, "other": 3 * 3 * 5}


def test_the_rewritten_graph_costs_what_the_captured_one_does() -> None:
    layer = nn.Linear(8, 24)

    def attend(x: Tensor) -> Tensor:
        q, k, v = layer(x).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return (q @ k.mT * 0.5).softmax(-1) @ v

    rewritten = rewrite(attend, zeros(2, 5, 8))
    assert "tokexport.sized_attention" in {one.operator for one in count_macs(rewritten.program)}
    counted = {one.kind: one.macs for one in count_macs(rewritten.program)}
    assert counted == {Kind.LINEAR: 2 * 5 * 8 * 24, Kind.ATTENTION: 2 * 2 * 5 * 5 * 8}


def test_a_node_tells_its_operator_module_and_line() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner[0](x) @ torch.ones(4, 2)  # multiplied here
            return found

    first, second = count_macs(trace(Named(), zeros(3, 4)))
    assert (first.operator, first.module) == ("aten.linear", "model.inner.0")
    assert (second.operator, second.module) == ("aten.matmul", "model")
    assert "multiplied here" in second.line


def test_what_is_read_for_its_shape_alone_answers_nothing() -> None:
    def choose(x: Tensor) -> Tensor:
        scores = x[:, :3] @ x[:, 3:].mT
        scores[..., 0] = -torch.inf
        best = scores.argmax(-1)
        return x[:, 3:].gather(1, best[..., None].expand(-1, -1, 6)) + torch.ones_like(scores).sum()

    assert costs(choose, zeros(2, 8, 6)) == {"matching": 2 * 3 * 5 * 6}
