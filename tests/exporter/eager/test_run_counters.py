"""A model that counts its runs is asked what it answers when it has run often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.inputs.batches import Batches

X = torch.linspace(-1, 1, 6).reshape(1, 6)
CALLS = 0


class Counting(nn.Module):
    """Doubles its answer from a certain run on, counted in one of several ways."""

    shared = 0

    def __init__(self, way: Callable[[Counting], float], at: float) -> None:
        super().__init__()
        self.way, self.at = way, at
        self.own = 0
        self.table: dict[str, Any] = {"runs": 0}
        self.kept: list[int] = []
        self.number = torch.zeros(1)
        self.array = np.zeros((), np.int64)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.way(self) > self.at else x


def own(model: Counting) -> float:
    model.own += 1
    return model.own


def of_the_class(model: Counting) -> float:
    Counting.shared += 1
    return Counting.shared


def in_a_table(model: Counting) -> float:
    model.table["runs"] += 1
    return float(model.table["runs"])


def in_a_list(model: Counting) -> float:
    model.kept.append(1)
    return len(model.kept)


def a_tensor(model: Counting) -> float:
    model.number += 0.5
    return model.number.item() * 2


def an_array(model: Counting) -> float:
    model.array += 1
    return float(model.array)


def beside_the_class(model: Counting) -> float:
    global CALLS
    CALLS += 1
    return CALLS


WAYS = [own, of_the_class, in_a_table, in_a_list, a_tensor, an_array, beside_the_class]


def answer(model: nn.Module) -> None:
    batches = Batches(("x",), {"x": X[None].numpy()}, 1, None, "")
    run_reference(FlatModel(model, call_spec(model, (X,), {})), batches)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [5, 10, 900])
def test_an_answer_that_changes_after_many_runs_is_refused(
    way: Callable[[Counting], float], at: int
) -> None:
    model = Counting(way, at)
    with pytest.raises(ModelNotSupportedError, match="counts how often it ran, and answers"):
        answer(model)
    held = (model.own, model.table, model.kept, model.number.item(), int(model.array))
    assert held == (0, {"runs": 0}, [], 0, 0)
    assert CALLS == Counting.shared == 0


@pytest.mark.parametrize("way", WAYS)
def test_counting_alone_is_no_fault(way: Callable[[Counting], float]) -> None:
    answer(Counting(way, float("inf")))
    assert CALLS == Counting.shared == 0


def test_a_model_that_fails_after_many_runs_is_refused() -> None:
    def fail(model: Counting) -> float:
        if own(model) > 40:
            raise ValueError("worn out")
        return 0

    with pytest.raises(ModelNotSupportedError, match="and fails after 90 runs: 'own'"):
        answer(Counting(fail, 1))
