"""A near-tie that falls the other way is told from an error, with the real runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.near_ties import (
    CHANNELS,
    KEPT,
    TOKENS,
    HalfAgain,
    KeepsTheBest,
    Nudge,
    ReadsTheFirst,
    RightUnderReplay,
    Rounds,
    SmallestFirst,
    WrongWhereItTies,
    samples,
)
from helpers.thorough import thorough_but
from torch import Tensor, nn

import tokexport
from tokexport.exporter.build import run_stage
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.errors import GateError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gates import FP32_FLOOR, LEAST_COSINE
from tokexport.exporter.parity.measured_gates import measured_gates
from tokexport.exporter.parity.proof import ParityError, ReplayResult
from tokexport.exporter.ties.verdict import TieSearch
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module, make_replay_graph
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.verification import verify_bundle


def compile_with(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    images: np.ndarray,
    *passes: Any,
    target: str = "openvino",
    model: nn.Module | None = None,
    batch: int = 1,
    **options: Any,
) -> CompileResult:
    """Compiles the model with passes put behind the target's own."""
    lower = {**pipelines.LOWER, target: (*pipelines.LOWER[target], *passes)}
    monkeypatch.setattr(pipelines, "LOWER", lower)
    np.savez(folder / "x.npz", x=images)
    example = torch.zeros(batch, TOKENS, CHANNELS)
    return tokexport.compile(
        model or KeepsTheBest(),
        example,
        target,
        output=folder / "bundle",
        inputs=folder / "x.npz",
        **options,
    )


def failed_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: Any, **options: Any
) -> str:
    """Compiles, expects the parity to fail, and returns what the message says."""
    with pytest.raises(ParityError) as caught:
        compile_with(monkeypatch, folder, *arguments, **options)
    assert options.get("force") or not (folder / "bundle").exists()
    return str(caught.value)


def test_a_tie_is_excused_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = samples(2e-7, 0.5, 0.25)
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6), keep_stages=True)
    assert result.status == "PASSED"
    stages = {stage.name: stage for stage in result.report.stages}
    fell = ["lowered", "without kernels", "artifact"]
    assert [name for name, stage in stages.items() if stage.ties] == fell
    for stage in (stages[name] for name in fell):
        assert stage.ties is not None
        assert stage.ties.batches == (0,)
        assert stage.ties.flips == 1
        assert stage.ties.margin < 1e-7
        assert 1e-7 < stage.ties.score_error < 1e-6
        assert "topk(KEPT, dim=1)" in stage.ties.decisions[0]
        assert stage.comparisons["output"].relative < 1e-6
    data = json.loads((result.bundle / "report.json").read_text())
    assert data["stages"][-1]["ties"]["batches"] == [0]
    stages = tmp_path / "bundle.stages"
    assert sorted(path.name for path in (stages / "replay").iterdir()) == [
        "artifact",
        "emitted",
        "lowered",
        "without-kernels",
    ]
    # the batch with the tie is not among those that verify replays
    reference = np.load(result.bundle / "reference.npz")
    np.testing.assert_array_equal(reference["inputs/x"][:, 0], images[1:])
    assert verify_bundle(result.bundle).passed


