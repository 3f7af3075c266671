"""The gate of int8: what ignores its input fails it, and a quantised model does not."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from digits_vit import DigitsViT
from rich.console import Console
from torch import nn

import tokexport
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.default_gates import CHANNEL_TOLERANCE, channels_of, set_gates
from tokexport.exporter.parity.gate_warnings import spread_warnings
from tokexport.exporter.parity.gates import SPREAD_TOLERANCE, Gate
from tokexport.exporter.parity.proof import ParityError, Proof
from tokexport.exporter.parity.reference_selection import (
    REFERENCE_BATCHES,
    select_reference_batches,
)
from tokexport.exporter.report.tables import render_verification, verification_json
from tokexport.exporter.rounding.local_rounding import LocalRounding, local_rounding
from tokexport.exporter.rounding.measure import Rounding
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.graph.initializers import add_initializer
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.verification import verify_bundle

BATCH, SAMPLES = 8, 40


def exact(values: Array, batch: int = 1) -> dict[str, LocalRounding]:
    """Says that rounding moves nothing in an output y."""
    batches = Batches(("x",), {"x": np.zeros((len(values), batch), np.float32)}, 1, None, "")
    still = {"y": np.zeros(values.shape)}
    rows = tuple(range(len(values)))
    return local_rounding(
        {"y": values}, Rounding(rows, still, still, still, {}, {}), batches, batch
    )


class Boxes(nn.Module):
    """A small ViT whose first four numbers are pixels, and the rest scores beside them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = DigitsViT(width=32, merge=(3, 0)).eval()
        self.register_buffer("unit", torch.tensor([100.0] * 4 + [1e-2] * 6))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.vit(image) * self.unit
        return found


class Offset(nn.Module):
    """A small ViT whose logits have a large constant in them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = DigitsViT(width=32, merge=(3, 0)).eval()
        self.register_buffer("constant", torch.linspace(20, 60, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.vit(image) + self.constant
        return logits


@dataclass
class Answers(ir.passes.InPlacePass):
    """A wrong pass: the output y becomes factor · y + added."""

    factor: float | np.ndarray
    added: np.ndarray

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Puts a product and a sum behind what was the output."""
        graph = model.graph
        (output,) = graph.outputs
        factor = add_initializer(graph, "factor", np.array(self.factor, np.float32))
        added = add_initializer(graph, "added", self.added.astype(np.float32))
        product = ir.node("Mul", [output, factor])
        total = ir.node("Add", [product.outputs[0], added])
        product.outputs[0].name = "product_of_factor"
        total.outputs[0].name, output.name = output.name, "answer"
        total.outputs[0].shape, total.outputs[0].type = output.shape, output.type
        graph.extend([product, total])
        graph.outputs[0] = total.outputs[0]
        return ir.passes.PassResult(model, modified=True)


def compiled(
    output: Path, images: np.ndarray, batch: int = BATCH, model: type[nn.Module] = Offset
) -> CompileResult:
    """Compiles the ViT for ONNX Runtime in int8, untimed."""
    np.savez(output.with_suffix(".npz"), image=images)
    return tokexport.compile(
        model(),
        torch.zeros(batch, 1, 8, 8),
        output=output,
        inputs=output.with_suffix(".npz"),
        batch=batch,
        precision="int8",
        timed=False,
    )


def drawn(samples: int = SAMPLES) -> np.ndarray:
    return np.random.default_rng(0).random((samples, 1, 8, 8), np.float32)


def expected_of(images: np.ndarray) -> Array:
    with torch.no_grad():
        logits: Array = Offset()(torch.from_numpy(images)).numpy()
    return logits


def test_a_quantised_model_passes_and_its_bundle_says_how_near_it_is(tmp_path: Path) -> None:
    result = compiled(tmp_path / "out", drawn())
    artifact = result.report.stages[-1]
    logits = expected_of(drawn())
    spread = float(np.sqrt(((logits - logits.mean(axis=0)) ** 2).mean()))
    gate, found = artifact.gates["output"], artifact.comparisons["output"]
    assert gate.spread == pytest.approx(spread, rel=1e-4)
    assert gate.text == "cosine 0.99, spread 0.5"
    assert 1e-4 < found.rms / spread < SPREAD_TOLERANCE / 2
    manifest = json.loads((result.bundle / "manifest.json").read_text())
    assert manifest["gates"]["output"] == {
        "least_cosine": 0.99,
        "scale": gate.scale,
        "spread_tolerance": 0.5,
        "spread": gate.spread,
    }
    with np.load(result.bundle / "reference.npz") as kept:
        along = np.sqrt(((logits - logits.mean(axis=0)) ** 2).mean(axis=0))
        assert (kept["channel/output/1"] >= CHANNEL_TOLERANCE * along * 0.999).all()
        assert (kept["channel/output/1"] < 1.5 * along).all()
    verified = verify_bundle(result.bundle)
    assert verified.passed
    file = io.StringIO()
    render_verification(verified, Console(file=file, width=100))
    assert re.search(r"cosine 0\.99.*\n.*0\.5 of spread", file.getvalue())
    assert verification_json(verified)["outputs"]["output"]["spread_tolerance"] == 0.5
    assert verified.batches == REFERENCE_BATCHES
    assert verified.outputs[0].spread_error == pytest.approx(found.rms / spread, rel=1.0)
    assert result.report.warnings == ()


