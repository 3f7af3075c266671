"""Any two of bundle, ONNX, IR and source are compared on the same inputs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.cli import MODELS, Answer, compile_model, refusal, tokexport
from onnx import helper
from torch import Tensor, nn

import tokexport as package

SOURCE = f"{MODELS}:plain_vit"
REDUCED = ("--reduce", "tome:r=4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one model: reduced for ort and openvino, unreduced, and reduced at batch 3."""
    folder = tmp_path_factory.mktemp("made")
    for name, target, options in (
        ("ort", "ort", (*REDUCED, "--keep-stages")),
        ("openvino", "openvino", REDUCED),
        ("whole", "ort", ()),
        ("three", "ort", (*REDUCED, "--batch", "3")),
    ):
        answer = compile_model(SOURCE, folder / name, *options, target=target)
        assert answer.code == 0, answer
    return folder


def compared(*arguments: object) -> Answer:
    answer = tokexport("compare", *arguments, "--json")
    assert answer.code == 0, answer
    return answer


def test_a_bundle_is_identical_to_itself(made: Path) -> None:
    found = compared(made / "ort", made / "ort").json
    assert (found["verdict"], found["tolerance"]) == ("identical", 0.0)
    assert found["reference"]["kind"] == found["candidate"]["kind"] == "bundle"
    assert {one["sqnr_db"] for one in found["outputs"].values()} == {"Infinity"}
    assert "reference data" in found["inputs"]


@pytest.mark.parametrize("candidate", ["openvino", "three", "ort.stages/emitted/model.onnx"])
@pytest.mark.parametrize("way", ["bundle", "source"])
def test_what_was_compiled_from_one_model_is_near(made: Path, candidate: str, way: str) -> None:
    reference = (made / "ort",) if way == "bundle" else (SOURCE, *REDUCED)
    found = compared(reference[0], made / candidate, *reference[1:]).json
    assert {*found["outputs"]} == {"logits", "tokens"}
    assert 0 <= found["tolerance"] < 1e-4
    for one in found["outputs"].values():
        assert one["comparison"]["cosine"] > 0.999999
        assert one["sqnr_db"] == "Infinity" or one["sqnr_db"] > 90


def test_an_ir_is_taken(made: Path) -> None:
    (ir,) = (made / "openvino").glob("*.xml")
    found = compared(ir, made / "openvino").json
    assert found["reference"]["kind"] == "OpenVINO IR"
    assert found["tolerance"] < 1e-4


def test_the_samples_of_a_file_are_split_by_each_side(made: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 24, 24)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = compared(made / "ort", made / "three", "--inputs", tmp_path / "x.npz").json
    assert (found["samples"], found["inputs"]) == (5, "5 samples of x.npz")
    assert found["tolerance"] < 1e-4


def test_a_moved_weight_fails_a_tolerance(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "ort.stages" / "emitted" / "model.onnx")
    weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    array = onnx.numpy_helper.to_array(weight).copy()
    array.reshape(-1)[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "moved.onnx")
    arguments = ("compare", made / "ort", tmp_path / "moved.onnx", "--tolerance", "1e-4")
    answer = tokexport(*arguments)
    refusal(answer, 1, tmp_path, "The two differ by more than the tolerance 0.0001: output")
    assert "different" in answer.stdout
    found = tokexport(*arguments, "--json").json
    assert (found["exit_code"], found["verdict"]) == (1, "different")
    assert found["tolerance"] > 1e-4


def test_models_of_other_outputs_are_refused(made: Path, tmp_path: Path) -> None:
    answer = tokexport("compare", made / "ort", made / "whole")
    refusal(answer, 2, tmp_path, "Output 'tokens' is float32", "on the other")


def test_models_of_other_inputs_are_refused(made: Path, tmp_path: Path) -> None:
    answer = tokexport("compare", made / "ort", f"{MODELS}:two_inputs")
    assert answer.code == 2, answer


def test_other_names_are_paired_by_their_order(tmp_path: Path) -> None:
    one, other = (_doubled(tmp_path / f"{name}.onnx", name) for name in ("a", "b"))
    found = compared(one, other, "--seed", "3").json
    assert found["verdict"] == "identical"
    assert found["notes"] == [
        "The inputs are paired by their order: x_a is x_b.",
        "The outputs are paired by their order: y_a is y_b.",
    ]


def test_sizes_that_a_file_leaves_open_are_the_other_sides(tmp_path: Path) -> None:
    fixed, free = _doubled(tmp_path / "a.onnx", "a"), _doubled(tmp_path / "free.onnx", "a", "n")
    found = compared(free, fixed).json
    assert (found["verdict"], found["samples"]) == ("identical", 8)
    open_ended = compared(free, free, "--batch", "5").json
    assert open_ended["samples"] == 20


