"""Counts that depend on the image: padded to a cap and proven, refused without one, or constant."""

from __future__ import annotations

import inspect
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import compile_model, refusal, tokexport
from helpers.thorough import thorough_but
from models import ragged

from tokexport.runtimes.errors import InputMismatchError
from tokexport.runtimes.loading import load

MODELS = "models.ragged"
TARGETS = ("ort", "openvino")
#: Per model, a cap that all 24 samples stay under, one that some exceed, and one that all do.
CAPS = {"sampled": (5, 4, 1), "halting": (12, 10, 3)}
MARK = {"sampled": "# sampled here", "halting": "# halted here"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    x = torch.randn(24, 12, 16, generator=torch.Generator().manual_seed(1))
    np.savez(path, x=x.numpy(), labels=np.arange(24) % 5)
    return path


def line_of(mark: str) -> str:
    """Returns ``file:line`` of the line in the models that ends in a comment."""
    source = inspect.getsource(ragged).splitlines()
    (number,) = (i for i, line in enumerate(source, 1) if line.endswith(mark))
    return f"{ragged.__file__}:{number}, in forward: "


@pytest.mark.parametrize(
    ("model", "target"),
    thorough_but(zip(CAPS, TARGETS, strict=False), itertools.product(CAPS, TARGETS)),
)
def test_all_samples_fit(model: str, target: str, samples: Path, tmp_path: Path) -> None:
    cap, *_ = CAPS[model]
    answer = compile_model(
        *(f"{MODELS}:{model}", tmp_path / "out", "--inputs", samples),
        *("--token-cap", cap, "--json"),
        target=target,
    )
    assert answer.code == 0, answer
    found = answer.json
    assert found["samples"] == 24
    assert (found["token_cap"]["caps"], found["token_cap"]["exceeding"]) == ([cap], 0)
    assert {
        place["line"].startswith(line_of(MARK[model])) for place in found["token_cap"]["places"]
    }
    assert max(place["largest"] for place in found["token_cap"]["places"]) == cap
    assert not [line for line in found["warnings"] if "token-cap" in line]
    assert all(stage["passed"] and stage["ties"] is None for stage in found["stages"])

    built, x = getattr(ragged, model)()
    fresh = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    with load(tmp_path / "out") as runner, torch.no_grad():
        for image in fresh[:, None]:
            found = runner.run({"x": image.numpy()})["output"]
            np.testing.assert_allclose(found, built(image).numpy(), atol=1e-5)


@pytest.mark.parametrize("model", thorough_but([*CAPS][:1], CAPS))
def test_samples_that_exceed_are_left_out_and_counted(
    model: str, samples: Path, tmp_path: Path
) -> None:
    _, cap, _ = CAPS[model]
    arguments = (f"{MODELS}:{model}", tmp_path / "out", "--inputs", samples, "--token-cap", cap)
    shown = compile_model(*arguments)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    exceeding = found["token_cap"]["exceeding"]
    assert 0 < exceeding < 24
    assert found["samples"] == found["accuracy"]["samples"] == 24 - exceeding
    (warning,) = [line for line in found["warnings"] if "--token-cap" in line]
    assert warning.startswith(f"{exceeding} of 24 batches choose more than --token-cap {cap} rows")
    assert f"up to {CAPS[model][0]}: they are not part of the proof" in warning
    assert warning.endswith("a runner refuses them.")
    refused = 0
    with np.load(samples) as file, load(tmp_path / "out") as runner:
        for x in file["x"][:, None]:
            try:
                assert [*runner.run({"x": x})] == ["output"]
            except InputMismatchError:
                refused += 1
    assert refused == exceeding
    assert [spec.name for spec in runner.outputs] == ["output"]
    assert warning in shown.said
    assert line_of(MARK[model]) in shown.said


@pytest.mark.parametrize("model", thorough_but([*CAPS][:1], CAPS))
def test_a_cap_that_all_exceed_is_refused(model: str, samples: Path, tmp_path: Path) -> None:
    most, _, cap = CAPS[model]
    answer = compile_model(
        *(f"{MODELS}:{model}", tmp_path / "out", "--inputs", samples, "--token-cap", cap)
    )
    refusal(
        *(answer, 3, tmp_path, f"Every batch chooses more rows than --token-cap {cap}"),
        *(f"Pass --token-cap {most}, or more", line_of(MARK[model])),
    )


@pytest.mark.parametrize("model", thorough_but([*CAPS][-1:], CAPS))
def test_without_a_cap_the_line_is_named_and_what_to_write(model: str, tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:{model}", tmp_path / "out")
    refusal(
        *(answer, 3, tmp_path, "depends on the values of the input", line_of(MARK[model])),
        *("keep = scores.topk(K).indices; live = mask.gather(1, keep)", "--token-cap N"),
    )


@pytest.mark.parametrize("target", thorough_but(TARGETS[:1], TARGETS))
def test_the_ways_of_the_samples_are_selected(target: str, samples: Path, tmp_path: Path) -> None:
    answer = compile_model(
        *(f"{MODELS}:branching", tmp_path / "out", "--inputs", samples),
        *("--token-cap", 12, "--json"),
        target=target,
    )
    assert answer.code == 0, answer
    cap = answer.json["token_cap"]
    assert (answer.json["samples"], cap["left_out"]) == (24, 0)
    (check,) = [check for check, _ in cap["held"] if check["kind"] == "branch"]
    assert line_of("# dark here") in check["line"]
    assert line_of("# few here") in check["line"]
    model, x = ragged.branching()
    ways = set()
    with load(tmp_path / "out") as runner, torch.no_grad():
        for seed in range(40):
            image = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            found = runner.run({"x": image.numpy()})["output"]
            np.testing.assert_allclose(found, model(image).numpy(), atol=1e-5)
            ways.add((bool(image.mean() < 0), int((image[0, :, 0] > 0).sum()) < 4))
    assert len(ways) > 2


def test_a_way_that_no_sample_takes_is_refused_when_it_runs(tmp_path: Path) -> None:
    light = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "light.npz", x=light.numpy())
    answer = compile_model(
        *(f"{MODELS}:branching", tmp_path / "out", "--inputs", tmp_path / "light.npz"),
        *("--token-cap", "12,5"),
    )
    assert answer.code == 0, answer
    assert "12 of 12 at" in answer.stdout
    assert "none is refused" in answer.stdout
    assert "refused where the code branches otherwise than on the sample" in answer.stdout
    with load(tmp_path / "out") as runner:
        runner.run({"x": light[:1].numpy()})
        with pytest.raises(InputMismatchError, match="would not answer this input") as refused:
            runner.run({"x": -light[:1].numpy()})
    assert line_of("# dark here").removesuffix(", in forward: ") in refused.value.where
    assert tokexport("verify", tmp_path / "out").code == 0
    np.savez(tmp_path / "dark.npz", x=-light.numpy())
    arguments = ("--inputs", tmp_path / "dark.npz", "--output", tmp_path / "y.npz")
    answer = tokexport("run", tmp_path / "out", *arguments)
    assert (answer.code, "branches otherwise" in answer.stderr) == (2, True)


def test_choosing_none_is_proven_where_a_sample_does(samples: Path, tmp_path: Path) -> None:
    answer = compile_model(
        *("models.token_dropping:early_exit", tmp_path / "out", "--inputs", samples),
        *("--token-cap", "2,12,1,12", "--json"),
    )
    assert answer.code == 0, answer
    cap = answer.json["token_cap"]
    assert cap["caps"] == [2, 12, 1, 12]
    rooms = [(place["room"], place["least"], place["refuses_none"]) for place in cap["places"]]
    assert rooms == [(2, 0, False), (12, 10, True), (1, 0, False), (12, 9, True)]
    assert answer.json["samples"] == 24 - cap["left_out"]
    assert 0 < cap["exceeding"] < 24


def test_noise_is_dropped_before_rows_are_counted(tmp_path: Path) -> None:
    arguments = ("models.token_dropping:gumbel_sampling", tmp_path / "out", "--token-cap", 5)
    refusal(compile_model(*arguments), 3, tmp_path, "other outputs when it runs", "--drop-noise")
    found = compile_model(*arguments, "--drop-noise", "--json")
    assert found.code == 0, found
    assert len(found.json["random_ops"]["draws"]) == 1
    assert found.json["token_cap"]["left_out"] == 0
    assert all(stage["passed"] for stage in found.json["stages"])


@pytest.mark.thorough
def test_inspect_says_the_counts_that_it_meets(samples: Path) -> None:
    arguments = (f"{MODELS}:sampled", "--inputs", samples, "--target", "trt")
    shown = tokexport("inspect", *arguments, "--token-cap", "5,4")
    assert shown.code == 0, shown
    assert "3 to 5 of 5 at" in shown.stdout or "of 5 at" in shown.stdout
    assert line_of("# sampled here") in shown.stdout


def test_a_cap_is_suggested_only_where_it_helps(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:deviation", tmp_path / "out")
    message = refusal(answer, 3, tmp_path, "depends on the values of the input")
    assert "--token-cap" not in message


def test_what_padding_would_change_is_refused(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:deviation", tmp_path / "out", "--token-cap", 8)
    refusal(
        *(answer, 3, tmp_path, "aten.median.dim cannot be padded to a fixed number of tokens"),
        *("there is no rule for it", line_of("# mixed here")),
    )


@pytest.mark.parametrize(
    ("model", "target"),
    thorough_but(
        [("constant_mask", "ort"), ("one_row", "openvino")],
        itertools.product(("constant_mask", "one_row"), TARGETS),
    ),
)
def test_what_only_looks_dependent_needs_no_cap(model: str, target: str, tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:{model}", tmp_path / "out", "--json", target=target)
    assert answer.code == 0, answer
    assert answer.json["token_cap"] is None


def test_a_static_model_is_the_same_with_a_cap(tmp_path: Path) -> None:
    graphs = []
    for name, extra in (("with", ["--token-cap", 3]), ("without", [])):
        answer = compile_model(
            *("models.cli_models:with_inputs", tmp_path / name, "--json"), *extra
        )
        assert (answer.code, answer.json["token_cap"]) == (0, None)
        graphs.append((tmp_path / name / "model.onnx").read_bytes())
    assert graphs[0] == graphs[1]


def test_a_cap_below_one_is_refused(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:halting", tmp_path / "out", "--token-cap", 0)
    refusal(answer, 2, tmp_path, "--token-cap '0' is not a list", "197,150,120")
