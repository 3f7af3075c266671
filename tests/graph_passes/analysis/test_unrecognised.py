"""What stays generic is listed with a true reason, and what became an operator is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import Outputs, rewrite
from torch import Tensor, nn

from tokexport.graph_passes.analysis.unrecognised import Unrecognised, unrecognised
from tokexport.graph_passes.torch_passes.canonicalize.fourier_products import LARGEST

B, N, C = 2, 6, 4


def left(function: Callable[..., Outputs], *inputs: Tensor) -> tuple[Unrecognised, ...]:
    return unrecognised(rewrite(function, *(inputs or (torch.rand(B, N, C),))).program)


def best(x: Tensor, k: int = 3) -> Tensor:
    """Positions (B, k) of the largest rows."""
    return x.sum(-1).topk(k, dim=1).indices


def by_flat_index(x: Tensor) -> Tensor:
    flat = (best(x) * 2 + torch.arange(B)[:, None]).reshape(-1)
    return x.reshape(B * N, C)[flat].reshape(B, 3, C)


def by_flat_index_select(x: Tensor) -> Tensor:
    flat = (best(x) * 2 + torch.arange(B)[:, None]).reshape(-1)
    return x.reshape(B * N, C).index_select(0, flat).reshape(B, 3, C)


def by_flat_table(x: Tensor) -> Tensor:
    flat = best(x) + torch.arange(B)[:, None] * N
    return F.embedding(flat, x.reshape(B * N, C))


def by_take(x: Tensor) -> Tensor:
    return torch.take(x, best(x))


def by_element(x: Tensor) -> Tensor:
    return x.gather(1, x.argsort(dim=1))


def by_mask(x: Tensor) -> Tensor:
    return x.masked_scatter(x > 0.5, x.flip(1))


def by_integers(x: Tensor) -> Tensor:
    marked = torch.arange(N).expand(B, N).scatter(1, best(x), 0)
    return x * marked[..., None]


def by_sorted_integers(x: Tensor) -> Tensor:
    rounded = (x.sum(-1) * 10).long()
    return x * rounded.sort(dim=1).values[..., None]


def by_one_hot(x: Tensor) -> Tensor:
    return F.one_hot(best(x) + 1, N + 1)[..., :N].to(x.dtype) @ x


def by_compared_positions(x: Tensor) -> Tensor:
    return (best(x)[..., None] + 1 == torch.arange(N)).float() @ x


def by_written_ones(x: Tensor) -> Tensor:
    chosen = torch.zeros(B, 3, N).scatter(2, best(x)[..., None], 1.0)
    return chosen @ x


def by_unjoined_merge(x: Tensor) -> Tensor:
    index = best(x)[..., None].expand(-1, -1, C)
    return x.scatter_add(1, index, x[:, :3])


def by_a_mean_without_itself(x: Tensor) -> Tensor:
    index = best(x)[..., None].expand(-1, -1, C)
    return x.scatter_reduce(1, index, x[:, :3], "mean", include_self=False)


def by_fourier(x: Tensor) -> Tensor:
    spectrum = torch.fft.fft(x, dim=1)
    return torch.view_as_real(spectrum * spectrum)


def by_a_match_without_ranks(x: Tensor) -> Tensor:
    scores = x[:, ::2] @ x[:, 1::2].mT
    partner = scores.argmax(-1)[..., None].expand(-1, -1, C)
    return x[:, 1::2].gather(1, partner)


def by_read_probabilities(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = (x @ x.mT).softmax(dim=-1)
    return weights @ x, weights.mean(1)


LEFT: dict[Callable[..., Outputs], tuple[str, str, str]] = {
    by_flat_index: ("gather", "aten.index", "over all images at once"),
    by_flat_index_select: ("gather", "aten.index_select", "over all images at once"),
    by_flat_table: ("gather", "aten.embedding", "values of the input"),
    by_take: ("gather", "aten.take", "single numbers of the whole tensor"),
    by_element: ("gather", "aten.gather", "differs by axes [2] too"),
    by_mask: ("scatter", "aten.masked_scatter", "where a mask says"),
    by_integers: ("scatter", "aten.scatter", "it writes torch.int64"),
    by_sorted_integers: ("sort", "aten.sort", "orders torch.int64"),
    by_one_hot: ("one-hot", "aten.matmul", "a product with numbers that say where"),
    by_compared_positions: ("one-hot", "aten.matmul", "a product with numbers that say where"),
    by_written_ones: ("one-hot", "aten.matmul", "a product with numbers that say where"),
    by_unjoined_merge: ("merge", "tokexport.scatter_tokens", "rows go to output, not to a join"),
    by_a_mean_without_itself: (
        "merge",
        "tokexport.scatter_tokens",
        "its mean leaves out the row that was there",
    ),
    by_a_match_without_ranks: ("selection", "aten.matmul", "its scores go to aten.argmax"),
    by_read_probabilities: ("attention", "aten.matmul", "read by aten.mean too"),
}


def test_a_transform_whose_matrix_is_too_large() -> None:
    (found,) = left(by_fourier, torch.rand(1, math.isqrt(LARGEST) + 1, 1))
    assert (found.what, found.operator) == ("transform", "aten.fft_fft")
    assert "too large" in found.why


@pytest.mark.parametrize("function", LEFT, ids=lambda function: function.__name__)
def test_it_is_listed_once_with_its_reason(function: Callable[..., Outputs]) -> None:
    what, operator, why = LEFT[function]
    (found,) = left(function)
    assert (found.what, found.operator) == (what, operator)
    assert why in found.why


def by_rows(x: Tensor) -> Tensor:
    return x.gather(1, best(x)[..., None].expand(-1, -1, C))


def by_batch_and_rows(x: Tensor) -> Tensor:
    return x[torch.arange(B)[:, None], best(x)]


def by_fixed_rows(x: Tensor) -> Tensor:
    return x.index_select(1, torch.tensor([0, 2, 5]))


def by_best_rows_in_order(x: Tensor) -> Tensor:
    return x[torch.arange(B)[:, None], best(x).sort(dim=1).values]


def by_rows_of_rows(x: Tensor) -> Tensor:
    return by_positions(x, best(x).gather(1, best(x[..., :2])[:, :2].clamp(max=1)))


def by_positions(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, C))


def by_attention(x: Tensor) -> Tensor:
    q = x.reshape(B, N, 2, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q)


def by_weights(x: Tensor) -> Tensor:
    table = F.embedding(torch.arange(N), torch.ones(N, C))
    return F.dropout(x + table, 0.5, training=False) @ torch.ones(C, C)


def by_distance(x: Tensor) -> Tensor:
    return x @ x.mT


@pytest.mark.parametrize(
    "function",
    [
        by_rows,
        by_batch_and_rows,
        by_fixed_rows,
        by_best_rows_in_order,
        by_rows_of_rows,
        by_attention,
        by_weights,
        by_distance,
    ],
    ids=lambda function: function.__name__,
)
def test_what_has_its_form_is_not_listed(function: Callable[..., Outputs]) -> None:
    assert left(function) == ()


class PrunesFlat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = (best(x) + torch.arange(B)[:, None]).reshape(-1)
        rows = x.reshape(B * N, C)
        return rows[flat]  # taken here


def test_the_line_is_that_of_the_model() -> None:
    (found,) = left(PrunesFlat())
    assert found.line.startswith(f"{__file__}:")
    assert found.line.endswith("in forward: return rows[flat]  # taken here")


def test_a_table_of_weights_is_no_gather_of_tokens() -> None:
    table = nn.Embedding(9, C)
    assert left(lambda ids: table(ids), torch.tensor([[1, 2]])) == ()
