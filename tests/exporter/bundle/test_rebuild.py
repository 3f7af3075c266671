"""``tokexport rebuild``: artifacts of OpenVINO and TensorRT-RTX built anew, really, and proven."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from digits_vit import DigitsViT
from helpers.cli import in_own_process, refusal, tokexport
from helpers.json_schemas import check_bundle

import tokexport as package
from tokexport.runtimes import load
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError, IncompatibleError, NoDeviceError
from tokexport.runtimes.trt.cuda_driver import CudaDriver, CudaDriverError
from tokexport.runtimes.trt.libraries import load_rtx
from tokexport.runtimes.verification import reference_inputs

BUNDLES = Path(__file__).parents[2] / "bundles"


def compiled(folder: Path, target: str, **options: Any) -> Path:
    torch.manual_seed(0)
    example = torch.rand(2, 1, 8, 8)
    result = package.compile(
        DigitsViT().eval(), example, target, output=folder, timed=False, page=False, **options
    )
    check_bundle(result.bundle)
    return result.bundle


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for OpenVINO that keeps its ONNX file."""
    return compiled(tmp_path_factory.mktemp("kept") / "kept", "openvino", keep_onnx=True)


@pytest.fixture
def bundle(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "a bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def answers(bundle: Path) -> dict[str, np.ndarray]:
    with load(bundle, threads=1) as runner:
        return runner.run({name: array[0] for name, array in reference_inputs(bundle).items()})


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_broken_artifact_is_built_anew_in_place(bundle: Path) -> None:
    before = answers(bundle)
    (bundle / "model.xml").write_bytes(b"<broken")
    (bundle / "model.bin").unlink()
    with pytest.raises(BundleError):
        load(bundle)
    answer = tokexport("rebuild", bundle, "--json")
    assert answer.code == 0, answer
    assert (answer.json["status"], answer.json["batches"]) == (PASSED, 3)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    check_bundle(bundle)
    after = answers(bundle)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    found = read_manifest(bundle)
    assert found.rebuilt is not None
    assert found.rebuilt["before"]["flavour"] == "openvino-cpu"
    assert found.kept_onnx == "lowered.onnx"
    assert found.requires is not None
    assert contents(bundle).keys() == {*found.files, "manifest.json"}
    assert tokexport("verify", bundle).code == 0


def test_an_ir_of_a_newer_openvino_is_refused_and_then_built_here(bundle: Path) -> None:
    here = read_manifest(bundle).runtime.version

    def of_another(data: dict[str, Any]) -> None:
        data["runtime"]["version"] = "2099.1.0"
        data["requires"]["at_least"] = "2099.0"

    edit(bundle, of_another)
    with pytest.raises(IncompatibleError) as caught:
        load(bundle)
    assert caught.value.fix.endswith("tokexport rebuild with the bundle.")
    answer = tokexport("rebuild", bundle)
    assert answer.code == 0, answer
    assert f"by openvino-cpu {here} (was openvino-cpu 2099.1.0)" in answer.stdout
    assert tokexport("doctor", bundle).code == 0
    assert tokexport("verify", bundle).code == 0


def test_another_output_leaves_the_old_bundle_as_it_is(bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    output = tmp_path / "new"
    assert tokexport("rebuild", bundle, "--output", output).code == 0
    assert contents(bundle) == before
    np.testing.assert_array_equal(answers(output)["output"], answers(bundle)["output"])
    refusal(tokexport("rebuild", bundle, "--output", output), 2, tmp_path, "is there already")
    inside = tokexport("rebuild", bundle, "--output", bundle / "new")
    refusal(inside, 2, bundle, "would go into the bundle")
    assert tokexport("rebuild", bundle, "--output", output, "--force").code == 0


def test_an_altered_onnx_file_is_refused_and_nothing_changes(bundle: Path) -> None:
    with (bundle / "lowered.onnx").open("ab") as file:
        file.write(b"\0")
    before = contents(bundle)
    answer = tokexport("rebuild", bundle)
    refusal(answer, 5, bundle.parent, "'lowered.onnx' is not the one that was written")
    assert contents(bundle) == before


def with_onnx(bundle: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    """Changes the kept ONNX file, and its hash with it."""
    path = bundle / "lowered.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(bundle, lambda data: data["files"].update({"lowered.onnx": digest}))


def test_an_artifact_that_answers_otherwise_never_takes_the_place(bundle: Path) -> None:
    def move(model: onnx.ModelProto) -> None:
        largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        moved = onnx.numpy_helper.to_array(largest) * np.float32(1.01)
        largest.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), largest.name))

    with_onnx(bundle, move)
    before = contents(bundle)
    answer = tokexport("rebuild", bundle)
    refusal(answer, 1, bundle.parent, "differs from its reference")
    assert contents(bundle) == before


