"""The operators against loops over numpy arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import naive_tokens as naive
from helpers import token_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokexport.graph_passes.ops import ops

ops.register()
OPS = torch.ops.tokexport
tensor = torch.from_numpy


@given(seed=cases.SEEDS, batch=st.integers(1, 3), tokens=st.integers(1, 8), count=st.integers(1, 9))
@settings(max_examples=50)
def test_gather_tokens_copies_rows(seed: int, batch: int, tokens: int, count: int) -> None:
    x = cases.values(seed, batch, tokens, 3)
    index = cases.rows(seed, batch, count, tokens)
    found = OPS.gather_tokens(tensor(x), tensor(index))
    np.testing.assert_array_equal(found.numpy(), naive.gather_tokens(x, index))


@given(data=st.data(), mode=st.sampled_from(ops.MODES), include_self=st.booleans())
@settings(max_examples=150)
def test_scatter_tokens_reduces_duplicates(
    data: st.DataObject, mode: str, include_self: bool
) -> None:
    dst, index, src = data.draw(cases.scatters(mode))
    found = OPS.scatter_tokens(tensor(dst), tensor(index), tensor(src), mode, include_self)
    wanted = naive.scatter_tokens(dst, index, src, mode, include_self)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_scatter_tokens_of_infinities_is_the_extreme() -> None:
    dst = torch.tensor([[[1.0], [2.0], [-torch.inf]]])
    src = torch.tensor([[[-torch.inf], [torch.inf], [-torch.inf]]])
    index = torch.tensor([[0, 1, 2]])
    assert OPS.scatter_tokens(dst, index, src, "amax", True).flatten().tolist() == [
        1.0,
        torch.inf,
        -torch.inf,
    ]


@given(case=cases.matches(), order=st.sampled_from(ops.ORDERS))
@settings(max_examples=100)
def test_bipartite_match_ranks_rows_by_their_best(
    case: tuple[cases.Array, int], order: str
) -> None:
    scores, r = case
    found = OPS.bipartite_match(tensor(scores), r, order)
    for part, wanted in zip(found, naive.bipartite_match(scores, r, order), strict=True):
        np.testing.assert_array_equal(part.numpy(), wanted)


@given(case=cases.matches(), order=st.sampled_from(ops.ORDERS), mode=st.sampled_from(ops.MODES))
@settings(max_examples=60)
def test_merge_tokens_joins_kept_and_merged(
    case: tuple[cases.Array, int], order: str, mode: str
) -> None:
    scores, r = case
    batch, rows_a, rows_b = scores.shape
    a, b = cases.values(1, batch, rows_a, 4), cases.values(2, batch, rows_b, 4)
    match = naive.bipartite_match(scores, r, order)
    found = OPS.merge_tokens(tensor(a), tensor(b), *(tensor(part) for part in match), mode)
    assert found.shape == (batch, rows_a - r + rows_b, 4)
    np.testing.assert_allclose(
        found.numpy(), naive.merge_tokens(a, b, *match, mode), rtol=1e-5, atol=1e-6
    )


@given(
    seed=cases.SEEDS,
    queries=st.integers(1, 5),
    keys=st.integers(1, 6),
    sized=st.booleans(),
)
@settings(max_examples=50)
def test_sized_attention_is_softmax_attention(
    seed: int, queries: int, keys: int, sized: bool
) -> None:
    q, k = cases.values(seed, 2, 3, queries, 4), cases.values(seed + 1, 2, 3, keys, 4)
    v, size = cases.values(seed + 2, 2, 3, keys, 5), cases.values(seed + 3, 2, keys)
    log_size = size if sized else None
    found = OPS.sized_attention(
        tensor(q), tensor(k), tensor(v), None if log_size is None else tensor(log_size), 0.5
    )
    wanted = naive.sized_attention(q, k, v, log_size, 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_registering_again_changes_nothing() -> None:
    before = torch.ops.tokexport.gather_tokens.default
    ops.register()
    assert torch.ops.tokexport.gather_tokens.default is before


X = torch.from_numpy(cases.values(0, 2, 5, 3))
OTHER = torch.from_numpy(cases.values(1, 2, 4, 3))
INDEX = torch.from_numpy(cases.rows(2, 2, 4, 5))
HEADS = torch.from_numpy(cases.values(3, 2, 3, 5, 4))
KEPT, SRC, DST = (
    torch.tensor([[0, 2, 3]] * 2),
    torch.tensor([[4, 1]] * 2),
    torch.tensor([[3, 3]] * 2),
)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gather_tokens", (X, INDEX)),
        ("gather_tokens", (X.transpose(1, 2), torch.tensor([[2, 2], [0, 1]]))),
        *(
            ("scatter_tokens", (X, INDEX, OTHER, mode, own))
            for mode in ops.MODES
            for own in (True, False)
        ),
        ("scatter_tokens", (X.mT.contiguous().mT, INDEX, OTHER, "mean", True)),
        ("bipartite_match", (X @ OTHER.mT, 2, "index")),
        ("bipartite_match", (X @ OTHER.mT, 5, "score")),
        *(("merge_tokens", (X, OTHER, KEPT, SRC, DST, mode)) for mode in ops.MODES),
        ("sized_attention", (HEADS, HEADS, HEADS, None, 0.5)),
        ("sized_attention", (HEADS, HEADS, HEADS, X[:, :, 0], 0.5)),
    ],
)
def test_schema_shape_rule_and_kernel_agree(name: str, arguments: tuple[Tensor, ...]) -> None:
    torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_shape_rules_keep_the_dtype(dtype: torch.dtype) -> None:
    x, other = X.to(dtype), OTHER.to(dtype)
    assert (
        OPS.scatter_tokens(x.to("meta"), INDEX.to("meta"), other.to("meta"), "sum", True).dtype
        == dtype
    )
    assert OPS.scatter_tokens(x, INDEX, other, "sum", True).dtype == dtype
    kept, src, dst = OPS.bipartite_match((x @ other.mT).to("meta"), 2, "index")
    assert {part.dtype for part in (kept, src, dst)} == {torch.int64}
