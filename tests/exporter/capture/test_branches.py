"""Branches on the data: one way is checked, of several the right one is selected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.graphs import Function
from torch import Tensor

from tokexport.exporter.capture.token_cap import CappedModel, under_cap
from tokexport.exporter.capture.token_cap_report import TokenCapReport
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.errors import DataDependentError
from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module

Answer = Callable[[Tensor], Tensor]


def while_large(x: Tensor) -> Tensor:
    times = 0
    while x.sum() > 3 and times < 2:
        x = x * 0.25
        times += 1
    return x.sum(1)


def asserted(x: Tensor) -> Tensor:
    assert (x < 100).all()
    return x.sum(1)


def first_match(x: Tensor) -> Tensor:
    return x.sum(1) if torch.equal(x[:, 0] > 0, x[:, 1] > 0) else x.mean(1)


SELECTED: dict[str, Answer] = {
    "any": lambda x: x.sum(1) if (x > 1.5).any() else x.mean(1),
    "not all": lambda x: x.sum(1) if not (x < 1.5).all() else x.mean(1),
    "item": lambda x: x.sum(1) if x.max().item() > 1.5 else x.mean(1),
    "a truth's item": lambda x: x.sum(1) if (x > 1.5).any().item() else x.mean(1),
    "a count": lambda x: x.sum(1) if (x[0, :, 0] > 0).sum().item() > 4 else x.mean(1),
    "rows chosen": lambda x: (
        x[:, x[0, :, 0] > 0].sum(1) if x[:, x[0, :, 0] > 0].shape[1] > 4 else x.mean(1)
    ),
    "equal": first_match,
    "while": while_large,
}


def samples(many: int, seed: int) -> Tensor:
    return torch.randn(many, 1, 9, 4, generator=torch.Generator().manual_seed(seed))


def capped(function: Answer, x: Tensor) -> tuple[CappedModel, Batches, TokenCapReport]:
    module = Function(function)
    flat = FlatModel(module, call_spec(module, (x[0],), {}))
    batches = Batches(("x",), {"x": x.numpy()}, len(x), None, "drawn")
    model, kept, use = under_cap(flat, batches, 1, (9,))
    assert isinstance(model, CappedModel)
    assert use is not None
    return model, kept, use


@pytest.mark.parametrize("name", SELECTED)
def test_each_input_takes_its_own_way(name: str) -> None:
    function = SELECTED[name]
    model, kept, use = capped(function, samples(24, 0))
    assert len(kept) == 24
    assert use.left_out == 0
    graph = as_graph_module(model.program)
    for x in samples(40, 1):
        found, holds = graph(x)
        assert holds.all()
        torch.testing.assert_close(found, function(x))


def test_a_way_that_no_sample_takes_is_refused() -> None:
    function = SELECTED["any"]
    quiet = samples(4, 0).clamp(-1, 1)
    model, _, use = capped(function, quiet)
    assert [line for line in use.lines() if line.startswith("refused where the code branches")]
    found, holds = as_graph_module(model.program)(quiet[0] * 2)
    assert not holds.all()
    found, holds = as_graph_module(model.program)(quiet[0] * 0.5)
    assert holds.all()
    torch.testing.assert_close(found, function(quiet[0] * 0.5))


def test_an_assertion_of_the_code_is_a_check() -> None:
    model, _, _ = capped(asserted, samples(2, 0))
    graph = as_graph_module(model.program)
    assert graph(samples(1, 3)[0])[1].all()
    assert not graph(samples(1, 3)[0] + 200)[1].all()


def test_a_number_that_python_reads_is_that_of_a_sample() -> None:
    x = samples(2, 0)
    x[:, :, 0, 0] = torch.tensor([2.0, 3.0])[:, None]
    model, _, use = capped(lambda x: x.sum(1) * int(x[0, 0, 0]), x)
    assert [line for line in use.lines() if "reads another number" in line or "none of" in line]
    graph = as_graph_module(model.program)
    for number, holds in ((2.0, True), (3.0, True), (4.0, False)):
        one = samples(1, 5)[0]
        one[0, 0, 0] = number
        assert bool(graph(one)[1].all()) == holds
        if holds:
            torch.testing.assert_close(graph(one)[0], one.sum(1) * number)


def test_ways_of_other_shapes_are_left_out_and_counted() -> None:
    x = samples(6, 0)
    x[:3] = x[:3].abs()

    def function(x: Tensor) -> Tensor:
        return x.sum(1) if x.min() > 0 else x.sum((1, 2))

    model, kept, use = capped(function, x)
    assert (len(kept), use.left_out, use.exceeding) == (3, 3, 0)
    (said,) = use.warnings()
    assert said.startswith("3 of 6 batches: the code branches otherwise than on the sample, at ")
    assert np.array_equal(kept.arrays["x"], x[:3].numpy())


def test_a_model_that_cannot_be_padded_says_why() -> None:
    with pytest.raises(DataDependentError, match="aten.median.dim cannot be padded"):
        capped(lambda x: x[:, x[0, :, 0] > 0].median(1).values, samples(2, 0))