@pytest.mark.parametrize("kind", ["one answer", "offset"])
def test_what_ignores_its_input_or_is_off_by_a_constant_fails(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = expected_of(drawn())
    spread = np.sqrt(((logits - logits.mean(axis=0)) ** 2).mean())
    wrong = {
        "one answer": Answers(0.0, logits.mean(axis=0)),  # the best that there is
        "offset": Answers(1.0, np.array(0.7 * spread)),
    }[kind]
    lower = {**pipelines.LOWER, "ort": (*pipelines.LOWER["ort"], wrong)}
    monkeypatch.setattr(pipelines, "LOWER", lower)
    with pytest.raises(ParityError, match="of its spread between samples, and 0.5 is") as caught:
        compiled(tmp_path / "out", drawn())
    stage = caught.value.stages[-1]
    assert stage.name == "artifact"
    assert stage.comparisons["output"].cosine > 0.999
    error = stage.gates["output"].spread_error(stage.comparisons["output"])
    assert error == pytest.approx(1.0 if kind == "one answer" else 0.7, rel=0.1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("samples", [pytest.param(SAMPLES, marks=pytest.mark.thorough), 4])
def test_boxes_hide_no_scores_beside_them(
    samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = drawn(samples)
    result = compiled(tmp_path / "right", images, 1, Boxes)
    assert verify_bundle(result.bundle).passed
    wrong = Answers(np.array([1.0] * 4 + [0.0] * 6), np.zeros(10))
    lower = {**pipelines.LOWER, "ort": (*pipelines.LOWER["ort"], wrong)}
    monkeypatch.setattr(pipelines, "LOWER", lower)
    with pytest.raises(ParityError, match=r"at index [4-9] of axis 1, and .* allowed over all"):
        compiled(tmp_path / "wrong", images, 1, Boxes)


@pytest.mark.parametrize("images", [drawn(1), np.repeat(drawn(1), 4, axis=0)], ids=["one", "same"])
def test_samples_that_show_nothing_are_warned_of(images: np.ndarray, tmp_path: Path) -> None:
    result = compiled(tmp_path / "out", images, batch=1)
    gate = result.report.stages[-1].gates["output"]
    logits = expected_of(images)
    assert not gate.varies
    assert gate.spread == pytest.approx(float(logits.std()), rel=1e-4)
    assert any("no sample shows that int8 reads its inputs" in w for w in result.report.warnings)
    assert verify_bundle(result.bundle).passed


@pytest.mark.parametrize(("precision", "floor"), [("bf16", 5e-2), ("fp16", 1e-2)])
def test_a_half_precision_says_what_it_is_held_to(precision: str, floor: float) -> None:
    values = np.ones((2, 1, 4), np.float32)
    gate = set_gates({"y": values}, exact(values), precision, None)["y"]
    reason = f"{floor:g} of the scale of its neighbourhood, or 2 × what {precision} does there"
    assert (gate.tolerance, gate.reason, gate.spread) == (floor, reason, None)


def test_a_gate_of_few_values_says_by_how_much_more_rounding_counts() -> None:
    values = np.ones((2, 1, 4), np.float32)
    batches = Batches(("x",), {"x": np.zeros((2, 1), np.float32)}, 1, None, "")
    moved = {"y": np.full(values.shape, 1e-7)}
    few = local_rounding({"y": values}, Rounding((0, 1), moved, moved, moved, {}, {}), batches, 1)
    reason = set_gates({"y": values}, few, "fp32", None)["y"].reason
    assert "4 × what rounding does there, and up to 1.4 times that where it is estimated" in reason


def gates_of(expected: Array, batch: int) -> dict[str, Gate]:
    return set_gates({"y": expected}, exact(expected, batch), "int8", None, batch=batch)


def test_samples_run_over_the_axis_of_the_batch_where_an_output_has_it() -> None:
    values = np.random.default_rng(0).standard_normal((3, 8, 5)).astype(np.float32)
    values += np.arange(8, dtype=np.float32)[:, None] * 10
    by_sample, by_batch = (gates_of(values, batch)["y"].spread for batch in (8, 4))
    assert by_sample == pytest.approx(float((values - values.mean((0, 1))).std()), rel=1e-3)
    assert by_batch == pytest.approx(
        float(np.sqrt(((values - values.mean(0)) ** 2).mean())), rel=1e-3
    )


def test_an_output_that_is_one_number_for_all_has_its_size_for_a_spread() -> None:
    gates = gates_of(np.full((4, 1), -3.0, np.float32), 1)
    assert (gates["y"].spread, gates["y"].varies) == (3.0, False)
    (warning,) = spread_warnings(gates)
    assert "Output 'y' is the same for all samples" in warning
    assert spread_warnings(gates_of(np.arange(4, dtype=np.float32)[:, None], 1)) == ()
    masked = gates_of(np.array([[2.0, -np.inf]] * 3, np.float32)[:, None], 1)
    assert (masked["y"].spread, masked["y"].varies) == (2.0, False)


@pytest.mark.parametrize("shape", [(40, 10), (12, 30, 10), (12, 10, 5, 5)])
@pytest.mark.parametrize("fault", ["zero", "mean", "swapped", "permuted samples"])
def test_a_channel_is_held_to_its_own_spread(shape: tuple[int, ...], fault: str) -> None:
    random = np.random.default_rng(0)
    unit = (np.array([300.0] * 4 + [1e-3] * 6)).reshape(-1, *[1] * (len(shape) - 2))
    unit = unit if len(shape) > 3 else unit.reshape(-1)
    values = random.standard_normal(shape) * unit + 0.3 * unit
    moved = np.abs(0.05 * random.standard_normal((8, *shape[1:])) * unit)
    channels, hidden = channels_of(values, moved, decides=False)
    assert hidden == ""
    assert not channels.failure(values, values + 0.05 * unit * random.standard_normal(shape))
    axis = 1 if len(shape) > 3 else -1
    wrong = np.moveaxis(values.copy(), axis, 0)
    if fault == "zero":
        wrong[6:] = 0
    elif fault == "mean":
        wrong[6:] = wrong[6:].mean(axis=1, keepdims=True)
    elif fault == "swapped":
        wrong[[6, 7]] = wrong[[7, 6]]
    else:
        wrong[6:] = wrong[6:][:, ::-1]
    assert channels.failure(values, np.moveaxis(wrong, 0, axis))


def test_a_quiet_channel_may_be_off_by_what_int8_does_to_it() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((40, 10))
    values[:, 4] *= 1e-3
    moved = np.abs(0.05 * random.standard_normal((16, 10)))
    channels, hidden = channels_of(values, moved, decides=False)
    assert hidden == "1 of 10 indices of axis 1"
    assert not channels.failure(values, values + 0.08 * random.standard_normal(values.shape))
    wrong = values + 0.03 * random.standard_normal(values.shape)
    wrong[:, 4] += 0.25
    assert "at index 4" in channels.failure(values, wrong)


def with_errors(batches: int, *wrong: int) -> tuple[Proof, dict[str, Array]]:
    """Returns a proof of (batches, 1, 10), and answers that are far off in some batches only."""
    random = np.random.default_rng(0)
    expected = random.standard_normal((batches, 1, 10)).astype(np.float32)
    found = expected + np.float32(0.01)
    for batch in wrong:
        found[batch] += random.standard_normal((1, 10)).astype(np.float32)
    gates = gates_of(expected, 1)
    return Proof({"y": expected}, gates, {"artifact": gates}, ("artifact",)), {"y": found}


def test_batches_outside_by_themselves_are_counted_and_kept() -> None:
    proof, found = with_errors(200, 3)
    proof.check("artifact", found)
    (stage,) = proof.stages
    assert (stage.passed, stage.outside) == (True, (3,))
    assert proof.tie_free.all()
    kept = select_reference_batches(proof, found, lambda rows: {})
    rows, tie_free = kept.rows, kept.tie_free
    assert rows == [0, 50, 100, 150]
    assert tie_free.all()


def test_a_near_tie_of_an_earlier_step_leaves_no_sample_of_int8_out() -> None:
    proof, found = with_errors(200, 3)
    proof.tie_free[50] = False
    proof.check("artifact", found)
    kept = select_reference_batches(proof, found, lambda rows: {})
    rows, tie_free = kept.rows, kept.tie_free
    assert rows == [0, 50, 100, 150]
    assert tie_free.shape == (4, 1)
    assert tie_free.all()


def test_the_bundle_carries_as_many_batches_as_the_gate_needs() -> None:
    proof, found = with_errors(200, 0, 50)
    proof.check("artifact", found)
    rows = select_reference_batches(proof, found, lambda rows: {}).rows
    assert REFERENCE_BATCHES < len(rows) < 200
    assert {0, 50} <= {*rows}
    gate, few = proof.gates_of("artifact")["y"], [0, 50, 100, 150]
    assert not gate.judge(proof.expected["y"][rows], found["y"][rows], rows).failure
    assert gate.judge(proof.expected["y"][few], found["y"][few], few).failure


def test_a_batch_of_as_many_tokens_as_samples_is_judged() -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 3, 16)).astype(np.float32)
    gates = set_gates({"y": values}, exact(values, 3), "int8", None, batch=3)
    proof = Proof({"y": values}, gates, samples=3)
    assert proof.within("artifact", {"y": values}, range(4)) == [True] * 4
    assert proof.within("artifact", {"y": -values[1:2]}, [1]) == [False]
