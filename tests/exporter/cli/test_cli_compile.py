"""The options of compile, each by what it changes in the answer or on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.cli import MODELS, Compiled, compile_model, refusal, tokexport

from tokexport.runtimes import load

SOURCE = f"{MODELS}:with_inputs"


def test_json_is_one_object_that_says_all(compiled: Compiled) -> None:
    answer = compiled.answer
    assert answer.code == 0
    report = answer.json
    assert report["exit_code"] == 0
    assert report["error"] is None
    assert report["status"] == "PASSED"
    assert [stage["name"] for stage in report["stages"]] == [
        "captured",
        "rewritten",
        "onnx",
        "artifact",
    ]
    assert all(stage["passed"] for stage in report["stages"])
    found = {"bipartite_match": 1, "merge_tokens": 1, "sized_attention": 1}
    assert report["recognised"] == found
    assert report["bundle"] == str(compiled.bundle)
    assert report["speed"]["baseline"].startswith("eager")
    written = json.loads((compiled.bundle / "report.json").read_text())
    assert written == {key: value for key, value in report.items() if key in written}


def test_samples_labels_and_a_batch_with_a_remainder(compiled: Compiled) -> None:
    report = compiled.answer.json
    assert report["inputs"] == "5 samples of data.npz"
    assert report["samples"] == 5
    with np.load(compiled.inputs) as data, torch.no_grad():
        from models.cli_models import merging_vit

        logits = merging_vit()(torch.from_numpy(data["x"]))
        share = float((logits.argmax(dim=-1).numpy() == data["labels"]).mean())
    kept = {"before": share, "after": share, "samples": 5, "lost": 0, "won": 0}
    assert report["accuracy"] == kept
    with load(compiled.bundle) as runner:
        assert runner.inputs[0].shape == (2, 3, 12, 12)


def test_some_samples_of_a_file_are_enough(compiled: Compiled, tmp_path: Path) -> None:
    given = ("--inputs", compiled.inputs, "--samples", 3)
    answer = compile_model(SOURCE, tmp_path / "out", *given)
    assert answer.code == 0
    assert "3 of 5 samples of data.npz" in answer.stdout
    with np.load(compiled.inputs) as data, np.load(tmp_path / "out" / "reference.npz") as kept:
        np.testing.assert_array_equal(kept["inputs/x"][:, 0], data["x"][[0, 1, 3]])
    assert "(3 labelled samples)" in answer.stdout


def test_the_summary_for_a_person(tmp_path: Path) -> None:
    output = tmp_path / ("a long name " * 12).strip()
    answer = compile_model(SOURCE, output)
    assert answer.code == 0
    assert answer.stderr == ""
    assert answer.stdout.startswith(f"PASSED  {SOURCE} → ort, fp32\n")
    assert "seeded synthetic inputs (normal, seed 0): not real data" in answer.stdout
    for name in ("captured", "rewritten", "onnx", "artifact", "eager, ", "ort fp32"):
        assert name in answer.stdout
    assert str(output) in answer.stdout  # on one line, to be copied


def test_the_output_has_a_name_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tokexport("compile", SOURCE, "--target", "ort").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["with_inputs-ort"]


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    drawn = {}
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        answer = compile_model(SOURCE, tmp_path / name, "--seed", seed, "--json")
        assert f"seed {seed}" in answer.json["inputs"]
        drawn[name] = np.load(tmp_path / name / "reference.npz")["inputs/x"]
    np.testing.assert_array_equal(drawn["one"], drawn["again"])
    assert not np.array_equal(drawn["one"], drawn["other"])


def test_force_replaces_a_bundle_and_nothing_else_does(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert compile_model(SOURCE, output, "--batch", 3).code == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert compile_model(SOURCE, output).code == 2
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert compile_model(SOURCE, output, "--force").code == 0
    with load(output) as runner:
        assert runner.inputs[0].shape[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_kept_stages_load(tmp_path: Path) -> None:
    assert compile_model(SOURCE, tmp_path / "out", "--keep-stages", target="openvino").code == 0
    stages = tmp_path / "out.stages"
    x = torch.zeros(1, 3, 12, 12)
    answers = [
        torch.export.load(stages / f"{name}.pt2").module()(x)[0]
        for name in ("captured", "rewritten")
    ]
    torch.testing.assert_close(*answers)
    emitted = onnx.load(stages / "emitted" / "model.onnx")
    assert {"merge_mean", "bipartite_match_by_score"} & {f.name for f in emitted.functions}
    onnx.checker.check_model(emitted)
    assert not onnx.load(stages / "lowered" / "model.onnx").functions


def test_batch_overrides_the_shape_on_the_command_line(tmp_path: Path) -> None:
    options = ("--input-shape", "1,3,16,8", "--batch", 2)
    assert compile_model(f"{MODELS}:merging_vit", tmp_path / "out", *options).code == 0
    with load(tmp_path / "out") as runner:
        assert runner.inputs[0].shape == (2, 3, 16, 8)


def test_several_inputs_by_their_names(tmp_path: Path) -> None:
    pixels = np.ones((4, 4), np.float32)
    np.savez(tmp_path / "data.npz", mask=pixels * 2, pixels=pixels)
    answer = compile_model(
        *(f"{MODELS}:two_inputs", tmp_path / "out", "--inputs", tmp_path / "data.npz", "--json")
    )
    assert answer.json["samples"] == 4
    assert set(answer.json["gates"]) == {"scores", "total"}
    with load(tmp_path / "out") as runner:
        assert [spec.name for spec in runner.inputs] == ["pixels", "mask"]


def test_an_absolute_tolerance_is_the_gate(tmp_path: Path) -> None:
    wide = compile_model(SOURCE, tmp_path / "wide", "--atol", "0.5", "--json").json
    (gate,) = wide["gates"].values()
    assert gate["tolerance"] * gate["scale"] == pytest.approx(0.5)
    assert gate["reason"] == "--atol 0.5"

    answer = compile_model(SOURCE, tmp_path / "narrow", "--atol", "1e-15", "--json")
    assert answer.code == 1
    failed = answer.json
    assert failed["status"] == "FAILED"
    # On some processors the rewritten graph answers to the last bit.
    off = [one for one in failed["stages"] if one["comparisons"]["output"]["max_abs"] > 0]
    assert failed["first_failure"] == off[0]["name"]
    assert failed["error"]["what"].startswith(f"Parity failed at '{off[0]['name']}'")
    assert failed["bundle"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["narrow.failed", "wide"]
    assert str(tmp_path / "narrow.failed" / "report.html") in failed["error"]["fix"]


def test_a_speed_gate_that_fails_shows_the_speed_and_leaves_a_page(tmp_path: Path) -> None:
    answer = compile_model(SOURCE, tmp_path / "out", "--min-speedup", "1e9", "--threads", "1")
    assert answer.code == 1
    assert answer.stdout.startswith("FAILED")
    assert "interleaved pairs" in answer.stdout
    assert answer.stderr.startswith("error: The speed-up of ort fp32, 1 thread over eager, 1 th")
    assert "lower --min-speedup" in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_another_precision_has_a_gate_of_its_own(tmp_path: Path) -> None:
    answer = compile_model(
        *(SOURCE, tmp_path / "out", "--precision", "bf16", "--json"), target="openvino"
    )
    assert answer.code == 0
    report = answer.json
    assert report["precision"] == "bf16"
    assert report["gates"]["output"]["tolerance"] == 5e-2
    assert "inference_precision" in report["runtime"]["details"]
    # only what computes in it may be off by as much
    stages = {stage["name"]: stage["gates"]["output"]["tolerance"] for stage in report["stages"]}
    assert stages.pop("artifact") == stages.pop("without kernels") == 5e-2
    assert set(stages) == {"captured", "rewritten", "onnx", "lowered"}
    assert all(tolerance < 1e-3 for tolerance in stages.values()), stages


def test_a_reduction_is_put_in_and_its_tokens_put_back(tmp_path: Path) -> None:
    options = ("--reduce", "tome:r=4", "--restore", "--json")
    answer = compile_model(f"{MODELS}:plain_vit", tmp_path / "out", *options)
    assert answer.code == 0, answer
    report = answer.json
    assert report["reduction"]["recipe"] == "tome:r=4,restore=true"
    assert report["speed_over_unreduced"]["baseline"].startswith("unreduced eager, ")
    with load(tmp_path / "out") as runner:
        shapes = {spec.name: spec.shape for spec in runner.outputs}
        tokens = runner.run({"x": np.ones((1, 3, 24, 24), np.float32)})["tokens"]
    assert shapes["tokens"] == (1, 37, 16)
    assert len(np.unique(tokens[0], axis=0)) == 25


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--restore",), 2, "there is no --reduce"),
        (("--reduce", "tome:x=1"), 2, "has no option 'x'"),
        (("--reduce", "tome:r=[1,2]"), 2, "the model has 3 blocks"),
    ],
)
def test_a_reduction_that_does_not_fit(
    options: tuple[str, ...], code: int, part: str, tmp_path: Path
) -> None:
    answer = compile_model(f"{MODELS}:plain_vit", tmp_path / "out", *options)
    refusal(answer, code, tmp_path, part)
    assert list(tmp_path.iterdir()) == []


def test_surgery_that_changes_the_model_fails_its_gate(tmp_path: Path) -> None:
    source = f"{MODELS}:plain_of_two_faces"
    answer = compile_model(source, tmp_path / "out", "--reduce", "tome", "--json")
    assert answer.code == 1
    assert answer.json["error"]["kind"] == "GateError"
    assert "with nothing reduced" in answer.json["error"]["what"]
    assert answer.json["status"] == "FAILED"
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
