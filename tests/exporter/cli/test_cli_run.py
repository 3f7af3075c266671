"""run, verify and doctor: what a device does with a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import Compiled, refusal, tokexport
from helpers.small_bundles import WEIGHT, WIDTH, product_bundle

from tokexport.runtimes import BundleRunner, load


@pytest.fixture
def copy(compiled: Compiled, tmp_path: Path) -> Path:
    """A bundle of one's own, to be altered."""
    return Path(shutil.copytree(compiled.bundle, tmp_path / "copy"))


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Puts a file into a bundle and its hash into the manifest, as a forger would."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def share_right(compiled: Compiled, output: Path) -> float:
    """The share of labels that the outputs meet."""
    with np.load(compiled.inputs) as given, np.load(output) as found:
        return float((found["output"].argmax(-1) == given["labels"]).mean())


def test_run_writes_every_sample_and_no_padding(compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "y.npz"
    answer = tokexport("run", compiled.bundle, "--inputs", compiled.inputs, "--output", output)
    assert answer.code == 0
    right = share_right(compiled, output)
    said = f"5 samples → {output}: output (5, 5); {right:.2%} of the labels are right\n"
    assert answer.stdout == said
    x = np.load(compiled.inputs)["x"]
    with load(compiled.bundle) as runner:
        rows = [runner.run({"x": x[i : i + 2]})["output"] for i in (0, 2, 4)]
    with np.load(output) as found:
        assert found.files == ["output"]
        np.testing.assert_array_equal(found["output"], np.concatenate(rows)[:5])
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]


def test_a_path_that_the_system_refuses_is_no_bug(compiled: Compiled, tmp_path: Path) -> None:
    long, said = tmp_path / ("a" * 300), "File name too long"
    for command in (("verify", long), ("doctor", long), ("run", long, "--inputs", "x.npz")):
        answer = tokexport(*command, *(("--output", "y.npz") if "run" in command else ()))
        refusal(answer, 5, tmp_path, f"The bundle cannot be reached: {said}", str(long))
    inputs = ("run", compiled.bundle, "--inputs", long, "--output", tmp_path / "y.npz")
    output = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output", long)
    for given in (inputs, output, ("report", long)):
        refusal(tokexport(*given), 2, tmp_path, f"refuses a path: {said}", str(long))