def test_a_foreign_graph_is_refused_before_a_runtime_reads_it(bundle: Path) -> None:
    def loop(model: onnx.ModelProto) -> None:
        node = model.graph.node.add(op_type="Loop")
        node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH, g=onnx.GraphProto())

    with_onnx(bundle, loop)
    answer = tokexport("rebuild", bundle)
    refusal(answer, 5, bundle.parent, "not one that tokexport writes", "a graph of its own")


def test_weights_in_another_folder_are_refused(bundle: Path) -> None:
    (bundle.parent / "other.bin").write_bytes(bytes(1 << 16))

    def elsewhere(model: onnx.ModelProto) -> None:
        largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        onnx.external_data_helper.set_external_data(largest, "../other.bin")
        largest.ClearField("raw_data")

    with_onnx(bundle, elsewhere)
    answer = tokexport("rebuild", bundle)
    refusal(answer, 5, bundle.parent, "does not list: '../other.bin'")


@pytest.mark.parametrize("name", ["model.xml", "../lowered.onnx", "/etc/passwd", "nowhere.onnx"])
def test_a_name_that_is_no_kept_file_is_refused(name: str, bundle: Path) -> None:
    edit(bundle, lambda data: data.update(kept_onnx=name))
    answer = tokexport("rebuild", bundle)
    assert answer.code == 5, answer
    assert "Traceback" not in answer.said


