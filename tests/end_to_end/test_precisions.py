"""Reduced precisions on a trained ViT, with token merging and without, through a whole compile."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from digits_demo import digits, train
from digits_vit import Block, DigitsViT
from helpers.thorough import thorough_but
from torch import nn

import tokexport
from tokexport.exporter.build.precision import precision_warnings
from tokexport.exporter.compile import CompileResult
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.errors import GateError
from tokexport.exporter.parity.gate_warnings import advice_for
from tokexport.exporter.parity.gates import SPREAD_TOLERANCE
from tokexport.exporter.parity.proof import ParityError
from tokexport.runtimes.processor import sums_saturate
from tokexport.runtimes.verification import verify_bundle

MERGING, PLAIN = (0, 3, 3, 3, 0), (0, 0, 0, 0, 0)
BATCH = 100


@dataclass(frozen=True)
class Digits:
    """A trained ViT and labelled images.

    Attributes:
        trained: It merges tokens.
        images: All 1797 of them, with their labels.
        few: The first 100 of them.
    """

    trained: DigitsViT
    images: Path
    few: Path

    def model(self, merge: tuple[int, ...]) -> DigitsViT:
        """Returns the model with other numbers of merged tokens and the same weights."""
        model = DigitsViT(merge=merge)
        model.load_state_dict(self.trained.state_dict())
        return model.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    train_x, test_x, train_y, test_y = digits(0)
    torch.manual_seed(0)
    model = train(DigitsViT(merge=MERGING), train_x, train_y, epochs=12)
    images, labels = torch.cat([test_x, train_x]).numpy(), torch.cat([test_y, train_y]).numpy()
    np.savez(folder / "images.npz", image=images, labels=labels)
    np.savez(folder / "few.npz", image=images[:100], labels=labels[:100])
    return Digits(model, folder / "images.npz", folder / "few.npz")


def compiled(
    model: nn.Module, images: Path, target: str, output: Path, precision: str, **options: object
) -> CompileResult:
    """Compiles a ViT of digits, untimed."""
    settings = {"inputs": images, "batch": BATCH, "timed": False, **options}
    example = torch.zeros(BATCH, 1, 8, 8)
    return tokexport.compile(  # type: ignore[call-overload,no-any-return]
        model, example, target, output=output, precision=precision, **settings
    )


@pytest.mark.parametrize(
    ("merge", "target", "quantization"),
    thorough_but(
        [(MERGING, "ort", "static"), (MERGING, "openvino", None)],
        [
            (merge, *way)
            for merge in (MERGING, PLAIN)
            for way in (("ort", "dynamic"), ("ort", "static"), ("openvino", None))
        ],
    ),
)
def test_int8_keeps_the_answers_of_a_trained_vit(
    merge: tuple[int, ...], target: str, quantization: str | None, trained: Digits, tmp_path: Path
) -> None:
    model = trained.model(merge)
    result = compiled(
        model, trained.images, target, tmp_path / "out", "int8", quantization=quantization
    )
    report = result.report
    assert result.status == "PASSED"
    assert report.accuracy is not None
    assert report.accuracy.samples == 1797
    assert report.accuracy.before > 0.85
    assert report.accuracy.after >= report.accuracy.before - 0.005
    artifact = report.stages[-1]
    (comparison,) = artifact.comparisons.values()
    assert comparison.cosine > 0.99
    assert comparison.relative > 1e-4  # it is int8 that ran
    gate = artifact.gates["output"]
    assert gate.least_cosine == 0.99
    error = gate.spread_error(comparison)
    assert error is not None
    assert error < SPREAD_TOLERANCE / 4  # a processor without VNNI has the largest, 0.08
    in_fp32 = [
        stage for stage in report.stages if stage.name not in ("without kernels", "artifact")
    ]
    assert len(in_fp32) >= 3
    assert all(stage.gates["output"].tolerance < 1e-3 for stage in in_fp32)
    assert report.runtime is not None
    assert report.runtime.details["quantization"] == (quantization or "static")
    verified = verify_bundle(result.bundle)
    assert verified.passed
    assert verified.outputs[0].least_cosine == 0.99
    assert verified.outputs[0].spread_tolerance == SPREAD_TOLERANCE
    if target == "ort":
        assert report.runtime.details["weight_bits"] == (7 if sums_saturate() else 8)
    if target == "openvino":
        assert {"i8", "u8"} & {*verified.runtime.details["layer_precisions"]}  # type: ignore[misc]
    else:
        nodes = onnx.load(result.bundle / "model.onnx").graph.node
        integer = "integer_linear" if quantization == "dynamic" else "MatMulIntegerToFloat"
        found = sum(node.op_type.startswith(integer) for node in nodes)
        assert found == 4 * len(merge) + 1  # queries apart from keys and values at the end


def spoilt(model: DigitsViT) -> DigitsViT:
    """Returns the same function with a channel in every block that dwarfs the others."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        assert isinstance(block, Block)
        first = block.mlp[0]
        assert isinstance(first, nn.Linear)
        for norm, linear in ((block.norm1, block.attention.qkv), (block.norm2, first)):
            with torch.no_grad():
                norm.weight[0] *= 1e4
                norm.bias[0] *= 1e4
                linear.weight[:, 0] /= 1e4
    return model


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[DigitsViT, Path]:
    """A small ViT that int8 breaks, and images with the classes that it gives them in fp32."""
    torch.manual_seed(0)
    model = spoilt(DigitsViT(width=32, merge=(3, 0)).eval())
    images = torch.rand(BATCH, 1, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(dim=-1).numpy()
    path = tmp_path_factory.mktemp("broken") / "images.npz"
    np.savez(path, image=images.numpy(), labels=labels)
    return model, path


def test_a_broken_quantisation_fails_and_says_what_to_do(
    broken: tuple[DigitsViT, Path], tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=r"has a cosine of -?0\.\d+ to eager's") as caught:
        compiled(*broken, "ort", tmp_path / "out", "int8")
    assert "Parity failed at 'artifact'" in caught.value.what
    assert "The stages before it compute in fp32" in caught.value.where
    assert "--quantization" in caught.value.fix
    assert "--precision fp32" in caught.value.fix
    assert not (tmp_path / "out").exists()
    assert caught.value.report is not None
    assert [stage.passed for stage in caught.value.report.stages] == [True, True, True, False]


def test_the_share_of_right_answers_is_a_gate_of_its_own(
    broken: tuple[DigitsViT, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokexport.exporter.parity.default_gates.LEAST_COSINE", -1.0)
    monkeypatch.setattr("tokexport.exporter.parity.default_gates.SPREAD_TOLERANCE", 100.0)
    monkeypatch.setattr("tokexport.exporter.parity.default_gates.CHANNEL_TOLERANCE", 100.0)
    with pytest.raises(GateError, match=r"labelled samples are right, and .* in fp32") as caught:
        compiled(*broken, "ort", tmp_path / "out", "int8")
    assert "and 100.00% in fp32 (" in caught.value.what
    assert caught.value.report is not None
    found = caught.value.report.accuracy
    assert found is not None
    assert (found.lost, found.won) == (round((1 - found.after) * found.samples), 0)
    assert not (tmp_path / "out").exists()


def test_ranges_of_synthetic_inputs_are_warned_of(trained: Digits) -> None:
    drawn = CompileConfig(target="openvino", output=Path("out"), precision="int8")
    (warning,) = precision_warnings(drawn)
    assert "synthetic" in warning
    assert "--inputs" in warning
    assert precision_warnings(replace(drawn, inputs=trained.few)) == ()
    assert precision_warnings(replace(drawn, target="ort")) == ()


def test_weights_of_7_bits_are_had_on_every_processor(trained: Digits, tmp_path: Path) -> None:
    model = trained.model((0,) * len(MERGING))
    result = compiled(model, trained.few, "ort", tmp_path / "out", "int8", weight_bits=7)
    assert result.report.runtime is not None
    assert result.report.runtime.details["weight_bits"] == 7
    assert verify_bundle(result.bundle).passed


@pytest.mark.parametrize(
    ("target", "precision", "options", "advice"),
    [
        ("ort", "int8", {}, "Give real samples with --inputs; try --quantization static; or"),
        ("ort", "int8", {"inputs": Path("x.npz")}, "Try --quantization static; or compile with"),
        (
            "ort",
            "int8",
            {"inputs": Path("x.npz"), "quantization": "static"},
            "Give --inputs that are like real ones, and more of them; try --quantization dynamic;",
        ),
        (
            "openvino",
            "int8",
            {"inputs": Path("x.npz")},
            "Give --inputs that are like real ones, and more of them; or compile with",
        ),
        ("openvino", "bf16", {"inputs": Path("x.npz")}, "Compile with --precision fp32."),
        ("openvino", "fp16", {}, "Where the processor has no fp16, OpenVINO computes in bf16"),
        ("trt", "fp16", {}, "Numbers beyond 65504 are infinite in fp16: try --precision bf16"),
    ],
)
def test_the_advice_is_about_what_was_asked_for(
    target: str, precision: str, options: dict[str, Path | str], advice: str
) -> None:
    config = CompileConfig(target=target, output=Path("o"), precision=precision, **options)  # type: ignore[arg-type]
    assert advice_for(config).startswith(advice)
    assert advice_for(config).endswith("ompile with --precision fp32.")


@pytest.mark.parametrize("merge", [MERGING, pytest.param(PLAIN, marks=pytest.mark.thorough)])
def test_bf16_keeps_the_answers_in_openvino(
    merge: tuple[int, ...], trained: Digits, tmp_path: Path
) -> None:
    model = trained.model(merge)
    result = compiled(model, trained.few, "openvino", tmp_path / "out", "bf16")
    assert result.status == "PASSED"
    assert verify_bundle(result.bundle).passed


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("precision", "merge"),
    thorough_but([("fp16", MERGING)], [("fp16", MERGING), ("fp16", PLAIN), ("bf16", MERGING)]),
)
def test_a_typed_engine_is_built_and_its_graph_proven(
    precision: str, merge: tuple[int, ...], trained: Digits, tmp_path: Path
) -> None:
    result = compiled(
        trained.model(merge), trained.few, "trt", tmp_path / "out", precision, keep_stages=True
    )
    assert result.status == "BUILT, NOT RUN"
    lowered = result.report.stages[-1]
    assert lowered.name == "lowered"
    (comparison,) = lowered.comparisons.values()
    unit = {"fp16": 2**-11, "bf16": 2**-8}[precision]
    assert unit / 100 < comparison.relative  # it is half that was proven
    graph = onnx.load(tmp_path / "out.stages" / "lowered" / "model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert (result.bundle / "model.engine").stat().st_size > 10_000
