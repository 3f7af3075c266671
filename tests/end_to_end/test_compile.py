"""The whole way of a model, for every target, on small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.thorough import thorough_but
from models.outputs import KeepsState, Returns, TwoInputs, Unsteady
from models.tiny_vit import image, tiny_tome
from torch import nn

import tokexport
import tokexport.runtimes
from tokexport.exporter.build import onnx_file
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.errors import (
    GateError,
    InputError,
    ModelNotSupportedError,
    OutputExistsError,
    UsageError,
)
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.verification import verify_bundle

TARGETS = ("ort", "openvino", "trt")
STAGES = {
    "ort": ["captured", "rewritten", "onnx", "artifact"],
    "openvino": ["captured", "rewritten", "onnx", "lowered", "without kernels", "artifact"],
    "trt": ["captured", "rewritten", "onnx", "lowered"],
}


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("target", thorough_but(["openvino", "trt"], TARGETS))
def test_a_class_patched_model_goes_the_whole_way(target: str, tmp_path: Path) -> None:
    result = tokexport.compile(tiny_tome(), image(), target, output=tmp_path / "bundle")
    assert result.status == (BUILT_NOT_RUN if target == "trt" else PASSED)
    assert [stage.name for stage in result.report.stages] == STAGES[target]
    assert all(stage.passed for stage in result.report.stages)
    assert result.report.token_schedule == (37, 34)
    assert result.report.recognised == {
        "bipartite_match": 2,
        "merge_tokens": 4,
        "sized_attention": 2,
    }
    manifest = read_manifest(result.bundle)
    assert manifest.token_schedule == (37, 34)
    assert [spec.name for spec in manifest.inputs] == ["x"]
    assert json.loads((result.bundle / "report.json").read_text())["status"] == result.status
    if target != "trt":
        assert verify_bundle(result.bundle).passed
        assert result.report.speed is not None


def test_the_persons_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_tome().train()
    shared = model._tome_info
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.no_grad():
        before = model(x)
    model.train()
    tokexport.compile(model, x, output=tmp_path / "bundle")
    assert all(module.training for module in model.modules())
    assert all(block._tome_info is shared for block in model.blocks)
    assert model._tome_info is shared
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), before)
    assert not [name for name, value in vars(model).items() if "Fake" in type(value).__name__]


def test_state_in_other_objects_than_dicts_is_put_back(tmp_path: Path) -> None:
    model = KeepsState().eval()
    tokexport.compile(model, torch.zeros(2, 6), output=tmp_path / "bundle")
    assert model.state.size is None
    assert list(model.schedule) == [1, 2, 3]


OUTPUTS: list[tuple[str, list[str], dict[str, object]]] = [
    ("tensor", ["output"], {}),
    ("tuple", ["output_0"], {"output_1": 4.25}),
    ("list", ["output_0", "output_1_0"], {}),
    ("dict", ["logits", "aux_scaled"], {"aux_flops": 12}),
    ("dataclass", ["logits", "features_0", "features_1"], {"tokens_left": 7}),
    ("named", ["logits", "mask"], {}),
    ("same twice", ["output_0", "output_1"], {}),
    ("input", ["output_0", "output_1"], {}),
    ("constant", ["output_0", "output_1"], {}),
    ("called like the input", ["x_out", "logits"], {}),
    ("two called like it", ["x_out_out", "x_out"], {}),
    ("a weight", ["output_0", "output_1"], {}),
]
#: What OpenVINO could name otherwise, or leave out.
OF_OPENVINO = ("dataclass", "same twice", "input", "called like the input", "a weight")


@pytest.mark.parametrize(
    ("form", "outputs", "constants", "target"),
    thorough_but(
        [
            *((*case, "ort") for case in OUTPUTS),
            *((*case, "openvino") for case in OUTPUTS if case[0] in OF_OPENVINO),
        ],
        [(*case, target) for case in OUTPUTS for target in ("ort", "openvino")],
    ),
)
def test_outputs_keep_names_and_numbers(
    form: str, outputs: list[str], constants: dict[str, object], target: str, tmp_path: Path
) -> None:
    model = Returns(form).eval()
    result = tokexport.compile(model, torch.zeros(2, 6), target, output=tmp_path / "bundle")
    manifest = read_manifest(result.bundle)
    assert [spec.name for spec in manifest.outputs] == outputs
    assert manifest.constant_outputs == constants
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    with tokexport.runtimes.load(result.bundle) as runner, torch.no_grad():
        found = runner.run({"x": x})
        expected = model.layer(torch.from_numpy(x)).numpy()
    assert list(found) == outputs
    name = outputs["input" in form or "like it" in form]
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_several_inputs_by_name_and_a_number_among_them(tmp_path: Path) -> None:
    example = {"pixels": torch.zeros(2, 6), "ids": torch.tensor([3, 6]), "scale": 2.0}
    model = TwoInputs().eval()
    result = tokexport.compile(model, example, output=tmp_path / "bundle")
    assert "ids from the example inputs" in result.report.inputs
    with tokexport.runtimes.load(result.bundle) as runner:
        assert [(spec.name, spec.dtype) for spec in runner.inputs] == [
            ("pixels", "float32"),
            ("ids", "int64"),
        ]
        pixels = np.ones((2, 6), np.float32)
        found = runner.run({"pixels": pixels, "ids": np.array([0, 5])})["output"]
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels), ids=torch.tensor([0, 5]), scale=2.0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_real_samples_labels_and_a_batch(tmp_path: Path) -> None:
    model = nn.Linear(6, 3).eval()
    samples = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    with torch.no_grad():
        labels = model(torch.from_numpy(samples)).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 3
    np.savez(tmp_path / "data.npz", input=samples, labels=labels)
    result = tokexport.compile(
        model, output=tmp_path / "bundle", inputs=tmp_path / "data.npz", batch=3
    )
    accuracy = result.report.accuracy
    assert accuracy is not None
    assert (accuracy.before, accuracy.after, accuracy.samples) == (6 / 7, 6 / 7, 7)
    assert read_manifest(result.bundle).inputs[0].shape == (3, 6)


@pytest.mark.parametrize("target", thorough_but(["openvino"], TARGETS))
def test_large_weights_go_into_a_file_of_their_own(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_DATA_BYTES", 1000)
    result = tokexport.compile(
        tiny_tome(), image(), target, output=tmp_path / "bundle", keep_stages=True
    )
    assert (tmp_path / "bundle.stages" / "lowered" / "model.onnx.data").stat().st_size > 100_000
    if target == "ort":
        assert "model.onnx.data" in read_manifest(result.bundle).files
    if target != "trt":
        assert verify_bundle(result.bundle).passed


def test_kept_stages_load_again(tmp_path: Path) -> None:
    result = tokexport.compile(tiny_tome(), image(), output=tmp_path / "bundle", keep_stages=True)
    stages = tmp_path / "bundle.stages"
    passes = json.loads((stages / "passes.json").read_text(encoding="utf-8"))
    assert passes == result.report.to_json()["passes"]
    fired = {(one["stage"], one["name"]): one["fired"] for one in passes}
    assert fired["rewrite", "recognise matches"] == 2
    assert fired["lower", "match by cosine"] + fired["lower", "cosine merge norm"] == 2
    assert fired["lower", "scored match"] == 0
    captured = torch.export.load(stages / "captured.pt2")
    rewritten = torch.export.load(stages / "rewritten.pt2")
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = tiny_tome()(x)
        assert torch.allclose(captured.module()(x)[0], expected, atol=1e-6)
        assert torch.allclose(rewritten.module()(x)[0], expected, atol=1e-6)
    assert (stages / "emitted" / "model.onnx").exists()
    assert (stages / "lowered" / "model.onnx").exists()


def test_a_speed_gate_that_fails_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="1000") as caught:
        tokexport.compile(
            nn.Linear(4, 4), torch.zeros(1, 4), output=tmp_path / "bundle", min_speedup=1000.0
        )
    assert caught.value.report is not None
    assert caught.value.report.status == "FAILED"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]


def test_a_required_run_fails_where_the_engine_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="--require-run"):
        tokexport.compile(tiny_tome(), image(), "trt", output=tmp_path / "bundle", require_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("collision", "Two outputs of the model would be called 'a_0'."),
        ("infinity", "The model returns inf as 'output_1'"),
        ("set", "The model returns a set, which is neither a tensor"),
        ("empty", "The model returns 'output_1' without a number in it: its shape is (1, 0)."),
        ("complex", "Output 'output' is torch.complex64 on cpu, and outputs are real numbers"),
    ],
)
def test_outputs_that_no_bundle_can_hold_are_refused(form: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupportedError) as caught:
        tokexport.compile(Returns(form), torch.zeros(1, 6), output=tmp_path / "bundle")
    assert caught.value.what.startswith(said)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_refused(precision: torch.dtype, tmp_path: Path) -> None:
    model = Returns("tensor").to(precision)
    with pytest.raises(UsageError, match=f"The model is in {str(precision)[6:]}") as caught:
        tokexport.compile(model, torch.zeros(1, 6, dtype=precision), output=tmp_path / "bundle")
    assert "model.float()" in caught.value.fix


def test_a_model_that_rounding_decides_proves_nothing(tmp_path: Path) -> None:
    example = torch.zeros(1, 6)
    with pytest.raises(GateError, match="so nothing can be proven equal to it") as caught:
        tokexport.compile(Unsteady(), example, output=tmp_path / "bundle")
    assert "--atol" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.failed"]


def test_state_that_nests_deep_is_put_back() -> None:
    model = Returns("tensor")
    innermost: list[object] = [1]
    nested = innermost
    for _ in range(5000):
        nested = [nested]
    model.history = nested  # type: ignore[assignment]
    with evaluation(model):
        innermost.append(2)
    assert innermost == [1]


@pytest.mark.parametrize(
    "options",
    [{"batch": 2.5}, {"batch": True}, {"input_shape": (-1, 6)}, {"inputs": 5}],
)
def test_options_of_a_wrong_kind_are_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        tokexport.compile(Returns("tensor"), torch.zeros(1, 6), output=tmp_path / "b", **options)


def test_an_example_without_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="An example input is empty"):
        tokexport.compile(Returns("tensor"), torch.zeros(0, 6), output=tmp_path / "bundle")


def test_a_tolerance_does_not_loosen_whole_numbers(tmp_path: Path) -> None:
    model = Returns("named")
    result = tokexport.compile(model, torch.zeros(2, 6), output=tmp_path / "bundle", atol=10.0)
    gates = result.report.gates
    assert gates["mask"].tolerance == 0
    assert gates["logits"].reason == "--atol 10"


def test_another_shape_keeps_the_dtype_of_the_example(tmp_path: Path) -> None:
    model = nn.Embedding(300, 4)
    result = tokexport.compile(
        model, torch.zeros(1, 2, dtype=torch.int32), output=tmp_path / "b", input_shape=(3, 5)
    )
    (spec,) = read_manifest(result.bundle).inputs
    assert (spec.shape, spec.dtype) == ((3, 5), "int32")


def test_kept_stages_never_replace_other_things(tmp_path: Path) -> None:
    folder = tmp_path / "bundle.stages"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds other things"):
        tokexport.compile(
            nn.Linear(4, 4),
            torch.zeros(1, 4),
            output=tmp_path / "bundle",
            keep_stages=True,
            force=True,
        )
    assert (folder / "thesis.txt").read_text() == "mine"


def test_an_existing_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    tokexport.compile(nn.Linear(4, 4), torch.zeros(1, 4), output=output)
    with pytest.raises(OutputExistsError):
        tokexport.compile(nn.Linear(4, 4), torch.zeros(1, 4), output=output)
    tokexport.compile(nn.Linear(4, 2), torch.zeros(1, 4), output=output, force=True)
    assert read_manifest(output).outputs[0].shape == (1, 2)


def test_an_output_of_zeros_is_said_to_prove_nothing(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    result = tokexport.compile(model, torch.zeros(1, 4), output=tmp_path / "bundle")
    assert any("proves nothing" in warning for warning in result.report.warnings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "tflite"}, "no target 'tflite'"),
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"batch": 0}, "batch is 0"),
        ({"atol": -1.0}, "atol"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_options_are_refused(
    options: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        tokexport.compile(nn.Linear(4, 4), torch.zeros(1, 4), output=tmp_path / "b", **options)
