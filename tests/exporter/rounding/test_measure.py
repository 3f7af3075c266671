"""What rounding does is measured whatever types the code names, and no fault widens it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.measured_gates import measured_gates
from tokexport.exporter.rounding.measure import Rounding, measure_rounding
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.canonicalize.widen_half import half_lines
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.arrays import Array

ops.register()


class Calls(nn.Module):
    """A model of one function, with a layer that has learned something."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


def measured(
    function: Callable[[nn.Module, Tensor], Tensor], half: str | None = None, batches: int = 3
) -> tuple[Rounding, dict[str, Array], GraphModule, Batches]:
    x = torch.randn(batches, 2, 12, 16, generator=torch.Generator().manual_seed(1))
    model = Calls(function).eval()
    flat = FlatModel(model, call_spec(model, (x[0],), {}))
    given = Batches(flat.spec.names, {"x": x.numpy()}, 2 * batches, None, "")
    outputs = run_reference(flat, given).outputs
    captured = as_graph_module(capture(flat, [x[0]]))
    rounding = measure_rounding(captured, given, outputs, range(batches), half, samples=2)
    return rounding, outputs, captured, given


def named_types(layer: nn.Module, x: Tensor) -> Tensor:
    y = (layer(x) + 1000).to(torch.float32)
    zeros = torch.zeros(2, 4, 16, dtype=torch.float32)
    index = (torch.arange(12) % 4)[None, :, None].expand_as(y)
    return zeros.scatter_add(1, index, y.float()) - 3000