def test_a_size_that_nobody_says_is_named(tmp_path: Path) -> None:
    path = _doubled(tmp_path / "a.onnx", "a", 2, "channels")
    answer = tokexport("compare", path, path)
    refusal(answer, 2, tmp_path, "Input 'x_a' leaves sizes open", "fixed shapes")


def test_a_reduction_without_a_source_is_refused(made: Path, tmp_path: Path) -> None:
    answer = tokexport("compare", made / "ort", made / "three", *REDUCED)
    refusal(answer, 2, tmp_path, "--reduce goes into a source")


@pytest.mark.parametrize("name", ["no.onnx", "no.xml", "no:source"])
def test_what_is_not_there_is_said_so(made: Path, name: str, tmp_path: Path) -> None:
    answer = tokexport("compare", made / "ort", tmp_path / name if "." in name else name)
    assert answer.code == 2, answer


def test_a_source_of_a_module_with_its_own_inputs(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:two_inputs", tmp_path / "out")
    assert answer.code == 0, answer
    found = compared(f"{MODELS}:two_inputs", tmp_path / "out").json
    assert {*found["outputs"]} == {"scores", "total"}
    assert found["tolerance"] < 1e-5


class Embeds(nn.Module):
    """Takes whole numbers, a table that is none of samples, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4)

    def forward(self, ids: Tensor, shift: Tensor, twice: bool = False) -> dict[str, Any]:
        x = self.table(ids) + shift
        return {"rows": x * 2 if twice is True else x, "classes": 9}


def embeds() -> nn.Module:
    return Embeds().eval()


@pytest.mark.parametrize("batch", [1, 2])
def test_whole_numbers_tables_and_switches_are_taken(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embeds", sys.modules[__name__])
    draw = np.random.default_rng(0)
    ids, shift = draw.integers(0, 9, (4, 3)), draw.standard_normal((3, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", ids=ids, shift=shift)
    for count in (batch, 4):
        examples = {"ids": torch.from_numpy(ids[:count]), "shift": torch.from_numpy(shift)}
        package.compile(
            embeds(),
            examples,
            output=tmp_path / str(count),
            inputs=tmp_path / "in.npz",
            constants={"twice": True},
            timed=False,
        )
    one, four = tmp_path / str(batch), tmp_path / "4"
    for pair in ((one, four), (four, one), ("embeds:embeds", one)):
        assert compared(*pair).json["tolerance"] < 1e-5, pair
    found = tokexport("verify", one, "--against", "embeds:embeds", "--json").json
    assert found["exit_code"] == 0, found
    monkeypatch.setattr(Embeds, "forward", _says_eight(Embeds.forward))
    found = tokexport("verify", one, "--against", "embeds:embeds", "--json").json
    assert found["exit_code"] == 1
    assert "what it returns is another: classes is 9 in the bundle and 8" in found["why_not"]


def _says_eight(forward: Any) -> Any:
    def changed(self: Embeds, ids: Tensor, shift: Tensor, twice: bool = False) -> dict[str, Any]:
        return {**forward(self, ids, shift, twice), "classes": 8}

    return changed


def test_an_output_of_one_side_alone_is_a_difference(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "ort" / "model.onnx")
    del model.graph.output[1:]
    onnx.save(model, tmp_path / "fewer.onnx")
    found = compared(made / "ort", tmp_path / "fewer.onnx").json
    assert (found["verdict"], found["alone"]) == ("different", ["tokens"])
    answer = tokexport("compare", made / "ort", tmp_path / "fewer.onnx", "--tolerance", "1")
    refusal(answer, 1, tmp_path, "output 'tokens' is on one side only")


def test_the_table_says_both_sides_and_the_tolerance(made: Path) -> None:
    answer = tokexport("compare", made / "ort", made / "openvino")
    assert answer.code == 0, answer
    assert f"reference {made / 'ort'} (bundle, onnxruntime-cpu" in answer.said
    assert "…" not in answer.said
    for part in ("SQNR dB", "top-1", "logits", "every value within a tolerance of"):
        assert part in answer.said


def _doubled(path: Path, name: str, batch: int | str = 2, channels: int | str = 3) -> Path:
    """Writes a model that doubles its input (batch, channels)."""
    shape = [batch, channels]
    x, y = (
        helper.make_tensor_value_info(f"{one}_{name}", onnx.TensorProto.FLOAT, shape)
        for one in "xy"
    )
    node = helper.make_node("Add", [f"x_{name}", f"x_{name}"], [f"y_{name}"])
    graph = helper.make_graph([node], "doubled", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path