@pytest.mark.parametrize("count", [3, 4, 9])
def test_run_uses_all_artifacts_of_a_bundle(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = product_bundle(tmp_path / "bundle", 1, 4)
    x = np.random.default_rng(0).standard_normal((count, WIDTH), np.float32)
    shift = np.arange(count, dtype=np.int64)[:, None]
    np.savez(tmp_path / "x.npz", x=x, shift=shift)
    taken: list[int] = []
    run = BundleRunner.run

    def counted(runner: BundleRunner, arrays: Any) -> Any:
        taken.append(len(arrays["x"]))
        return run(runner, arrays)

    monkeypatch.setattr(BundleRunner, "run", counted)
    output = tmp_path / "y.npz"
    answer = tokexport("run", bundle, "--inputs", tmp_path / "x.npz", "--output", output)
    assert answer.code == 0
    assert taken == {3: [3], 4: [4], 9: [4, 4, 1]}[count]
    with np.load(output) as found:
        np.testing.assert_allclose(found["y"], x @ WEIGHT + shift, rtol=1e-5, atol=1e-5)


def test_run_in_json(compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "[bold]y.npz"
    given = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output", output)
    found = tokexport(*given, "--json").json
    assert found == {
        "exit_code": 0,
        "error": None,
        "bundle": str(compiled.bundle),
        "output": str(output),
        "samples": 5,
        "outputs": {"output": [5, 5]},
        "inputs": f"5 samples of {compiled.inputs.name}",
        "accuracy": share_right(compiled, output),
        "files": [],
        "warnings": [],
    }
    assert f"→ {output}: " in tokexport(*given, "--force").stdout


def test_threads_are_bounded_and_counted(compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "y.npz"
    given = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output", output)
    assert tokexport(*given, "--threads", "1").code == 0
    assert tokexport("verify", compiled.bundle, "--threads", "1", "--json").code == 0
    for command in ((*given, "--force"), ("verify", compiled.bundle)):
        answer = tokexport(*command, "--threads", "0")
        refusal(answer, 2, tmp_path, "--threads is 0.", "Pass a number of 1 to 1024.")


def test_run_replaces_a_file_only_by_force(compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "y.npz"
    output.write_text("mine")
    given = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output", output)
    refusal(tokexport(*given), 2, tmp_path, "The output file is there already.", "--force")
    assert output.read_text() == "mine"
    assert tokexport(*given, "--force").code == 0
    assert np.load(output)["output"].shape == (5, 5)


def test_run_refuses_an_output_before_it_runs(compiled: Compiled, tmp_path: Path) -> None:
    given = ("run", compiled.bundle, "--inputs", compiled.inputs, "--output")
    missing = tmp_path / "no" / "y.npz"
    refusal(tokexport(*given, missing), 4, tmp_path, "does not exist.", f"mkdir -p {tmp_path}/no")
    refusal(tokexport(*given, tmp_path, "--force"), 2, tmp_path, "The output is a folder")
    refusal(tokexport(*given, "/proc/y.npz"), 4, tmp_path, "The outputs cannot be written")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((2, 3, 12, 13), np.float32)}, "has shape (2, 3, 12, 13)"),
        ({"x": np.zeros((2, 3, 12, 12), np.int64)}, "is int64, and the model takes float32"),
        ({"x": np.full((1, 3, 12, 12), np.nan, np.float32)}, "holds nan"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "missing: x; unknown: a, b"),
        ({"arr_0": np.zeros((1, 3, 12, 12), np.float32)}, "numpy.savez(path, x=…)"),
    ],
)
def test_run_refuses_inputs_that_do_not_fit(
    arrays: dict[str, np.ndarray], said: str, compiled: Compiled, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    answer = tokexport(
        *("run", compiled.bundle, "--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    )
    refusal(answer, 2, tmp_path, said)
    assert not (tmp_path / "y.npz").exists()


def test_verify_passes(compiled: Compiled) -> None:
    answer = tokexport("verify", compiled.bundle)
    assert answer.code == 0
    assert "PASSED  3 batches on onnxruntime-cpu" in answer.stdout
    found = tokexport("verify", compiled.bundle, "--json").json
    assert found["status"] == "PASSED"
    assert found["batches"] == 3
    assert found["outputs"]["output"]["passed"] is True


def test_verify_fails_where_the_answers_differ(copy: Path, tmp_path: Path) -> None:
    with np.load(copy / "reference.npz") as found:
        arrays = dict(found)
    arrays["outputs/output"] = arrays["outputs/output"] + np.float32(0.01)
    np.savez(tmp_path / "reference.npz", **arrays)
    rewrite(copy, "reference.npz", (tmp_path / "reference.npz").read_bytes())
    answer = tokexport("verify", copy)
    assert "FAILED" in answer.stdout
    refusal(answer, 1, tmp_path, "The bundle differs from its reference: output is off by", "anew")
    failed = tokexport("verify", copy, "--json")
    assert failed.code == failed.json["exit_code"] == 1
    assert failed.json["status"] == "FAILED"
    assert failed.json["error"]["kind"] == "GateError"


@pytest.mark.parametrize("command", ["run", "verify"])
@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "report.json", "manifest.json"])
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_a_bundle_that_is_not_whole_is_refused(
    command: str, name: str, how: str, copy: Path, compiled: Compiled, tmp_path: Path
) -> None:
    file = copy / name
    content = file.read_bytes()
    match how:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "altered":
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "missing":
            file.unlink()
    rest = ("--inputs", compiled.inputs, "--output", tmp_path / "y.npz") if command == "run" else ()
    answer = tokexport(command, copy, *rest)
    message = refusal(answer, 5, tmp_path, name)
    assert str(copy) in message
    assert not (tmp_path / "y.npz").exists()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    refusal(tokexport("verify", tmp_path), 5, tmp_path, "no manifest.json, so it is no bundle")
    refusal(tokexport("verify", tmp_path / "no"), 5, tmp_path, "There is no bundle.")
    answer = tokexport("verify", tmp_path, "--json")
    assert answer.code == answer.json["exit_code"] == 5
    assert answer.json["error"]["fix"] == "Pass the folder that compile wrote."


def test_doctor_lists_what_is_here_and_what_is_missing() -> None:
    answer = tokexport("doctor")
    assert answer.code == 0
    found = tokexport("doctor", "--json").json["components"]
    assert {"onnxruntime", "openvino", "TensorRT-RTX", "torch"} <= {each["name"] for each in found}
    for each in found:
        assert each["name"] in answer.stdout
        if not each["works"]:
            assert each["missing"]
            assert f"    {each['install']}\n" in answer.stdout  # on a line of its own, whole
