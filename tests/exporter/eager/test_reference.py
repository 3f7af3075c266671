"""The answers of eager that everything later is held to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import NotRepeatableError
from tokexport.exporter.inputs.batches import Batches

FILL = torch.finfo(torch.float32).min


class Fickle(nn.Module):
    """Moves its scores by chance, beside something loud."""

    def __init__(self, beside: Callable[[Tensor], Tensor], by: float) -> None:
        super().__init__()
        self.beside, self.by = beside, by

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x + self.by * torch.rand_like(x), self.beside(x)], dim=-1)


BESIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "a fill": lambda x: torch.full_like(x, FILL),
    "infinities": lambda x: torch.full_like(x, -torch.inf),
    "one loud channel": lambda x: 1e7 * x[..., :1],
    "nothing": lambda x: x[..., :0],
}


def run(model: nn.Module) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 9, 6)).astype(np.float32)
    flat = FlatModel(model, call_spec(model, (torch.zeros(2, 9, 6),), {}))
    run_reference(flat, Batches(("x",), {"x": x}, 4, None, ""))


@pytest.mark.parametrize("name", BESIDE)
def test_a_second_answer_is_held_to_the_scale_around_each_value(name: str) -> None:
    with pytest.raises(NotRepeatableError):
        run(Fickle(BESIDE[name], 1e-3))
    run(Fickle(BESIDE[name], 1e-8))
    run(Fickle(BESIDE[name], 0.0))