class GivesWhatItKeeps(KeepsTheBest):
    """Returns the positions beside the tokens."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        index = (x[..., 0] * 1.0).topk(KEPT, dim=1).indices
        return x.gather(1, index[..., None].expand(-1, -1, CHANNELS)) * 2, index


def test_an_output_that_is_a_decision_is_excused_by_a_tie_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, model = samples(0.5, 2e-7), GivesWhatItKeeps()
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6), model=model)
    ties = result.report.stages[-1].ties
    assert ties is not None
    assert ties.batches == (1,)
    assert verify_bundle(result.bundle).passed
    monkeypatch.undo()
    with pytest.raises(ParityError, match="no decision|chooses what is worse|are off by"):
        compile_with(monkeypatch, tmp_path, images, Nudge(0.6), model=model, force=True)


def test_for_ort_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compile_with(monkeypatch, tmp_path, samples(2e-7, 0.5), Nudge(1e-6), target="ort")
    (artifact,) = (stage for stage in result.report.stages if stage.name == "artifact")
    assert artifact.ties is not None
    assert artifact.ties.batches == (0,)


def test_beside_a_decision_that_nothing_reads_a_tie_is_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, model = samples(2e-7, 0.5), ReadsTheFirst()
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6), model=model)
    ties = [stage.ties for stage in result.report.stages if stage.ties]
    assert [(one.batches, one.flips) for one in ties] == [((0,), 1)] * 3
    assert all("topk(KEPT, dim=1)" in named for one in ties for named in one.decisions)


def test_a_tie_that_nothing_reads_excuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, model = samples(0.5), ReadsTheFirst()
    message = failed_with(monkeypatch, tmp_path, images, HalfAgain(), model=model)
    assert "with eager's decisions as inputs it is off as well" in message


def test_without_a_tie_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"keep_stages": True}
    result = compile_with(monkeypatch, tmp_path, samples(0.5, 0.25), Nudge(1e-6), **options)
    assert all(stage.ties is None for stage in result.report.stages)
    assert not (tmp_path / "bundle.stages" / "replay").exists()


def test_scores_that_are_wrong_are_no_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = failed_with(monkeypatch, tmp_path, samples(1e-4, 0.5), Nudge(1e-3))
    assert "Parity failed at 'lowered'" in message
    assert "aten.topk at " in message
    assert "its scores are off by 3.3e-04 of their scale, and 1.0e-05 is allowed" in message


def test_a_wrong_choice_is_no_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = failed_with(monkeypatch, tmp_path, samples(2e-7, 0.5), SmallestFirst())
    assert "Parity failed at 'lowered'" in message
    assert "aten.topk at " in message
    assert "it chooses what is worse by 9.0e-01 of the scale of its own scores" in message


@pytest.mark.parametrize("target", thorough_but(["ort"], ["ort", "openvino"]))
def test_an_error_that_only_an_image_with_a_tie_shows_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    images = samples(2e-7, 0.5)
    images[0, 5, 1] = 7.0
    passes = Nudge(1e-6), WrongWhereItTies()
    message = failed_with(monkeypatch, tmp_path, images, *passes, target=target)
    assert "with its own decisions as inputs eager differs too: output 'output' is off" in (message)
    images[0, 5, 1] = 5.0
    monkeypatch.undo()
    assert compile_with(monkeypatch, tmp_path, images, *passes, target=target).status == "PASSED"


def test_an_error_beside_a_tie_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = failed_with(monkeypatch, tmp_path, samples(2e-7), Nudge(1e-6), HalfAgain())
    assert "with eager's decisions as inputs it is off as well" in message


@pytest.mark.parametrize(
    ("how", "nudged", "named"),
    thorough_but(
        [("round", "Round", "aten.round"), ("bool", "Relu", "aten._to_copy")],
        [
            ("round", "Round", "aten.round"),
            ("floor", "Add", "aten.floor"),
            ("long", "Add", "aten._to_copy"),
            ("bool", "Relu", "aten._to_copy"),
        ],
    ),
)
def test_a_number_between_two_steps_is_a_tie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, nudged: str, named: str
) -> None:
    images, model = samples(0.125, 0.25), Rounds(how)
    images[0, 2, 0] = np.nextafter(np.float32(3.5), np.float32(0))
    options: Any = {"model": model, "target": "ort"}
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6, nudged), **options)
    ties = result.report.stages[-1].ties
    assert ties is not None
    assert (ties.batches, ties.flips) == ((0,), 1)
    assert all(name.startswith(f"{named} at ") for name in ties.decisions)
    gate = result.report.stages[-1].gates["output"]
    assert gate.tolerance < 1e-4  # a step that rounding flips does not widen it
    monkeypatch.undo()
    message = failed_with(monkeypatch, tmp_path, images, Nudge(1e-3, nudged), **options, force=True)
    assert "its scores are off by" in message or "another" in message


def replayed_in_half(gap: float) -> ReplayResult:
    """Asks about a stage that rounds its input to half and left its gate on the only image."""
    ops.register()
    x = samples(gap)[:, None]
    example = (torch.from_numpy(x[0]),)
    model = KeepsTheBest()
    program = capture(FlatModel(model, call_spec(model, example, {})), example)
    module = as_graph_module(program)
    replay = make_replay_graph(module, ("x",), ("output",))

    def run(batches: Batches) -> dict[str, Array]:
        rounded = {**batches.arrays, "x": batches.arrays["x"].astype(np.float16).astype("f4")}
        narrowed = Batches(batches.names, rounded, 1, None, "")
        return run_stage.run_graph(replay.module, narrowed, (*replay.outputs, *replay.exposed))

    batches = Batches(("x",), {"x": x}, 1, None, "")
    outputs = run_stage.run_graph(module, batches, ("output",))
    errors = measured_gates(module, batches, outputs, 1, "fp16").narrowed_scores
    search = TieSearch(
        module, batches, lambda found, rows: [True] * len(rows), 1e-2, half=True, errors=errors
    )
    return search.judge(replay, run, [0])


def test_in_half_a_choice_that_rounding_could_turn_is_excused_unturned() -> None:
    replay = replayed_in_half(1e-3)  # 3.001 becomes 3.00195, so the order stays
    assert replay.ties is not None
    assert (replay.ties.batches, replay.ties.flips) == ((0,), 0)
    assert replay.ties.score_error == pytest.approx(9.5e-4 / 3, rel=0.01)
    assert "topk(KEPT, dim=1)" in replay.ties.decisions[0]


def test_in_half_a_choice_beyond_rounding_excuses_nothing() -> None:
    replay = replayed_in_half(1e-1)
    assert replay.ties is None
    assert "no decision of batch 0 is near a tie: in aten.topk at " in replay.why_not
    assert "are 3.3e-02 of the scale of the scores apart, which are off by" in replay.why_not


@pytest.mark.usefixtures("without_gpu")
def test_in_half_an_error_without_a_decision_near_a_tie_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"target": "trt", "precision": "fp16"}
    message = failed_with(monkeypatch, tmp_path, samples(0.5), RightUnderReplay(), **options)
    assert "Parity failed at 'lowered'" in message
    assert "no decision of batch 0 is near a tie" in message


class TellsLittle(KeepsTheBest):
    """Adds a tenth of what it keeps to the sum of all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 10 + x.sum(1, keepdim=True)


