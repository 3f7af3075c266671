"""A bundle is held to a source: the same model passes, and whatever moved is named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import MODELS, TESTS, Answer, compile_model, refusal, tokexport
from helpers.near_ties import CHANNELS, TOKENS, KeepsTheBest, Nudge, samples
from helpers.thorough import thorough_but
from models.cli_models import plain_vit
from rich.console import Console
from torch import Tensor

import tokexport as package
from tokexport.exporter.bisection.bisect import bisect_bundle
from tokexport.exporter.bisection.tables import render_bisection
from tokexport.exporter.comparison.against import verify_against
from tokexport.exporter.comparison.against_tables import render_against
from tokexport.exporter.comparison.compare import compare
from tokexport.exporter.config import ReduceConfig
from tokexport.exporter.report_page.against_page import against_page
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.source.options import SourceOptions
from tokexport.graph_passes import pipelines

SOURCE = f"{MODELS}:plain_vit"
REDUCED = ("--reduce", "tome:r=4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one model by target and precision, and its weights."""
    folder = tmp_path_factory.mktemp("made")
    torch.save(plain_vit()[0].state_dict(), folder / "weights.pt")
    x = np.random.default_rng(0).standard_normal((6, 3, 24, 24)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    for target, precision, options in (
        ("ort", "fp32", REDUCED),
        ("openvino", "bf16", REDUCED),
        ("ort", "int8", ()),  # random weights make near-ties of its steps
    ):
        answer = compile_model(
            *(SOURCE, folder / f"{target}-{precision}", "--precision", precision),
            *("--inputs", folder / "x.npz", *options),
            target=target,
        )
        assert answer.code == 0, answer
    return folder


def against(bundle: Path, weights: Path, *arguments: object) -> Answer:
    options = ("--builder", SOURCE, "--code-path", TESTS, *arguments)
    return tokexport("verify", bundle, "--against", weights, *options, "--json")


def moved(made: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Saves the weights with a change in them."""
    weights = torch.load(made / "weights.pt")
    change(weights)
    torch.save(weights, tmp_path / "moved.pt")
    return tmp_path / "moved.pt"


@pytest.mark.parametrize(
    "name", thorough_but(["ort-fp32", "openvino-bf16"], ["ort-fp32", "openvino-bf16", "ort-int8"])
)
def test_the_model_that_it_was_compiled_from_passes(made: Path, name: str) -> None:
    answer = against(made / name, made / "weights.pt")
    assert answer.code == 0, answer
    found = answer.json
    assert found["verdict"] in ("identical", "arithmetic", "ties only")
    assert (found["weights"], found["structure"], found["why_not"]) == ("same", "same", "")
    assert {*found["outputs"]} == {"logits", "tokens"}
    assert found["inputs"].endswith(f"samples of the reference data of {made / name}")
    assert [stage["name"] for stage in found["stages"]][:3] == ["captured", "rewritten", "onnx"]


def test_a_weight_that_moved_by_a_thousandth_is_named(made: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["head.weight"].view(-1)[0] += 1e-3

    answer = against(made / "ort-fp32", moved(made, tmp_path, change))
    assert answer.code == 1, answer
    found = answer.json
    assert (found["verdict"], found["weights"], found["structure"]) == ("wrong", "other", "same")
    assert "the weights are others" in found["error"]["what"]
    command = f"tokexport bisect {tmp_path / 'moved.pt'} {made / 'ort-fp32'} "
    assert command in found["error"]["fix"]
    assert f"--code-path {TESTS}" in found["error"]["fix"]
    assert found["outputs"]["tokens"]["verdict"] in ("identical", "arithmetic")


def test_another_spelling_of_the_model_is_decided_by_its_outputs(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "spelled.py").write_text(
        "from models.cli_models import PlainVit\n"
        "class Spelled(PlainVit):\n"
        "    def forward(self, x):\n"
        "        found = super().forward(x * 1.0)\n"
        "        return found\n"
        "def build():\n"
        "    return Spelled().eval()\n"
    )
    found = tokexport(
        *("verify", made / "ort-fp32", "--against", made / "weights.pt", "--json"),
        *("--builder", "spelled:build", "--code-path", tmp_path, "--code-path", TESTS),
    ).json
    assert (found["exit_code"], found["structure"]) == (0, "other")
    assert found["weights"] == "same"


def test_two_outputs_of_the_head_that_changed_places_are_wrong(made: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["head.weight"][[0, 1]] = weights["head.weight"][[1, 0]].clone()

    found = against(made / "ort-fp32", moved(made, tmp_path, change)).json
    assert found["exit_code"] == 1
    assert found["outputs"]["logits"]["verdict"] == "wrong"
    assert found["outputs"]["tokens"]["verdict"] in ("identical", "arithmetic")


def test_another_head_is_wrong_also_in_int8(made: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["head.weight"].neg_()

    found = against(made / "ort-int8", moved(made, tmp_path, change)).json
    assert (found["exit_code"], found["outputs"]["logits"]["verdict"]) == (1, "wrong")


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "ties only"), (1.001, "wrong")], ids=["a tie", "and an error"]
)
def test_a_tie_is_excused_and_no_error_behind_it(
    factor: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle's runtime turns a decision that rounding can turn; the source may do more."""

    class Scaled(KeepsTheBest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * factor if factor != 1.0 else super().forward(x)

    nudged = {**pipelines.LOWER, "openvino": (*pipelines.LOWER["openvino"], Nudge(1e-6))}
    monkeypatch.setattr(pipelines, "LOWER", nudged)
    zeros = torch.zeros(1, TOKENS, CHANNELS)
    for name, apart in (("wide", 0.5), ("close", 2e-7)):
        np.savez(tmp_path / f"{name}.npz", x=samples(apart))
    bundle = package.compile(
        *(KeepsTheBest(), zeros, "openvino"),
        **{"output": tmp_path / "out", "inputs": tmp_path / "wide.npz", "timed": False},
    ).bundle
    found = verify_against(bundle, source_in_memory(Scaled(), zeros), inputs=tmp_path / "close.npz")
    assert found.verdict == verdict, found.why_not
    assert found.ties == (1 if verdict == "ties only" else 0)
    assert found.outputs["output"].figures.comparison.max_abs > 0.1


def test_samples_of_a_file_are_taken(made: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(9).standard_normal((4, 3, 24, 24)).astype(np.float32)
    np.savez(tmp_path / "fresh.npz", x=x)
    given = ("--inputs", tmp_path / "fresh.npz", "--samples", "2")
    found = against(made / "ort-fp32", made / "weights.pt", *given).json
    assert (found["exit_code"], found["inputs"]) == (0, "2 of 4 samples of fresh.npz")


def test_another_preprocessing_is_named(tmp_path: Path) -> None:
    source = "timm:test_vit.r160_in1k"
    answer = compile_model(source, tmp_path / "out", "--batch", "1")
    assert answer.code == 0, answer
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["preprocessing"]["mean"] = [0.0, 0.0, 0.0]
    path.write_text(json.dumps(manifest))
    answer = tokexport("verify", tmp_path / "out", "--against", source)
    message = refusal(answer, 1, tmp_path, "the preprocessing is another: mean is [0.0, 0.0, 0.0]")
    assert "in the source" in message
    assert "verdict" in answer.stdout


def test_a_bundle_made_before_is_compared_by_numbers(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "ort-fp32", tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    for key in ("fingerprint", "options"):
        del manifest[key]
    path.write_text(json.dumps(manifest))
    found = against(tmp_path / "old", made / "weights.pt").json
    assert (found["exit_code"], found["weights"], found["structure"]) == (0, "unknown", "unknown")


def test_a_count_under_a_cap_and_its_check_are_compared(tmp_path: Path) -> None:
    source = "models.ragged:halting"
    x = torch.randn(24, 12, 16, generator=torch.Generator().manual_seed(1)).numpy()
    np.savez(tmp_path / "x.npz", x=x)
    given = ("--inputs", tmp_path / "x.npz", "--token-cap", 12)
    answer = compile_model(source, tmp_path / "out", *given)
    assert answer.code == 0, answer
    answer = tokexport("verify", tmp_path / "out", "--against", source, "--json")
    assert answer.code == 0, answer
    found = answer.json
    assert (found["weights"], found["structure"]) == ("same", "same")
    assert "input_checks" in found["outputs"]


def test_artifacts_that_are_not_compared_are_named(tmp_path: Path) -> None:
    model, x = torch.nn.Linear(8, 5), torch.randn(1, 8)
    options = {"batch": (1, 3, 4), "timed": False, "page": False}
    bundle = package.compile(model, x, "ort", output=tmp_path / "ladder", **options).bundle
    found = verify_against(bundle, source_in_memory(model, x))
    assert (found.verdict != "wrong", found.other_batches) == (True, (3, 4))
    render_against(found, Console(file=(printed := io.StringIO()), width=200))
    assert "not compared: what takes 3 and 4 samples at once" in printed.getvalue()
    assert "3 and 4 samples" in str(against_page(found.to_json(), "").verdict)
    sides = SourceOptions(str(bundle)), SourceOptions(str(bundle))
    notes = compare(*sides, ReduceConfig()).notes
    assert notes == (f"{bundle} takes 3 and 4 samples too, not compared here.",) * 2
    looked = bisect_bundle(source_in_memory(model, x), bundle, tmp_path / "found")
    assert (looked.fault, looked.other_batches) == (None, (3, 4))
    render_bisection(looked, Console(file=(printed := io.StringIO()), width=200))
    assert "what takes 3 and 4 samples at once" in printed.getvalue()


def test_fixed_inputs_and_a_reduction_of_ones_own_are_taken(made: Path, tmp_path: Path) -> None:
    source = f"{MODELS}:two_inputs"
    answer = compile_model(source, tmp_path / "out", "--constant", "mask")
    assert answer.code == 0, answer
    answer = tokexport("verify", tmp_path / "out", "--against", source, "--json")
    assert answer.code == 0, answer
    given = ("--reduce", "tome:r=3")
    found = against(made / "ort-fp32", made / "weights.pt", *given)
    assert found.code == 2, found  # other tokens than the bundle gives


def test_a_source_of_other_inputs_is_refused(made: Path, tmp_path: Path) -> None:
    answer = tokexport(
        "verify", made / "ort-int8", "--against", f"{MODELS}:two_inputs", "--code-path", TESTS
    )
    assert answer.code == 2, answer


def test_options_of_a_source_need_one(made: Path, tmp_path: Path) -> None:
    answer = tokexport("verify", made / "ort-fp32", "--inputs", made / "x.npz")
    refusal(answer, 2, tmp_path, "A bundle alone is held to its own reference data", "--against")
