"""A compile with a recipe: held to the reduced module, and told apart from the unreduced one."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.cli_models import PlainVit, plain_vit
from rich.console import Console

import tokexport
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.errors import UsageError
from tokexport.exporter.inspection import GIVEN_MEANS, inspect
from tokexport.exporter.report import render
from tokexport.runtimes import load
from tokexport.runtimes.manifest import read_manifest
from tokexport.runtimes.verification import verify_bundle

RECIPE = "tome:r=4"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    x = random.standard_normal((5, 3, 24, 24)) + 2 * random.standard_normal((5, 3, 1, 1))
    path = tmp_path_factory.mktemp("samples") / "data.npz"
    np.savez(path, x=x.astype(np.float32), labels=np.array([1, 4, 1, 1, 4]))
    return path


@pytest.fixture(scope="module")
def compiled(samples: Path) -> CompileResult:
    model, example = plain_vit()
    return tokexport.compile(
        model, example, output=samples.parent / "out", inputs=samples, reduce=RECIPE
    )


def answers(model: torch.nn.Module, samples: Path) -> dict[str, np.ndarray]:
    with torch.no_grad():
        rows = [model(x[None]) for x in torch.from_numpy(np.load(samples)["x"])]
    return {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}


def test_the_artifact_answers_as_the_reduced_module(compiled: CompileResult, samples: Path) -> None:
    model, example = plain_vit()
    wanted = answers(tokexport.reduce(model, RECIPE, example), samples)
    unreduced = answers(model, samples)
    with load(compiled.bundle) as runner:
        rows = [runner.run({"x": x[None]}) for x in np.load(samples)["x"]]
    logits = np.concatenate([row["logits"] for row in rows])
    np.testing.assert_allclose(logits, wanted["logits"], rtol=0, atol=1e-4)
    assert np.abs(logits - unreduced["logits"]).max() > 1e-2
    assert verify_bundle(compiled.bundle).passed


def test_the_report_has_the_reduction_and_its_cost(compiled: CompileResult) -> None:
    report: dict[str, Any] = compiled.report.to_json()
    reduction = report["reduction"]
    assert reduction["recipe"] == RECIPE
    assert reduction["options"] == {
        "layers": None,
        "r": 4,
        "inflection": 0.0,
        "prop_attn": True,
    }
    assert reduction["tokens"] == [37, 33, 29, 25]
    assert report["token_schedule"] == [37, 33, 29]
    assert 0.9 < reduction["agreement"]["logits"]["cosine"] < 1
    assert reduction["accuracy_reduced"] == report["accuracy"]["before"]
    assert reduction["accuracy_unreduced"] == 1.0
    assert list(report["stage_seconds"])[0] == "reduce"


def test_the_unreduced_model_is_timed_in_the_same_rounds(compiled: CompileResult) -> None:
    speed, over = compiled.report.speed, compiled.report.speed_over_unreduced
    assert speed is not None
    assert over is not None
    assert speed.baseline.startswith("eager, ")
    assert over.baseline.startswith("unreduced eager, ")
    assert over.timings == speed.timings
    (timed,) = {*speed.timings} - {speed.baseline, over.baseline}
    assert re.fullmatch(r"ort fp32, \d+ threads?", timed)
    medians = {name: timing.median_ms for name, timing in speed.timings.items()}
    ratio = over.ratios[timed].of_medians
    assert ratio == pytest.approx(medians[over.baseline] / medians[timed])


def test_the_manifest_records_the_recipe(compiled: CompileResult) -> None:
    reduction = read_manifest(compiled.bundle).reduction
    assert reduction is not None
    assert reduction["recipe"] == RECIPE
    assert reduction["method"] == "tome"
    assert reduction["blocks"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert reduction["special_tokens"] == 1


def test_the_summary_shows_it(compiled: CompileResult) -> None:
    file = io.StringIO()
    render(compiled.report, Console(file=file, width=120))
    said = " ".join(file.getvalue().split())
    assert "tome:r=4 in the 3 blocks of 'blocks', 1 special token " in said
    assert "37 → 33 29 25 tokens behind each block" in said
    assert "Parity with the model with its reduction" in said
    assert "Speed over unreduced eager" in said
    assert "tokens: cannot be compared with the unreduced model's" in said


def test_the_given_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, example = plain_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(example)["logits"]
    result = tokexport.compile(
        model, example, output=tmp_path / "out", reduce="tome", restore=True, timed=False
    )
    assert result.report.speed is None
    assert result.report.speed_over_unreduced is None
    assert result.report.reduction is not None
    assert result.report.reduction.agreement["tokens"] is not None
    assert type(model.get_submodule("blocks.0")).__name__ == "PlainBlock"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(example)["logits"], wanted, rtol=0, atol=0)


def test_a_recipe_of_a_file_with_a_schedule(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('method = "tome"\nr = [6, 0, 2]\n')
    model, example = plain_vit()
    found = inspect(model, example, targets=(), reduce=tmp_path / "recipe.toml")
    assert found.recipe == "tome:r=[6,0,2]"
    assert [part.tokens_out for part in found.blocks] == [31, 31, 29]


def test_inspect_counts_the_given_model_itself() -> None:
    model, example = plain_vit()
    plain = inspect(model, example, targets=())
    reduced = inspect(model, example, targets=(), reduce=RECIPE)
    assert reduced.unreduced == plain.macs
    assert reduced.unreduced_means == GIVEN_MEANS
    assert sum(reduced.macs.values()) < sum(plain.macs.values())
    assert [part.tokens_in for part in reduced.blocks] == [37, 33, 29]
    assert reduced.to_json()["recipe"] == RECIPE
    assert plain.recipe == ""


def test_a_schedule_of_another_length_is_refused(tmp_path: Path) -> None:
    model, example = plain_vit()
    with pytest.raises(UsageError, match="2 numbers, and the model has 3 blocks"):
        tokexport.compile(model, example, output=tmp_path / "out", reduce="tome:r=[4,4]")
    assert list(tmp_path.iterdir()) == []


def test_restore_without_reduce_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--restore"):
        tokexport.compile(PlainVit(), output=tmp_path / "out", restore=True)
