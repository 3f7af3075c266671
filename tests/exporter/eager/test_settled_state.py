"""Weights that a model writes in eval: constants where they are the same whatever the input."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f

import tokexport
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.loading import load

WIDTH = 8


class Centres(nn.Module):
    """x (B, 8) → (B, 4): distances to centres that are computed anew from weights."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("centres", torch.zeros(4, WIDTH))

    def write(self, x: Tensor) -> None:
        """Writes the centres."""
        self.centres.copy_(f.normalize(self.line.weight[:4], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 4)."""
        self.write(x)
        return self.line(x) @ self.centres.t()


class Slices(Centres):
    def write(self, x: Tensor) -> None:
        self.centres[:2] = self.line.weight[:2] * 2
        self.centres[2:] = self.line.weight[6:]


class Data(Centres):
    def write(self, x: Tensor) -> None:
        self.line.weight.data = self.line.weight.data.clamp(-0.2, 0.2)


class Normalised(Centres):
    def write(self, x: Tensor) -> None:
        with torch.no_grad():
            self.line.weight.copy_(f.normalize(self.line.weight, dim=-1))
            self.centres.copy_(self.line.weight[:4])


class WarmsUp(nn.Module):
    """x (B, 8): counts its calls up to three, and answers by the count."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.copy_((self.steps + 1).clamp(max=3))
        return self.line(x) * self.steps


class OfTheInput(Centres):
    def write(self, x: Tensor) -> None:
        self.centres.copy_(x.mean() * self.line.weight[:4])


class Counting(Centres):
    def write(self, x: Tensor) -> None:
        self.centres.add_(1e-9)


SETTLED = (Centres, Slices, Data, Normalised)


def made(kind: type[Centres]) -> tuple[nn.Module, FlatModel, Batches]:
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(3, 2, WIDTH)
    batches = Batches(("x",), {"x": x.numpy()}, 6, None, "drawn")
    return model, FlatModel(model, call_spec(model, (x[0],), {})), batches


@pytest.mark.parametrize("kind", SETTLED)
def test_the_same_whatever_the_input_is_a_constant(kind: type[Centres]) -> None:
    model, flat, batches = made(kind)
    before = copy.deepcopy(model.state_dict())
    reference = run_reference(flat, batches)
    assert flat.settled
    program = capture(flat, (torch.from_numpy(batches.arrays["x"][0]),))
    graph = as_graph_module(program)
    for x, wanted in zip(batches.arrays["x"], reference.outputs["output"], strict=True):
        torch.testing.assert_close(graph(torch.from_numpy(x))[0], torch.from_numpy(wanted))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    fresh = kind().eval()
    fresh.load_state_dict(before)
    with torch.no_grad():
        answer = fresh(torch.from_numpy(batches.arrays["x"][0]))
    torch.testing.assert_close(torch.from_numpy(reference.outputs["output"][0]), answer)


@pytest.mark.parametrize("kind", [OfTheInput, Counting])
def test_what_depends_on_the_input_or_the_runs_is_refused(kind: type[Centres]) -> None:
    _, flat, batches = made(kind)
    with pytest.raises(ModelNotSupportedError, match="rewrites its own weights") as refused:
        run_reference(flat, batches)
    assert "centres" in refused.value.where


def test_it_ships_and_says_so(tmp_path: Path) -> None:
    model, *_ = made(Slices)
    x = torch.randn(2, WIDTH)
    result = tokexport.compile(model, x, "ort", output=tmp_path / "out", timed=False)
    (said,) = [line for line in result.report.warnings if "writes" in line]
    assert said.startswith("The model writes centres while it runs in eval mode")
    assert not model.centres.any()
    with load(tmp_path / "out") as runner, torch.no_grad():
        found = runner.run({"x": x.numpy()})["output"]
        torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-5, rtol=0)


def test_what_answers_otherwise_at_its_first_calls_is_refused(tmp_path: Path) -> None:
    model, x = WarmsUp().eval(), torch.randn(2, WIDTH)
    with pytest.raises(ModelNotSupportedError):
        tokexport.compile(model, x, output=tmp_path / "bundle", timed=False)
    assert model.steps.item() == 0