def in_a_region(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    return y.float() * 2


class Regions(nn.Module):
    """Computes in a half type in one region, and not in one within it."""

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            with torch.autocast("cpu", enabled=False):
                y = layer(y.float())
            z = y @ y.mT
        return z.float() * 2


class Rounds(nn.Module):
    """Rounds to a half type, and goes on in float32."""

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(x).half().float()
        return y * 2


def picks(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    order = (y * y).sum(-1).argsort(dim=1, stable=True)
    return y.gather(1, order[:, :5, None].expand(-1, -1, 16))


def masked(layer: nn.Module, x: Tensor) -> Tensor:
    """A mask made of Python numbers alone, which float64 must not leave in float32."""
    keep = torch.arange(12) < 8
    mask = torch.where(keep, 0.0, torch.finfo(torch.float32).min)[None, None]
    y = layer(x)[:, None]
    return nn.functional.scaled_dot_product_attention(y, y, y, attn_mask=mask.expand(2, 1, 12, 12))


def as_bits(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + x.view(torch.int32).bitwise_and(1).float() * 0


@pytest.mark.parametrize("function", [named_types, picks, masked, lambda layer, x: layer(x)])
def test_both_measures_run_in_float64_and_agree_in_size(
    function: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    rounding, outputs, _, _ = measured(function)
    assert rounding.why_not == ""
    ((name, output),) = outputs.items()
    far = np.sqrt(np.square(rounding.from_float64[name]).mean())
    chance = np.sqrt(np.square(rounding.by_chance[name]).mean())
    assert 0 < far < 1e-4 * np.abs(output).max()
    assert 0.05 < chance / far < 20


def test_what_cancels_keeps_what_its_operands_lost() -> None:
    rounding, outputs, _, _ = measured(named_types)
    ((name, output),) = outputs.items()
    assert np.median(rounding.by_chance[name]) > 1e-6 * np.abs(output).max()


def nearest(layer: nn.Module, x: Tensor) -> Tensor:
    """Adds to each of 32 rows, of which two pairs are equal, the nearest of some of them."""
    y = layer(torch.cat([x, x[:, :8], x + 1], dim=1)) * 100
    partner = torch.cdist(y, y[:, 10:14]).argmin(dim=2)
    return y + y[:, 10:14].gather(1, partner[..., None].expand(-1, -1, 16))


def test_distances_of_equal_rows_keep_what_their_squares_lost() -> None:
    rounding, *_ = measured(nearest)
    ((source, by_batch),) = rounding.scores.items()
    assert source == "cdist"
    for far in by_batch.values():
        (rows, columns) = far.rounding_error.by_axis
        for row in (0, 1, 12, 13):  # of these one distance is 0
            assert rows[:, row].min() > 2e-5 * far.scales[0][:, row].max()
        assert columns.min() > 2e-5 * far.scales[1].max()


def test_a_region_in_a_half_type_is_measured_as_what_it_is() -> None:
    rounding, outputs, captured, _ = measured(in_a_region)
    ((name, output),) = outputs.items()
    for off in (rounding.by_chance[name], rounding.from_float64[name]):
        assert 1e-4 < off.max() / np.abs(output).max() < 2e-2
    (line,) = half_lines(captured.graph)
    assert line.startswith("bfloat16 at ")


def test_what_stands_in_regions_keeps_its_lines() -> None:
    _, _, captured, _ = measured(Regions())
    said = [line.rpartition(": ")[2] for line in half_lines(captured.graph)]
    assert said == ["y = layer(x)", "z = y @ y.mT"]


def test_what_is_rounded_to_a_half_type_and_back_is_named() -> None:
    rounding, outputs, captured, _ = measured(Rounds())
    (line,) = half_lines(captured.graph)
    assert line.startswith("float16 at ")
    assert line.endswith("y = layer(x).half().float()")
    ((name, output),) = outputs.items()
    assert rounding.by_chance[name].max() > 1e-4 * np.abs(output).max()


def test_a_half_type_that_is_only_given_back_is_none_of_the_models_own() -> None:
    _, _, captured, _ = measured(lambda layer, x: layer(x).half())
    assert half_lines(captured.graph) == ()


def test_a_half_type_moves_more_than_float32() -> None:
    """Of numbers that are no sums, by their bits; sums are kept in float32 either way."""
    for half, times in (("float16", 2**13), ("bfloat16", 2**16)):
        rounding, outputs, _, _ = measured(lambda layer, x: x * layer.bias, half)
        ((name, _),) = outputs.items()
        found = rounding.by_half[name].mean() / rounding.by_chance[name].mean()
        assert 0.7 * times < found < 1.4 * times


@pytest.mark.parametrize(("name", "least"), [("sigmoid", 1e-8), ("gelu", 1e-7)])
def test_small_results_of_what_saturates_are_off_by_what_large_ones_are(
    name: str, least: float
) -> None:
    """ONNX Runtime is off by 1e-7 in a sigmoid of 1e-6: it computes 1 and takes the rest."""

    def scores(layer: nn.Module, x: Tensor) -> Tensor:
        function = {"sigmoid": torch.sigmoid, "gelu": torch.nn.functional.gelu}[name]
        return function(layer(x) - 12)

    rounding, _, _, _ = measured(scores)
    (off,) = rounding.by_chance.values()
    assert least < np.median(off) < 1e-5
    half, _, _, _ = measured(scores, "bfloat16")
    (off,) = half.by_half.values()
    assert np.median(off) < 1e-3


def test_int8_is_measured_on_enough_values_of_each_channel() -> None:
    rounding, outputs, captured, given = measured(lambda layer, x: layer(x).relu())
    assert rounding.by_int8 == {}
    found = measure_rounding(captured, given, outputs, range(3), int8=True)
    ((name, output),) = outputs.items()
    own = np.abs(found.by_int8[name])
    assert own.shape == output.shape
    assert 1e-3 < own.max() / np.abs(output).max() < 5e-2
    _, outputs, captured, given = measured(lambda layer, x: layer(x).mean(1))
    ((name, output),) = outputs.items()
    found = measure_rounding(captured, given, outputs, range(3), int8=True)
    assert found.by_int8[name].shape == (3 * 3, *output.shape[1:])


def test_a_graph_that_float64_cannot_run_is_rounded_in_float32() -> None:
    rounding, outputs, _, _ = measured(as_bits)
    ((name, output),) = outputs.items()
    assert "does not run in float64" in rounding.why_not
    assert rounding.from_float64 == {}
    assert 0 < rounding.by_chance[name].max() < 1e-5 * np.abs(output).max()


def test_a_fault_of_the_trace_does_not_widen_its_own_gate() -> None:
    _, outputs, captured, given = measured(lambda layer, x: layer(x).softmax(-1))
    right = measured_gates(captured, given, outputs, 2).captured
    (node,) = (n for n in captured.graph.nodes if "softmax" in str(n.target))
    with captured.graph.inserting_after(node):
        wrong = captured.graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.01))
    wrong.meta = dict(node.meta)
    node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
    captured.recompile()
    ((name, output),) = outputs.items()
    found = measured_gates(captured, given, outputs, 2).captured[name]
    assert found.allowed is not None
    assert right[name].allowed is not None
    assert found.allowed.max() <= 2 * right[name].allowed.max()
    assert found.judge(output, np.float32(1.01) * output).failure
