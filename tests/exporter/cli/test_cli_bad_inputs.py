"""Inputs, options and output places that cannot be: each message is read, and the exit code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.cli import MODELS, Compiled, compile_model, refusal, tokexport

SOURCE = f"{MODELS}:with_inputs"
ZEROS = np.zeros((3, 3, 12, 12), np.float32)


def with_one(value: float) -> np.ndarray:
    array = ZEROS.copy()
    array[1, 2, 0, 5] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        (
            {"x": ZEROS[..., :5]},
            ("Input 'x' has shape (3, 3, 12, 5), and the model takes (1, 3, 12, 12)", "samples"),
        ),
        ({"x": ZEROS[0]}, ("has shape (3, 12, 12)", "array[None]")),
        ({"x": ZEROS.transpose(0, 2, 3, 1)}, ("channels come last", "numpy.transpose")),
        ({"x": ZEROS.astype(np.float64)}, ("is float64, and the model takes float32", "astype")),
        ({"x": ZEROS.astype(np.uint8)}, ("is uint8", "scale to 0 … 1, subtract the mean")),
        ({"x": with_one(np.nan)}, ("holds nan", "First at x[1, 2, 0, 5]", "nan_to_num")),
        ({"x": with_one(np.inf)}, ("holds inf", "First at x[1, 2, 0, 5]")),
        ({"x": ZEROS, "labels": np.zeros(2, int)}, ("2 labels for 3 samples",)),
        ({"x": ZEROS, "labels": np.array([0, 1, 9])}, ("Label 9 is no class", "labels[2]")),
        (
            {"images": ZEROS, "y": ZEROS},
            ("missing: x; unknown: images, y", "numpy.savez(path, x=…)"),
        ),
        ({"images": ZEROS}, ("missing: x; unknown: images", "numpy.savez(path, x=…)")),
        ({"x": ZEROS[:0]}, ("hold no samples",)),
        ({"labels": np.zeros(3, int)}, ("no array but labels",)),
    ],
)
def test_arrays_that_do_not_fit(
    arrays: dict[str, np.ndarray], parts: tuple[str, ...], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    answer = compile_model(SOURCE, tmp_path / "out", "--inputs", tmp_path / "x.npz")
    refusal(answer, 2, tmp_path, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_files_that_hold_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("1,2,3")
    np.savez(tmp_path / "cut.npz", x=ZEROS)
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    for name, said in {
        "no.npz": "The inputs file does not exist.",
        "text.npz": "The inputs file is not an .npz or .npy, a .csv, or a picture.",
        "cut.npz": "cut.npz",
        "objects.npy": "objects",
    }.items():
        answer = compile_model(SOURCE, tmp_path / "out", "--inputs", tmp_path / name)
        refusal(answer, 2, tmp_path, said, str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "options", "parts"),
    [
        ("merging_vit", (), ("Nothing says which inputs the model takes.", "--input-shape")),
        ("merging_vit", ("--input-shape", "1,3,x"), ("'1,3,x' is not a list", "At 'x'")),
        ("merging_vit", ("--input-shape", "0,3,12,12"), ("of 1 to 10^18", "At '0'")),
        ("merging_vit", ("--input-shape", ""), ("is not a list of whole numbers",)),
        ("two_inputs", ("--input-shape", "2,4"), ("describes one input, and the source has 2",)),
        ("TwoInputs", ("--input-shape", "2,4"), ("forward takes pixels, mask",)),
        (
            "with_inputs",
            ("--batch", "0"),
            ("--batch '0' is not a list of whole numbers of 1 to 10^18.",),
        ),
        ("with_inputs", ("--batch", "two"), ("--batch 'two' is not a list", "1,4,8")),
        ("with_inputs", ("--batch", "4,4"), ("The batches are 4,4.", "once")),
        ("with_inputs", ("--atol", "-1"), ("--atol is -1.0.", "above 0")),
        ("with_inputs", ("--min-speedup", "nan"), ("--min-speedup is nan.",)),
        ("with_inputs", ("--samples", "0"), ("--samples is 0.", "1 or more")),
        ("with_inputs", ("--samples", "2"), ("there is no --inputs.", "leave --samples out")),
        ("with_inputs", ("--seed", "-3"), ("The seed is -3.", "0 or more")),
        (
            "with_inputs",
            ("--precision", "fp16"),
            ("has no precision 'fp16'.", "one of fp32, int8."),
        ),
        (
            "with_inputs",
            ("--quantization", "dynamic"),
            ("a choice of --target ort --precision int8",),
        ),
        (
            "with_inputs",
            ("--precision", "int8", "--quantization", "static"),
            ("measured on real samples, and there are none.", "Pass some with --inputs"),
        ),
        (
            "with_inputs",
            ("--precision", "int8", "--weight-bits", "6"),
            ("No weight has 6 bits.", "--weight-bits 8, or 7"),
        ),
        (
            "with_inputs",
            ("--precision", "fp32", "--weight-bits", "7"),
            ("a choice of --target ort --precision int8", "Leave it out"),
        ),
        (
            "with_inputs",
            ("--precision", "int8", "--quantization", "entropy"),
            ("no quantization 'entropy'.", "dynamic, static"),
        ),
    ],
)
def test_values_that_cannot_be(
    source: str, options: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = compile_model(f"{MODELS}:{source}", tmp_path / "out", *options)
    refusal(answer, 2, tmp_path, *parts)
    assert list(tmp_path.iterdir()) == []
    found = compile_model(f"{MODELS}:{source}", tmp_path / "out", *options, "--json")
    assert found.code == found.json["exit_code"] == 2
    assert found.json["error"]["what"] in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--target", "tflite"), ("--target", "no target 'tflite'", "ort,", "trt")),
        ((), ("--target", "Missing option")),
        (("--target", "ort", "--bacth", "3"), ("No such option", "--bacth")),
        (("--target", "ort", "--samples", "two"), ("--samples", "integer")),
    ],
)
def test_options_that_are_no_options(
    arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = tokexport("compile", SOURCE, "--output", tmp_path / "out", *arguments)
    assert answer.code == 2
    assert answer.stdout == ""
    for part in parts:
        assert part in answer.said
    assert list(tmp_path.iterdir()) == []


def test_a_shape_that_the_model_does_not_take(tmp_path: Path) -> None:
    answer = compile_model(f"{MODELS}:merging_vit", tmp_path / "out", "--input-shape", "1,1,12,12")
    refusal(
        *(answer, 3, tmp_path, "The model fails on these inputs: RuntimeError:"),
        *("expected input[1, 1, 12, 12] to have 3 channels", "Inputs: x (1, 1, 12, 12) float32."),
        "--input-shape",
    )


def test_an_output_that_is_there(compiled: Compiled, tmp_path: Path) -> None:
    refusal(compile_model(SOURCE, compiled.bundle), 2, tmp_path, "there already", "--force")
    (tmp_path / "file").write_text("mine")
    message = "it is a file, not a folder."
    refusal(compile_model(SOURCE, tmp_path / "file", "--force"), 2, tmp_path, message)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    answer = compile_model(SOURCE, thesis, "--force")
    refusal(answer, 2, tmp_path, "it is no bundle", "--force replaces only bundles", str(thesis))
    assert [path.name for path in thesis.iterdir()] == ["chapter1.tex"]


def test_kept_stages_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "out.stages" / "emitted").mkdir(parents=True)
    answer = compile_model(SOURCE, tmp_path / "out", "--keep-stages")
    refusal(answer, 2, tmp_path, "The folder for the stages is there already.", "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["out.stages"]
    (tmp_path / "out.stages" / "notes.txt").write_text("mine")
    answer = compile_model(SOURCE, tmp_path / "out", "--keep-stages", "--force")
    message = refusal(answer, 2, tmp_path, "is there already, and holds other things.", "notes.txt")
    assert "--force" not in message
    assert (tmp_path / "out.stages" / "notes.txt").read_text() == "mine"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    missing = tmp_path / "a" / "b"
    answer = compile_model(SOURCE, missing / "out")
    refusal(answer, 4, tmp_path, "does not exist.", f"mkdir -p {missing}")
    answer = compile_model(SOURCE, Path("/proc/tokexport-out"))
    refusal(answer, 4, tmp_path, "The bundle cannot be written:", "pass another --output")
