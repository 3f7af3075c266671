"""What is written under a mask becomes a selection, where what is written does not depend on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked, emitted, lowered, rewrite, run_onnx
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.masked_assign_to_where import (
    MaskedAssignToWhere,
)

PASSES = (MaskedAssignToWhere(),)


def written(x: Tensor, index: object, value: object) -> Tensor:
    """Returns a copy of x with ``value`` at the index."""
    x = x.clone()
    x[index] = value  # type: ignore[index]
    return x


def added(x: Tensor) -> Tensor:
    """Adds two where x is positive."""
    return x.index_put((x > 0,), torch.tensor(2.0), accumulate=True)


#: Each takes x (2, 6, 4).
WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: written(x, x < 0, 0.0),
    "minus infinity": lambda x: written(x, x > 0.5, -torch.inf),
    "rows": lambda x: written(x, x[..., 0] > 0, 0.0),
    "one row for all": lambda x: written(x, x[..., 0] > 0, x[0, 0]),
    "one row of a column": lambda x: written(x, x[..., 0] > 0, x[:1, 0]),
    "tokens of every image": lambda x: written(x, (slice(None), x[0, :, 0] > 0), 1.0),
    "columns": lambda x: written(x, (slice(None), slice(None), x[0, 0] > 0), 3.0),
    "images": lambda x: written(x, x[:, 0, 0] > 0, 5.0),
    "a sum": added,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_masked_write_is_a_where(name: str) -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    rewritten = checked(WRITES[name], x, passes=PASSES, targets=TARGETS)
    assert calls(rewritten)["aten.where"] == 1
    assert calls(rewritten)["aten.index_put"] == 0
    model = lowered(emitted(rewrite(WRITES[name], x)), "trt")
    assert "NonZero" not in {node.op_type for node in model.graph}
    for other in (x.abs(), -x.abs()):  # everything is written, or nothing
        torch.testing.assert_close(run_onnx(model, other)[0], WRITES[name](other))


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "positions": lambda x: written(x, (torch.arange(2), torch.tensor([1, 3])), 0.0),
    "a value for each": lambda x: x.index_put((torch.ones(2, dtype=torch.bool),), x * 2),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_writes_stay(name: str) -> None:
    rewritten = checked(KEPT[name], torch.randn(2, 6, 4), passes=PASSES)
    assert calls(rewritten)["aten.where"] == 0
