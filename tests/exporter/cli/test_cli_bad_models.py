"""Models that cannot become a static graph, or whose answers prove nothing: each says its line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from helpers.cli import MODELS, compile_model, refusal
from models import cli_models

COUNT = "Make the count a constant (top-k with a fixed k"


def line_of(mark: str) -> str:
    """Returns ``file:line`` of the line in the models that ends in the comment ``mark``."""
    source = inspect.getsource(cli_models).splitlines()
    (number,) = (i for i, line in enumerate(source, 1) if line.endswith(f"# {mark}"))
    return f"{cli_models.__file__}:{number}, in forward: "


@pytest.mark.parametrize(
    ("model", "mark", "parts"),
    [
        (
            "Draws",
            "drawn here",
            ("runs again", "aten.rand_like", "--drop-noise"),
        ),
        ("KeepsSome", "masked here", ("depends on the values of the input", COUNT)),
        ("CountsNonzero", "counted here", ("aten.nonzero", "depends on the values", COUNT)),
        ("Loops", "looped here", ("A number of tokens or a branch depends on the values", COUNT)),
        ("Branches", "branched here", ("A number of tokens or a branch depends", COUNT)),
        ("Bessel", "bent here", ("The operator prims.bessel_j0.default has no ONNX form.",)),
        ("LeavesTorch", "left here", ("cannot be traced by torch.export", ".numpy()")),
    ],
)
def test_the_line_to_blame_is_named(
    model: str, mark: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = compile_model(f"{MODELS}:{model}", tmp_path / "out", "--input-shape", "4,4")
    refusal(answer, 3, tmp_path, line_of(mark), *parts)
    assert answer.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_code_of_a_persons_folder_is_named(tmp_path: Path) -> None:
    code = tmp_path / "torch" / "exporter"  # names that paths of other packages have too
    code.mkdir(parents=True)
    (code / "cli_dynamic.py").write_text(
        "from torch import nn, zeros\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x[: int(x.abs().sum())]\n"
        "def build():\n"
        "    return Net(), zeros(2, 4)\n",
        encoding="utf-8",
    )
    answer = compile_model("cli_dynamic:build", tmp_path / "out", "--code-path", code)
    refusal(answer, 3, tmp_path, f"{code / 'cli_dynamic.py'}:4, in forward: return x[:")


def test_nan_in_the_models_own_outputs(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:NotANumber", tmp_path / "out", "--input-shape", "2,4")
    refusal(
        *(answer, 3, tmp_path, "The model's own output 'output' holds NaN."),
        *("First in batch 0 of the inputs.", "on which the model in PyTorch is finite"),
    )


def test_a_model_that_fails_in_eager(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:Mismatched", tmp_path / "out", "--input-shape", "2,4")
    parts = ("The model fails on these inputs", "Inputs: x (2, 4) float32.")
    refusal(answer, 3, tmp_path, line_of("mismatched here"), *parts)


@pytest.mark.parametrize(
    ("target", "model", "shape", "mark", "parts"),
    [
        (
            *("trt", "SortsNumbers", "2,4", "sorted here"),
            ("TensorRT does not take a top-k of integers.", "(TopK), from", "Sort floats"),
        ),
        (
            *("trt", "Determinant", "2,3,3", "taken here"),
            ("TensorRT does not take operator Det.", "operator Det, from"),
        ),
        (
            *("openvino", "Determinant", "2,3,3", "taken here"),
            ("OpenVINO has no operator Det.", "operator Det, from", "compile for another"),
        ),
    ],
)
def test_an_operator_that_the_target_refuses(
    target: str, model: str, shape: str, mark: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = compile_model(
        f"{MODELS}:{model}", tmp_path / "out", "--input-shape", shape, target=target
    )
    message = refusal(answer, 3, tmp_path, line_of(mark), *parts)
    assert ".stages-" not in message  # a folder that is gone by then
    assert list(tmp_path.iterdir()) == []


def test_the_same_model_compiles_for_a_target_that_takes_it(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:Determinant", tmp_path / "out", "--input-shape", "2,3,3")
    assert answer.code == 0, answer