@pytest.mark.usefixtures("without_gpu")
def test_in_half_nothing_but_ties_is_held_over_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"target": "trt", "precision": "fp16", "model": TellsLittle()}
    result = compile_with(monkeypatch, tmp_path, samples(2e-7, 2e-7), Nudge(1e-6), **options)
    stage = result.report.stages[-1]
    assert stage.ties is not None
    assert stage.ties.batches == (0, 1)
    assert any("In fp16 every sample crosses a near-tie" in w for w in result.report.warnings)
    (gate,) = json.loads((result.bundle / "manifest.json").read_text())["gates"].values()
    assert gate["least_cosine"] == LEAST_COSINE
    assert "steady" not in np.load(result.bundle / "reference.npz").files  # none is left out


@pytest.mark.usefixtures("without_gpu")
def test_in_half_nothing_but_ties_that_move_the_answer_far_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"target": "trt", "precision": "fp16"}
    with pytest.raises(GateError, match="over all samples together output 'output' has a cosine"):
        compile_with(monkeypatch, tmp_path, samples(2e-7, 2e-7), Nudge(1e-6), **options)
    assert not (tmp_path / "bundle").exists()


def test_where_every_batch_holds_a_tie_the_other_samples_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = samples(2e-7, 0.5, 0.25, 2e-7)
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6), batch=2)
    assert result.status == "PASSED"
    reference = np.load(result.bundle / "reference.npz")
    np.testing.assert_array_equal(reference["steady"], [[False, True], [True, False]])
    verified = verify_bundle(result.bundle)
    assert verified.passed
    assert (verified.batches, verified.left_out) == (2, 2)


def test_where_every_sample_ties_the_bundle_is_verified_told_what_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = samples(2e-7, 1e-7, 0.0)
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6))
    assert result.status == "PASSED"
    assert any("with the artifact's decisions as inputs" in said for said in result.report.warnings)
    reference = np.load(result.bundle / "reference.npz")
    assert "steady" not in reference
    with torch.no_grad():
        eager = KeepsTheBest()(torch.from_numpy(reference["inputs/x"][:, 0])).numpy()
    assert np.abs(reference["outputs/output"][:, 0] - eager).max() > 1e-2
    verified = verify_bundle(result.bundle)
    assert verified.passed
    assert (verified.batches, verified.left_out) == (3, 0)


def test_a_tie_in_one_sample_excuses_no_error_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, passes = samples(2e-7, 0.5), (Nudge(1e-6), RightUnderReplay())
    message = failed_with(monkeypatch, tmp_path, images, *passes, batch=2)
    assert "Parity failed at 'lowered'" in message
    assert "no decision of sample 1 of batch 0 is a near-tie" in message


@pytest.mark.usefixtures("without_gpu")
def test_in_half_a_near_tie_in_one_sample_excuses_no_error_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"target": "trt", "precision": "fp16", "batch": 2}
    message = failed_with(monkeypatch, tmp_path, samples(1e-3, 0.5), RightUnderReplay(), **options)
    assert "no decision of sample 1 of batch 0 is a near-tie" in message


class SumsUp(KeepsTheBest):
    """Gives one number for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum()[None]


def test_an_output_of_the_whole_batch_is_of_no_steady_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = samples(2e-7, 0.5, 0.25, 2e-7)
    result = compile_with(monkeypatch, tmp_path, images, Nudge(1e-6), batch=2, model=SumsUp())
    assert any("Every sample crosses a near-tie" in said for said in result.report.warnings)
    assert verify_bundle(result.bundle).passed


class Finer(nn.Module):
    """Its third and fourth scores are equal in float32 and are not in float64."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        scores = x[..., 0] + self.step * torch.arange(TOKENS)
        index = scores.topk(KEPT, dim=1).indices
        return x.gather(1, index[..., None].expand(-1, -1, CHANNELS)) * 2


def test_a_decision_that_falls_otherwise_in_float64_does_not_widen_the_gate(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=samples(0.0, 0.5))
    example = torch.zeros(1, TOKENS, CHANNELS)
    x = torch.from_numpy(samples(0.0))
    models = [Finer(step) for step in (1e-9, -1e-9)]  # which of two equal ones wins is torch's
    moved = [float((model(x.double()).float() - model(x)).abs().max()) for model in models]
    assert max(moved) > 0.1
    model = models[int(np.argmax(moved))]
    result = tokexport.compile(
        model, example, output=tmp_path / "bundle", inputs=tmp_path / "x.npz"
    )
    assert result.report.gates["output"].tolerance == FP32_FLOOR
    assert result.report.gates["output"].eager_error == pytest.approx(0.0, abs=1e-6)
