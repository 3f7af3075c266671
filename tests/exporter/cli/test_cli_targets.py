"""Targets whose engine cannot run here, or whose runtime is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.cli import MODELS, Compiled, compile_model, refusal, tokexport

SOURCE = f"{MODELS}:with_inputs"
TENSORRT = ("tensorrt", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx")


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Makes Python find these packages no more."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("without_gpu")
def test_an_engine_that_no_gpu_ran_is_built_and_not_passed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, labels=np.arange(4))
    inputs = ("--inputs", tmp_path / "x.npz")
    answer = compile_model(SOURCE, tmp_path / "out", *inputs, target="trt")
    assert answer.code == 0
    assert answer.stdout.startswith("BUILT, NOT RUN  ")
    assert "PASSED" not in answer.stdout
    assert "running it needs a GPU" in answer.said
    assert "It did not run here" in answer.said
    assert "Speed over" not in answer.said

    again = compile_model(SOURCE, tmp_path / "out", *inputs, "--force", "--json", target="trt")
    assert again.code == 0
    report = again.json
    assert report["exit_code"] == 0
    assert report["status"] == "BUILT, NOT RUN"
    assert "GPU" in report["not_run_reason"]
    assert [stage["name"] for stage in report["stages"]] == [
        "captured",
        "rewritten",
        "onnx",
        "lowered",
    ]
    assert report["speed"] is None
    assert report["accuracy"]["samples"] == 4
    assert report["runtime"]["flavour"].startswith("tensorrt")

    refusal(tokexport("verify", tmp_path / "out"), 5, tmp_path, "GPU")
    run = ("run", tmp_path / "out", *inputs, "--output", tmp_path / "y.npz")
    refusal(tokexport(*run), 5, tmp_path, "GPU")
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("options", [("--require-run",), ("--min-speedup", "1.1")])
def test_a_run_that_is_required_fails_the_gate(options: tuple[str, ...], tmp_path: Path) -> None:
    answer = compile_model(SOURCE, tmp_path / "out", *options, target="trt")
    refusal(answer, 1, tmp_path, "did not run here", options[0], "on a machine with a GPU")
    assert answer.stdout.startswith("FAILED")
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_openvino_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "openvino")
    answer = compile_model(SOURCE, tmp_path / "out", target="openvino")
    message = refusal(
        answer, 6, tmp_path, "'openvino' is not installed.", "pip install 'tokexport[openvino]'"
    )
    assert_onnx_left(message, tmp_path)


def test_no_tensorrt_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *TENSORRT)
    answer = compile_model(SOURCE, tmp_path / "out", target="trt")
    message = refusal(
        *(answer, 6, tmp_path, "No TensorRT found."),
        *("`tensorrt` (needs an NVIDIA GPU)", "pip install 'tokexport[trt-rtx]'"),
    )
    assert_onnx_left(message, tmp_path)


def assert_onnx_left(message: str, folder: Path) -> None:
    """Holds that the one thing left is the ONNX that the message names."""
    (left,) = folder.iterdir()
    path = left / "model.onnx"
    assert f"The ONNX was written to {path}." in message
    onnx.checker.check_model(path, full_check=True)


def test_a_bundles_runtime_is_not_installed(
    compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "onnxruntime")
    output = tmp_path / "y.npz"
    given = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output", output)
    for answer in (tokexport(*given), tokexport("verify", compiled.bundle)):
        refusal(answer, 6, tmp_path, "'onnxruntime' is not installed.", "tokexport[ort]")
    missing = tokexport("doctor").stdout
    assert "no   onnxruntime" in missing
    assert "    pip install 'tokexport[ort]'\n" in missing


def test_torch_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "tokexport.exporter.requirements.find_spec",
        lambda name: None if name == "torch" else found(name),
    )
    answer = compile_model(SOURCE, tmp_path / "out")
    refusal(answer, 6, tmp_path, "Compiling a model needs torch", "'tokexport[compile]'")


@pytest.mark.parametrize(
    ("source", "module", "command"),
    [
        ("timm:test_vit", "timm", "pip install 'tokexport[timm]'"),
        ("folder", "transformers", "pip install 'tokexport[transformers]'"),
    ],
)
def test_a_sources_library_is_not_installed(
    source: str, module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    hide(monkeypatch, module)
    answer = compile_model(folder if source == "folder" else source, tmp_path / "out")
    refusal(answer, 6, tmp_path, f"needs '{module}', which is not installed.", command)