def twice(data: dict[str, Any]) -> None:
    """Lists the artifact again, as one for as many samples."""
    fields = ("artifact", "reference", "inputs", "outputs", "gates", "kept_onnx")
    data["rungs"] = [{name: data[name] for name in fields}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(artifact="reference.npz"), "not one of OpenVINO"),
        (lambda data: data.update(precision="fp7"), "not one of OpenVINO"),
        (twice, "two of its artifacts take the same number"),
    ],
)
def test_a_manifest_that_no_compile_writes(
    bundle: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    edit(bundle, change)
    before = contents(bundle)
    refusal(tokexport("rebuild", bundle), 5, bundle.parent, said)
    assert contents(bundle) == before


def test_a_bundle_that_is_reached_by_a_link(bundle: Path) -> None:
    (link := bundle.parent / "current").symlink_to(bundle)
    (bundle / "model.bin").unlink()
    assert tokexport("rebuild", link).code == 0
    assert link.is_symlink()
    assert (bundle / "model.bin").exists()


def test_a_runtime_that_builds_nothing_leaves_the_old_bundle(bundle: Path) -> None:
    with_onnx(bundle, lambda model: model.graph.node[0].__setattr__("op_type", "Unheard"))
    before = contents(bundle)
    refusal(tokexport("rebuild", bundle), 3, bundle.parent, "Unheard")
    assert contents(bundle) == before


def test_what_cannot_be_built_anew_says_why(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(BUNDLES / "kernels_ort", tmp_path / "ort")
    refusal(tokexport("rebuild", copy), 2, tmp_path, "The ONNX file of the bundle is its artifact")
    copy = shutil.copytree(BUNDLES / "kernels_openvino", tmp_path / "without")
    refusal(tokexport("rebuild", copy), 2, tmp_path, "keeps no ONNX file")
    edit(bundle, lambda data: data.update(precision="int8"))
    refusal(tokexport("rebuild", bundle), 2, tmp_path, "measures the ranges of int8 on samples")


@pytest.mark.parametrize(
    ("target", "precision", "said"),
    [("ort", "fp32", "is the artifact itself"), ("openvino", "int8", "measured on samples")],
)
def test_a_compile_keeps_nothing_that_is_no_use(
    target: str, precision: str, said: str, tmp_path: Path
) -> None:
    options = ("--target", target, "--precision", precision, "--keep-onnx")
    model = "models.cli_models:plain_vit"
    answer = tokexport("compile", model, *options, "--output", tmp_path / "out")
    refusal(answer, 2, tmp_path, said)


def test_a_half_precision_is_built_anew_with_its_decisions_in_float32(tmp_path: Path) -> None:
    bundle = compiled(tmp_path / "bf16", "openvino", precision="bf16", keep_onnx=True)
    before = (bundle / "model.xml").read_text()
    answer = tokexport("rebuild", bundle, "--json")
    assert answer.code == 0, answer
    after = (bundle / "model.xml").read_text()
    assert after.count("precise") == before.count("precise") > 0


def test_each_artifact_of_a_ladder_is_built_anew(tmp_path: Path) -> None:
    bundle = compiled(tmp_path / "ladder", "openvino", keep_onnx=True, batch=(1, 3))
    manifest = read_manifest(bundle)
    assert [one.kept_onnx for one in manifest.ladder] == ["lowered.onnx", "lowered.batch3.onnx"]
    artifacts = [bundle / one.artifact for one in manifest.ladder]
    size = (bundle / "model.bin").stat().st_size
    samples = {"image": np.random.default_rng(0).random((5, 1, 8, 8), np.float32)}
    with load(bundle, threads=1) as runner:
        wanted = runner.run(samples)["output"]
    for path in artifacts:
        path.write_bytes(b"broken")
    answer = tokexport("rebuild", bundle, "--json")
    assert answer.code == 0, answer
    assert (bundle / "model.bin").stat().st_size == size  # one file of weights for both
    with load(bundle, threads=1) as runner:
        np.testing.assert_array_equal(runner.run(samples)["output"], wanted)
    assert contents(bundle).keys() == {*read_manifest(bundle).files, "manifest.json"}
    edit(bundle, lambda data: data["rungs"][0].pop("kept_onnx"))
    refusal(tokexport("rebuild", bundle), 2, tmp_path, "keeps no ONNX file")


def test_no_torch_and_no_onnx_is_imported(bundle: Path) -> None:
    before = """
import atexit, sys
heavy = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"}
atexit.register(lambda: print(sorted(heavy & sys.modules.keys()), file=sys.stderr))
"""
    answer = in_own_process("rebuild", bundle, before=before)
    assert (answer.code, answer.stderr) == (0, "[]\n"), answer


def test_an_engine_of_another_version_is_refused_and_then_built_here(tmp_path: Path) -> None:
    bundle = compiled(tmp_path / "engine", "trt")
    manifest = read_manifest(bundle)
    assert manifest.kept_onnx == "lowered.onnx"
    if manifest.runtime.flavour != "tensorrt-rtx":
        pytest.fail("full TensorRT built it: its other version is not tried here")
    here = load_rtx().version
    edit(bundle, lambda data: data["runtime"].update(version="1.0.0.1"))
    (bundle / "model.engine").write_bytes(b"an engine of another version")
    with pytest.raises(IncompatibleError, match=rf"1\.0\.0\.1, and {here} is") as caught:
        load(bundle)
    assert "tokexport rebuild" in caught.value.fix
    answer = tokexport("rebuild", bundle, "--json")
    assert answer.code == 0, answer
    assert (bundle / "model.engine").stat().st_size > 10_000
    assert read_manifest(bundle).runtime.version == here
    try:
        CudaDriver()
    except CudaDriverError:
        assert answer.json["status"] == BUILT_NOT_RUN
        assert "needs a GPU" in answer.json["not_run_reason"]
        with pytest.raises(NoDeviceError):  # its version is that of this machine now
            load(bundle)
    copy = compiled(tmp_path / "lean", "trt", keep_onnx=False)
    assert not (copy / "lowered.onnx").exists()
    refusal(tokexport("rebuild", copy), 2, tmp_path, "keeps no ONNX file")
    assert sys.platform in (read_manifest(copy).requires or pytest.fail("nothing")).systems
