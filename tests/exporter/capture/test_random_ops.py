"""Random numbers at inference are refused with their line, or dropped, which is reported."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.cli import compile_model, refusal, tokexport
from helpers.thorough import thorough_but
from models import noisy

from tokexport.runtimes.loading import load

MODELS = "models.noisy"


def line_of(model: str) -> str:
    """The line that draws the noise of a model, called by its forward."""
    lines = inspect.getsource(noisy).splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if line.endswith(f"# {model}"))
    return f"{noisy.__file__}:{number}, in noise: "


@pytest.mark.parametrize(
    ("model", "operator", "what"),
    [
        ("tie_breaking", "aten.rand.default", "draws random numbers at inf"),
        ("gumbel", "aten.exponential.default", "other outputs when it runs"),
        ("flips", "aten.bernoulli.default", "draws random numbers at inference"),
    ],
)
def test_noise_is_refused_with_its_line(
    model: str, operator: str, what: str, tmp_path: Path
) -> None:
    answer = compile_model(f"{MODELS}:{model}", tmp_path / "out")
    refusal(answer, 3, tmp_path, what, f"{operator} at {line_of(model)}", "pass --drop-noise")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", thorough_but(["ort"], ["ort", "openvino"]))
@pytest.mark.parametrize(
    ("model", "changes"),
    [("tie_breaking", False), ("gumbel", True), ("flips", False)],
)
def test_noise_is_dropped_and_what_that_did_is_reported(
    model: str, changes: bool, target: str, tmp_path: Path
) -> None:
    arguments = (f"{MODELS}:{model}", tmp_path / "out", "--drop-noise")
    answer = compile_model(*arguments, "--json", target=target)
    assert answer.code == 0, answer
    noise = answer.json["random_ops"]
    (draw,) = noise["draws"]
    assert line_of(model) in draw
    change = noise["change"]["output"]
    assert (change["relative"] > 1e-3) == changes
    assert (change["relative"] == 0) == (not changes)
    assert change["top1_agreement"] is not None
    assert -1 <= change["cosine"] <= 1 + 1e-9
    assert [stage["passed"] for stage in answer.json["stages"]] == [True] * len(
        answer.json["stages"]
    )

    shown = compile_model(*arguments, "--force", target=target)
    assert "Parity with the model without its random numbers" in shown.stdout
    assert "compared with one run as it was given" in shown.stdout
    assert line_of(model) in shown.stdout

    x = np.random.default_rng(3).standard_normal((2, 12, 8), dtype=np.float32)
    plain = getattr(noisy, model)()[0]
    plain.noise = lambda scores: torch.zeros_like(scores)  # a mean shifts all scores alike
    with load(tmp_path / "out") as runner, torch.no_grad():
        found = runner.run({"x": x})["output"]
        np.testing.assert_allclose(found, plain(torch.from_numpy(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize("extra", [[], ["--drop-noise"]])
def test_a_permutation_has_no_mean(extra: list[str], tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:shuffled", tmp_path / "out", *extra)
    said = ("a permutation that is drawn has no mean", line_of("shuffled"))
    message = refusal(answer, 3, tmp_path, *said)
    assert "pass --drop-noise" not in message


def test_without_noise_the_option_changes_nothing(tmp_path: Path) -> None:
    models = []
    for name, extra in (("with", ["--drop-noise"]), ("without", [])):
        answer = compile_model(f"{MODELS}:silent", tmp_path / name, "--json", *extra)
        assert (answer.code, answer.json["random_ops"]) == (0, None)
        models.append((tmp_path / name / "model.onnx").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("extra", [[], ["--drop-noise"]])
def test_what_no_output_reads_does_not_count(extra: list[str], tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:unread", tmp_path / "out", "--json", *extra)
    assert (answer.code, answer.json["random_ops"]) == (0, None)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert not [node.op_type for node in graph.node if node.op_type.startswith("Random")]


def test_inspect_names_the_noise_and_refuses_nothing() -> None:
    answer = tokexport("inspect", f"{MODELS}:tie_breaking", "--target", "ort", "--json")
    assert answer.code == 0
    (draw,) = json.loads(answer.stdout)["random_ops"]
    assert draw.startswith(f"aten.rand.default at {line_of('tie_breaking')}")
    shown = tokexport("inspect", f"{MODELS}:tie_breaking", "--target", "ort")
    assert "Draws random numbers" in shown.said
    assert line_of("tie_breaking") in shown.stdout
    silent = tokexport("inspect", f"{MODELS}:silent", "--target", "ort")
    assert "Draws random numbers" not in silent.said
