"""DCT against its definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.reduction.cases import Case, cases
from helpers.reduction.outcome import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.dct import DCT, shortening
from tokexport.graph_passes.reduction.tokens import Tokens

LAYER = Layer(0, 4)


def _shortened(column: list[float], kept: int) -> list[float]:
    """Transforms a column, drops its high frequencies and transforms the others back."""
    n = len(column)
    frequencies = []
    for k in range(kept):
        scale = math.sqrt((1 if k == 0 else 2) / n)
        terms = (x * math.cos(math.pi * (t + 0.5) * k / n) for t, x in enumerate(column))
        frequencies.append(scale * sum(terms))
    back = []
    for t in range(kept):
        parts = (
            math.sqrt((1 if k == 0 else 2) / kept) * f * math.cos(math.pi * (t + 0.5) * k / kept)
            for k, f in enumerate(frequencies)
        )
        back.append(sum(parts))
    return back


@given(case=cases(tied=False), keep=st.sampled_from([1.0, 0.9, 0.7, 0.5, 0.01]))
@settings(max_examples=40)
def test_it_keeps_the_low_frequencies(case: Case, keep: float) -> None:
    tokens = replace(case.tokens(), trace=None)
    found = DCT(keep=keep).after_mlp(LAYER, tokens, case.attention())
    kept = math.ceil(case.patches * keep)
    if kept == case.patches:
        assert found is tokens
        return
    wanted: Array = np.empty((case.batch, case.special + kept, tokens.x.shape[2]))
    wanted[:, : case.special] = tokens.x[:, : case.special]
    for number in range(case.batch):
        for channel in range(tokens.x.shape[2]):
            column = tokens.x[number, case.special :, channel].tolist()
            wanted[number, case.special :, channel] = _shortened(column, kept)
    np.testing.assert_allclose(found.x.numpy(), wanted, rtol=0, atol=1e-9)
    assert found.size is None


def test_what_is_smooth_survives() -> None:
    constant = torch.ones(1, 16, 3, dtype=torch.float64)
    found = DCT(keep=0.25).after_mlp(LAYER, Tokens(constant, 0, 16), Case(0, 1, 0, 16).attention())
    # An orthonormal transform keeps the energy: 16 ones become 4 twos.
    torch.testing.assert_close(found.x, torch.full((1, 4, 3), 2.0).double())


def test_no_token_of_its_own_has_a_position() -> None:
    case = Case(0, 1, 1, 8)
    with pytest.raises(SurgeryError, match="dct mixes all tokens"):
        DCT(keep=0.5).after_mlp(LAYER, case.tokens(), case.attention())


class _Shortened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = Tokens(x, 1, x.shape[1])
        found: Tensor = DCT(keep=0.5).after_mlp(LAYER, tokens, Attention(x, x, x, 1.0)).x
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_one_product_with_a_constant(dtype: torch.dtype) -> None:
    shortening.cache_clear()  # the trace comes first, and must leave nothing behind
    x = torch.randn(2, 13, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    program = torch.export.export(_Shortened(), (x,))
    computed = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    constants = {"aten.lift_fresh_copy.default", "aten.to.device", "aten.to.dtype_layout"}
    checks = {"aten._assert_tensor_metadata.default"}
    assert computed - constants - checks == {
        "aten.cat.default",
        "aten.matmul.default",
        "aten.slice.Tensor",
    }
    found = _Shortened()(x)
    assert type(found) is Tensor
    assert found.dtype == dtype
    torch.testing.assert_close(program.module()(x), found, rtol=0, atol=1e-6)
