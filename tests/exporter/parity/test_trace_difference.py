"""Where the traced graph answers otherwise than eager, the first line that differs is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn

import tokexport
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.parity.proof import ParityError
from tokexport.exporter.parity.trace_difference import first_difference
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module


class Calls(nn.Module):
    """Layers around a function, on two lines of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        x = self.function(self.first(x))
        x[:, 0] = x[:, 1] * 2
        y: Tensor = self.last(x.relu())
        return y.softmax(-1)


def number(x: Tensor) -> Tensor:
    return x * (1.5 if torch.compiler.is_compiling() else 3.0)


def branch(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return x.sigmoid()
    return x.tanh()


def count(x: Tensor) -> Tensor:
    kept = 2 if type(x) is Tensor else 3
    return x * x.topk(kept).values.mean(-1, keepdim=True)


def constant(x: Tensor) -> Tensor:
    table = torch.arange(6.0) + float(torch.compiler.is_compiling())
    return x + table


def table(x: Tensor) -> Tensor:
    return x + TABLES[int(torch.compiler.is_compiling())]


def apart(x: Tensor) -> Tensor:
    return x * 2


TABLES: Final = (torch.arange(6.0), torch.ones(6))

SAID: Final[dict[Callable[[Tensor], Tensor], tuple[str, str]]] = {
    number: (
        "in number: return x * (1.5 if torch.compiler.is_compiling() else 3.0)",
        "fixed 1.5 there, where eager has 3",
    ),
    branch: ("in branch: return x.sigmoid()", "eager computes nothing there"),
    count: ("in count: return x * x.topk(kept)", "fixed 3 there, where eager has 2"),
    constant: ("in constant: table = torch.arange(6.0) + ", "fixed 1 there, where eager has 0"),
    table: ("in table: return x + TABLES[", "reads a tensor there that the trace has fixed"),
}


def found(function: Callable[[Tensor], Tensor]) -> str:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    model = Calls(function).eval()
    flat = FlatModel(model, call_spec(model, (x,), {}))
    found = first_difference(as_graph_module(capture(flat, (x,))), flat, (x,))
    return "" if found is None else found.said


@pytest.mark.parametrize("function", SAID)
def test_the_first_line_and_what_was_fixed_are_named(function: Callable[[Tensor], Tensor]) -> None:
    line, what = SAID[function]
    said = found(function)
    assert said.startswith(f"First at {__file__}:"), said
    assert line in said
    assert what in said


def test_a_right_trace_differs_nowhere() -> None:
    assert found(apart) == ""


def test_a_failure_of_the_traced_graph_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ParityError) as caught:
        tokexport.compile(
            Calls(number).eval(), torch.randn(3, 6), "ort", output=tmp_path / "bundle"
        )
    assert "Parity failed at 'captured'" in caught.value.what
    assert "in number: return x * (" in caught.value.where
    assert "fixed 1.5 there, where eager has 3" in caught.value.where
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]
