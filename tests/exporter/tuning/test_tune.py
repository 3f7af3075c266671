"""Lowering by measurement: what is timed, what is chosen, and that a choice is what is built."""

from __future__ import annotations

import itertools
import json
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.cli import MODELS, compile_model, refusal
from helpers.thorough import thorough_but
from models.tiny_vit import image, tiny_tome

import tokexport
from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.emit import emit
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import UsageError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.gates import Gate
from tokexport.exporter.parity.proof import Proof
from tokexport.exporter.speed.interleaved import MIN_PAIRS, Ratio
from tokexport.exporter.speed.time_limits import TimeLimits
from tokexport.exporter.ties.replay_stages import ReplayArtifacts, StageReplay
from tokexport.exporter.tuning.cache import FILE_NAME, FormCache
from tokexport.exporter.tuning.choices import TunedForm
from tokexport.exporter.tuning.trials import choose, draw_arguments, fastest, try_forms, unchanged
from tokexport.exporter.tuning.tune import environment
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.every_target.choose_forms import TokenCall
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.ops.token_forms import NATIVE, candidates, form_name
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.verification import verify_bundle

MERGE = TokenCall("merge_tokens_sum", ((2, 9, 4), (2, 8, 4), (2, 6), (2, 3), (2, 3)))
BY_SIZE = TokenCall(
    "merge_by_size",
    ((2, 17, 4), (2, 17, 1), (2, 6), (2, 3), (2, 3)),
    (("a_start", (0,)), ("b_start", (1,)), ("protected", (0,)), ("step", (2,))),
)
CALLS = {
    "merge": MERGE,
    "merge of all": TokenCall("merge_tokens_mean", ((1, 4, 3), (1, 5, 3), (1, 0), (1, 4), (1, 4))),
    "prune": TokenCall("merge_tokens_none", MERGE.shapes),
    "constant rows": TokenCall("merge_tokens_sum", MERGE.shapes, (), (0, 1)),
    "constant index": TokenCall("gather_tokens", ((2, 9, 4), (2, 5)), (), (1,)),
    "restore": TokenCall("gather_tokens", ((2, 5, 4), (2, 9))),
    "largest": TokenCall("scatter_tokens_amax_exclude_self", ((1, 6, 3), (1, 9), (1, 9, 3))),
    "overwrite": TokenCall("scatter_tokens_none", ((1, 6, 3), (1, 4), (1, 4, 3))),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("TOKEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FILE_NAME


@pytest.mark.parametrize(
    ("name", "target"),
    thorough_but(
        [(name, ("ort", "openvino")[place % 2]) for place, name in enumerate(CALLS)],
        itertools.product(CALLS, ("ort", "openvino")),
    ),
)
def test_every_form_of_a_call_is_timed(name: str, target: str, tmp_path: Path) -> None:
    call = CALLS[name]
    forms = candidates(call.operator, kernels=target == "ort")
    trial = try_forms(call, forms, BACKENDS[target], "fp32", tmp_path)
    assert not trial.refused
    assert trial.chosen is not None
    assert set(trial.chosen.times_us) == set(forms)
    assert trial.chosen.standard == forms[0]
    assert trial.chosen.form in forms


@pytest.mark.parametrize(
    ("target", "precision"),
    [("ort", "int8"), ("openvino", "int8"), ("openvino", "bf16"), ("openvino", "fp16")],
)
def test_in_a_reduced_precision_no_form_is_lost(
    target: str, precision: str, tmp_path: Path
) -> None:
    forms = candidates(MERGE.operator, kernels=False)
    trial = try_forms(MERGE, forms, BACKENDS[target], precision, tmp_path)
    assert trial.chosen is not None
    assert set(trial.chosen.times_us) == set(forms)


def test_merges_by_size_are_timed_with_and_without_the_kernel(tmp_path: Path) -> None:
    forms = candidates(BY_SIZE.operator, kernels=True)
    assert forms[0] == NATIVE
    trial = try_forms(BY_SIZE, forms, BACKENDS["ort"], "fp32", tmp_path)
    assert trial.chosen is not None
    assert set(trial.chosen.times_us) == set(forms)
    op_types = {
        form: {node.op_type for node in onnx.load(tmp_path / form / "model.onnx").graph.node}
        for form in forms
    }
    for form in forms:
        assert form_name("merge_by_size", form) in op_types[form]


def test_a_form_that_gives_another_result_is_left_out(tmp_path: Path) -> None:
    # One channel for four: a product broadcasts it, and a scatter writes the first.
    call = TokenCall("scatter_tokens_sum", ((1, 6, 4), (1, 3), (1, 3, 1)))
    trial = try_forms(call, ("one-hot", "scatter"), BACKENDS["ort"], "fp32", tmp_path)
    assert "another result" in trial.refused["scatter"]
    assert trial.chosen == unchanged("one-hot", {})


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_a_standard_form_that_fails_ends_the_trial(target: str, tmp_path: Path) -> None:
    call = TokenCall("merge_tokens_sum", ((2, 9, 4), (2, 8, 5), *MERGE.shapes[2:]))
    trial = try_forms(call, ("one-hot", "scatter"), BACKENDS[target], "fp32", tmp_path)
    assert trial.chosen is None
    assert set(trial.refused) == {"one-hot"}


@pytest.mark.parametrize("call", [MERGE, BY_SIZE], ids=["merge", "by size"])
def test_indices_are_those_of_a_match(call: TokenCall) -> None:
    *_, kept, src, dst = draw_arguments(call, np.random.default_rng(0))
    for image_kept, image_src in zip(kept, src, strict=True):
        assert sorted([*image_kept, *image_src]) == list(range(9))
        assert list(image_kept) == sorted(image_kept)
    assert dst.min() >= 0
    assert dst.max() < 8
    drawn = [draw_arguments(call, np.random.default_rng(seed))[-1][0] for seed in range(9)]
    assert any(len(set(row)) < len(row) for row in drawn)


def ratio(low: float, of_minima: float) -> Ratio:
    return Ratio(of_medians=low + 0.3, low=low, high=low + 0.5, of_minima=of_minima)


@pytest.mark.parametrize(
    ("scatter", "flat", "chosen"),
    [
        (ratio(1.2, 1.3), ratio(0.7, 0.8), "scatter"),
        (ratio(1.2, 1.3), ratio(1.3, 1.4), "scatter-flat"),
        (ratio(1.2, 1.3), ratio(1.3, 1.0), "scatter"),  # an undisturbed run is no faster
        (ratio(1.02, 1.3), ratio(0.7, 0.8), "one-hot"),  # the interval holds 1.03
        (ratio(4.0, 1.02), ratio(0.7, 0.8), "one-hot"),
        (ratio(0.5, 0.5), ratio(0.5, 0.5), "one-hot"),
    ],
)
def test_only_a_gain_beyond_noise_changes_the_form(
    scatter: Ratio, flat: Ratio, chosen: str
) -> None:
    times = {"one-hot": 30.0, "scatter": 20.0, "scatter-flat": 15.0}
    ratios = {"scatter": scatter, "scatter-flat": flat}
    found = choose(times, ratios, "one-hot")
    assert (found.form, found.standard, found.times_us) == (chosen, "one-hot", times)
    if chosen == "one-hot":
        assert found == unchanged("one-hot", times)
    else:
        won = ratios[chosen]
        assert (found.speedup, found.low, found.high, found.of_minima) == (
            won.of_medians,
            won.low,
            won.high,
            won.of_minima,
        )


#: As few rounds as count, without pauses.
QUICK = TimeLimits().at_most(0)


class Paused:
    """A run that waits: at first so long, and behind some calls so long."""

    def __init__(self, first_ms: float, calls: int = 0, later_ms: float = 0.0) -> None:
        self.first_ms, self.calls, self.later_ms = first_ms, calls, later_ms
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        wait = self.first_ms if self.count <= self.calls else self.later_ms
        if wait:  # to sleep for no time gives the core away
            time.sleep(wait / 1e3)


def test_the_choice_must_win_twice() -> None:
    def standard() -> Paused:
        return Paused(0.0, later_ms=20.0)

    won = fastest({"one-hot": standard(), "scatter": Paused(0.0)}, "one-hot", QUICK)
    assert won.form == "scatter"
    assert won.speedup > 1
    calls = MIN_PAIRS + 1  # of the first measurement, its warm-up among them
    lucky = Paused(0.0, calls, later_ms=60.0)
    assert fastest({"one-hot": standard(), "scatter": lucky}, "one-hot", QUICK).form == "one-hot"
    assert lucky.count == 2 * calls


def compiled(target: str, folder: Path) -> CompileResult:
    return tokexport.compile(
        tiny_tome(depth=3), image(2), target, output=folder, tune=True, timed=False
    )


@pytest.fixture(scope="module")
def emitted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of ``compiled`` before any lowering."""
    folder = tmp_path_factory.mktemp("emitted")
    tokexport.compile(
        tiny_tome(depth=3), image(2), output=folder / "bundle", keep_stages=True, timed=False
    )
    return folder / "bundle.stages" / "emitted" / "model.onnx"


@pytest.mark.parametrize("target", thorough_but(["ort"], ["ort", "openvino"]))
def test_a_compile_measures_once_and_remembers(target: str, tmp_path: Path, cache: Path) -> None:
    first, second = (compiled(target, tmp_path / name) for name in ("first", "second"))
    tuning, again = first.report.tuning, second.report.tuning
    assert tuning is not None
    assert again is not None
    assert tuning.timed == len(tuning.forms) >= 2
    assert again.timed == 0
    assert again.forms == tuning.forms
    assert tuning.cache == str(cache)
    assert "tune" in first.report.stage_seconds
    manifest = read_manifest(first.bundle)
    assert manifest.forms is not None
    assert {call: each["form"] for call, each in manifest.forms.items()} == {
        call: each.form for call, each in tuning.forms.items()
    }
    assert json.loads((first.bundle / "report.json").read_text())["tuning"]["timed"] >= 2
    assert verify_bundle(first.bundle).passed


def prepare(calls: list[str], target: str, form: str, standard: str) -> None:
    """Writes a cache in which a form was much faster than the standard one."""
    cache = FormCache(environment(BACKENDS[target], "fp32"))
    times = {standard: 30.0, form: 10.0}
    for call in calls:
        cache.put(call, TunedForm(form, standard, 3.0, 2.9, 3.1, 2.8, times))
    cache.save()


@pytest.mark.parametrize(
    ("target", "kernels", "form"),
    thorough_but(
        [("openvino", False, "scatter-flat")],
        [
            ("ort", True, "scatter"),
            ("ort", True, "one-hot"),
            ("ort", False, "scatter-flat"),
            ("openvino", False, "scatter"),
            ("openvino", False, "scatter-flat"),
        ],
    ),
)
def test_what_the_cache_says_is_what_is_built_proven_and_verified(
    target: str,
    kernels: bool,
    form: str,
    emitted_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not kernels:
        monkeypatch.setenv("TOKEXPORT_NATIVE", "off")
    calls = pipelines.calls_to_choose(ir.load(emitted_model), pipelines.lowering(target))
    merges = [str(call) for call in calls if call.operator.startswith("merge")]
    assert merges
    prepare(merges, target, form, NATIVE if kernels else "one-hot")
    result = compiled(target, tmp_path / "tuned")
    assert all(stage.passed for stage in result.report.stages)
    manifest = read_manifest(result.bundle)
    assert manifest.forms is not None
    for call in merges:
        assert manifest.forms[call]["form"] == form
        assert manifest.forms[call]["speedup"] == 3.0
    if target == "ort":
        wanted: Counter[str] = Counter()
        for call, each in manifest.forms.items():
            operator = call.partition("(")[0]
            standard = each["form"] == each["standard"]
            wanted[operator if standard else form_name(operator, each["form"])] += each["nodes"]
        nodes = onnx.load(result.bundle / "model.onnx").graph.node
        found = Counter(node.op_type for node in nodes if node.domain == "tokexport")
        assert {name: found[name] for name in wanted} == wanted
        assert found["merge_by_size"] == found["merge_tokens_sum"] == 0
    else:
        data = ET.parse(result.bundle / "model.xml").getroot().iter("data")
        assert any(each.get("reduction") == "sum" for each in data)
    assert verify_bundle(result.bundle).passed
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with tokexport.runtimes.load(result.bundle) as runner, torch.no_grad():
        found_output = runner.run({"x": x.numpy()})["output"]
        np.testing.assert_allclose(found_output, tiny_tome(depth=3)(x).numpy(), rtol=0, atol=1e-4)


def test_without_it_nothing_is_chosen(tmp_path: Path, cache: Path) -> None:
    result = tokexport.compile(tiny_tome(depth=3), image(), output=tmp_path / "bundle", timed=False)
    assert result.report.tuning is None
    assert read_manifest(result.bundle).forms is None
    assert not cache.exists()


def test_a_model_without_token_operators_has_nothing_to_tune(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    result = tokexport.compile(model, torch.zeros(2, 4), output=tmp_path / "bundle", tune=True)
    assert result.report.tuning is not None
    assert read_manifest(result.bundle).forms == {}


def test_a_damaged_cache_is_said_in_the_report(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("{")
    result = compiled("ort", tmp_path / "bundle")
    assert any(str(cache) in warning for warning in result.report.warnings)


def test_no_engine_is_timed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no engine is timed"):
        tokexport.compile(tiny_tome(depth=3), image(), "trt", output=tmp_path / "bundle", tune=True)
    source, output = f"{MODELS}:with_inputs", tmp_path / "out"
    refusal(
        compile_model(source, output, "--tune", target="trt"),
        2,
        tmp_path,
        "--tune",
        "Leave it out",
        "ort or openvino",
    )


def test_the_command_shows_what_was_chosen(tmp_path: Path) -> None:
    arguments = (f"{MODELS}:with_inputs", tmp_path / "out", "--tune", "--force")
    found = compile_model(*arguments, "--json").json["tuning"]
    merges = [call for call in found["forms"] if call.startswith("merge")]
    prepare(merges, "ort", "scatter", NATIVE)
    said = compile_model(*arguments).said
    total, changed = (
        sum(found["nodes"][call] for call in calls) for calls in (found["nodes"], merges)
    )
    kinds = len(found["forms"])
    assert f"Token operators: {changed} of {total} calls in another form" in said
    assert f"of {kinds} kinds 0 timed now, {kinds} from" in said
    assert "scatter native 3.00 2.90 … 3.10 2.80" in said


@pytest.mark.thorough
def test_a_way_that_is_told_eagers_decisions_has_the_same_forms(tmp_path: Path) -> None:
    """What a near-tie is judged on must be the graph that is shipped, but for its decisions."""
    ops.register()
    model = FlatModel(tiny_tome(depth=3), call_spec(tiny_tome(depth=3), (image(),), {}))
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    batches = Batches(model.spec.names, {model.spec.names[0]: x.numpy()[None]}, 1, None, "")
    outputs = run_reference(model, batches).outputs
    program = capture(model, [x])
    captured = as_graph_module(program)
    rewritten = pipelines.rewrite(program).program
    proof = Proof(outputs, {name: Gate(1e-5, 0.0, 1.0, "") for name in outputs})
    names = batches.names, tuple(outputs)
    way = ReplayArtifacts(rewritten, *names, BACKENDS["ort"], "fp32", tmp_path / "replay")
    replay = StageReplay(captured, way, batches, proof)
    emitted = emit(rewritten, model.spec.names, tuple(outputs))
    calls = pipelines.calls_to_choose(emitted, pipelines.lowering("ort"))
    merges = [call for call in calls if call.operator == "merge_by_size"]
    assert merges
    way.forms = dict.fromkeys(merges, "scatter")
    assert replay.lowered([0]).outputs
    nodes = onnx.load(tmp_path / "replay" / "lowered" / "model.onnx").graph.node
    found = Counter(node.op_type for node in nodes)
    assert found["merge_by_size__scatter"] == sum(calls[call] for call in merges)
    assert found["merge_by_size"] == 0
