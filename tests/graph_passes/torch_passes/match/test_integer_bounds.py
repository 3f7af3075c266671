"""The bounds of whole numbers hold what a graph makes of them, also where a type wraps around."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.capture.trace import capture
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.match.integer_bounds import bounds_of

ops.register()
#: What makes whole numbers of truth values, and the bounds where nothing wraps.
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int] | None]] = {
    "uint8 sum": (lambda x: torch.full_like(x, 255, dtype=torch.uint8) + x, None),
    "uint8 negative": (lambda x: -(torch.ones_like(x, dtype=torch.uint8) + x), None),
    "uint8 difference": (lambda x: torch.zeros_like(x, dtype=torch.uint8) - 1, None),
    "int32 product": (lambda x: x.int() * 2**20 * 2**11, None),
    "int64 product": (lambda x: x.long() * 2**62 * 2, None),
    "int32 of int64": (lambda x: (x.long() * (2**31 + 5)).int(), None),
    "uint8 that fits": (lambda x: torch.full_like(x, 3, dtype=torch.uint8) * 85, (255, 255)),
    "int64 of bytes": (lambda x: x.to(torch.uint8).long() - 1, (-1, 254)),
    "product that fits": (lambda x: (x.int() * 5 - 2).prod(1), (-27, 27)),
    "product that does not": (lambda x: (x.int() + 2**20).prod(1), None),
    "int32 that fits": (lambda x: x.int() * 7 - 2, (-2, 5)),
}


class Counting(nn.Module):
    """Makes whole numbers of truth values."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@pytest.mark.parametrize("call", CALLS)
def test_what_a_graph_computes_lies_within_its_bounds(call: str) -> None:
    x = torch.tensor([[True, False, True], [False, False, True]])
    made, wanted = CALLS[call]
    program = capture(Counting(made).eval(), (x,))
    (output,) = program.graph.output_node().args[0]
    found = bounds_of(output)
    if wanted is not None:
        assert found == wanted
    if found is not None:
        values = made(x)
        assert found[0] <= int(values.min())
        assert int(values.max()) <= found[1]
