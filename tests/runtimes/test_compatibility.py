"""A machine held to what a manifest says that its artifact needs, before anything is opened."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import openvino
import pytest
from onnx import helper

from tokexport.runtimes import artifact_needs as needs
from tokexport.runtimes import compatibility, load
from tokexport.runtimes.artifact_needs import architecture, artifact_needs
from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.bundle.requirements import Requirements, release
from tokexport.runtimes.compatibility import compare_with_machine
from tokexport.runtimes.errors import (
    BundleError,
    IncompatibleError,
    NoDeviceError,
    ProcessorError,
    RuntimeMissingError,
    RuntimesError,
)
from tokexport.runtimes.trt.cuda_driver import CudaDriver, CudaDriverError
from tokexport.runtimes.trt.libraries import load_rtx

BUNDLES = Path(__file__).parents[1] / "bundles"
ORT = RuntimeInfo("ort", "onnxruntime-cpu", "1.32.0")


def bundle_with(folder: Path, requires: Any, name: str = "kernels_ort", **runtime: Any) -> Path:
    """A bundle of which nothing but the manifest is whole: what opens another file fails."""
    bundle = folder / "bundle"
    shutil.copytree(BUNDLES / name, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["requires"] = requires
    manifest["runtime"] |= runtime
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / manifest["artifact"]).write_bytes(b"never opened")
    return bundle


def refused(bundle: Path) -> RuntimesError:
    """The error of loading; it is the one that the needs give too."""
    with pytest.raises(RuntimesError) as caught:
        load(bundle)
    unmet = next(one for one in compare_with_machine(read_manifest(bundle)) if not one.met)
    assert caught.value.what in unmet.problem
    assert caught.value.fix == unmet.fix
    return caught.value


def test_a_runtime_that_is_too_old_is_refused_before_a_file_is_opened(tmp_path: Path) -> None:
    asked = {"runtime": "onnxruntime", "at_least": "99.1", "why": "it has opset 99"}
    error = refused(bundle_with(tmp_path, asked))
    assert isinstance(error, IncompatibleError)
    here = onnxruntime.__version__
    assert error.what == f"The bundle needs ONNX Runtime 99.1 or newer, and {here} is installed."
    assert error.where == "The bundle: it has opset 99."
    assert "pip install 'onnxruntime>=99.1'" in error.fix


def test_an_older_openvino_does_not_read_the_ir_of_a_newer_year(tmp_path: Path) -> None:
    asked = {"runtime": "openvino", "at_least": "2099.0"}
    error = refused(bundle_with(tmp_path, asked, "kernels_openvino"))
    assert error.what.startswith("The bundle needs OpenVINO 2099.0 or newer, and 20")
    assert "-" not in error.what


@pytest.mark.parametrize("at_least", ["", "1", "1.18", onnxruntime.__version__])
def test_a_runtime_that_is_new_enough_goes_on_to_the_files(at_least: str, tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, {"runtime": "onnxruntime", "at_least": at_least})
    with pytest.raises(BundleError, match="is not the one that was written"):
        load(bundle)
    (need,) = compare_with_machine(read_manifest(bundle))
    assert (need.met, need.here) == (True, onnxruntime.__version__)


def test_another_system_and_another_architecture_are_refused(tmp_path: Path) -> None:
    asked = {"runtime": "onnxruntime", "systems": ["plan9"]}
    error = refused(bundle_with(tmp_path / "a", asked))
    assert f"the system plan9, and this is {sys.platform}" in error.what
    asked = {"runtime": "onnxruntime", "architectures": ["vax", "pdp11"]}
    error = refused(bundle_with(tmp_path / "b", asked))
    assert f"built for vax or pdp11 processors, and this is {architecture()}" in error.what


def test_an_instruction_set_that_is_lacking_is_refused_on_x86(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"runtime": "onnxruntime", "instruction_sets": ["mmx_of_2099"]}
    bundle = bundle_with(tmp_path, asked)
    if architecture() == "x86_64":
        error = refused(bundle)
        assert isinstance(error, ProcessorError)
        assert "It needs mmx_of_2099; the processor has" in error.where
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BundleError):  # it goes on to the files
        load(bundle)


def test_what_a_manifest_leaves_out_is_asked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_with(tmp_path, {"runtime": "x"}, details={"weight_bits": 8})
    monkeypatch.setattr(compatibility, "lacks_all", bool)  # on another processor
    assert isinstance(refused(bundle), ProcessorError)


@pytest.mark.parametrize("requires", [None, {}])
def test_an_engine_of_another_version_is_refused_by_its_runtime_alone(
    requires: Any, tmp_path: Path
) -> None:
    bundle = bundle_with(
        tmp_path, requires, name="kernels_ort", flavour="tensorrt-rtx", version="1.0.0.1"
    )
    error = refused(bundle)
    assert isinstance(error, IncompatibleError)
    here = load_rtx().version
    assert f"by TensorRT-RTX 1.0.0.1, and {here} is installed" in error.what


def test_an_engine_needs_a_gpu_that_it_was_built_for(tmp_path: Path) -> None:
    here = load_rtx().version
    details = {"compute_capabilities": ["1.0"]}
    bundle = bundle_with(tmp_path, None, flavour="tensorrt-rtx", version=here, details=details)
    assert isinstance(refused(bundle), NoDeviceError)
    runtime, gpu = compare_with_machine(read_manifest(bundle))
    assert (runtime.met, runtime.here) == (True, here)
    assert (gpu.name, gpu.needed) == ("GPU", "compute capability 1.0")
    try:
        CudaDriver()
    except CudaDriverError:
        assert "needs a GPU" in gpu.problem


def test_a_runtime_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    bundle = bundle_with(tmp_path, {"runtime": "openvino"}, "kernels_openvino")
    assert isinstance(refused(bundle), RuntimeMissingError)


HOSTILE: dict[str, Any] = {
    "no object": [],
    "a version of letters": {"at_least": "new"},
    "an endless version": {"at_least": "9" * 5000},
    "many parts": {"at_least": "1.2.3.4.5"},
    "an epoch": {"at_least": "1!2"},
    "a command": {"exactly": "1.0; rm -rf /"},
    "a number": {"at_least": 1.18},
    "a text for a list": {"architectures": "x86_64"},
    "numbers in a list": {"systems": [1]},
    "an endless list": {"compute_capabilities": ["8.9"] * 100},
    "an object for a text": {"why": {"a": 1}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_is_refused_in_words(case: str, tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, HOSTILE[case])
    with pytest.raises(BundleError, match="requires") as caught:
        load(bundle)
    assert len(caught.value.what) < 300


def test_huge_numbers_are_only_large(tmp_path: Path) -> None:
    asked = {"runtime": "onnxruntime", "at_least": "999999999.999999999"}
    assert "999999999.999999999 or newer" in refused(bundle_with(tmp_path, asked)).what


def test_keys_of_later_versions_are_ignored(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, {"runtime": "onnxruntime", "of_later": {"x": 1}})
    assert read_manifest(bundle).requires == Requirements("onnxruntime")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1.32.0", (1, 32)),
        ("2026.4.1-22982-e213a147257-releases/2026/4", (2026, 4, 1)),
        ("1.22.0rc1", (1, 22)),
        ("1.23.0.dev20250701001", (1, 23)),
        ("1.18.0+cu12", (1, 18)),
        ("10.13.3.9", (10, 13, 3, 9)),
        ("unknown", None),
        ("", None),
        ("٣.٢", None),
    ],
)
def test_versions_are_read_as_packages_write_them(
    text: str, numbers: tuple[int, ...] | None
) -> None:
    assert release(text) == numbers


@pytest.mark.parametrize("version", ["a build of my own", ""])
def test_a_runtime_without_a_version_is_tried(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(BundleError):
        load(bundle_with(tmp_path, {"runtime": "onnxruntime", "at_least": "2.0"}))


@pytest.mark.parametrize(
    ("ir_version", "opset", "at_least"),
    [(8, 17, "1.22"), (10, 20, "1.22"), (10, 21, "1.22"), (11, 20, "1.32"), (10, 23, "1.32")],
)
def test_the_oldest_runtime_follows_from_the_bytes_of_the_file(
    ir_version: int, opset: int, at_least: str, save_model: Callable[..., Path]
) -> None:
    x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 99)]
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)
    found = artifact_needs(save_model(model), ORT)
    assert (found.runtime, found.at_least) == ("onnxruntime", at_least)
    assert found.why == f"it has IR version {ir_version} and opset {opset}"
    assert found.instruction_sets == ()


def test_what_each_target_needs(tmp_path: Path) -> None:
    artifact = BUNDLES / "kernels_ort" / "model.onnx"
    eight = artifact_needs(artifact, replace(ORT, details={"weight_bits": 8}))
    assert eight.instruction_sets == ("avx512_vnni", "avx_vnni")
    seven = artifact_needs(artifact, replace(ORT, details={"weight_bits": 7}))
    assert seven.instruction_sets == ()
    assert needs.byte_sums_needed(ORT) == ()
    ir = artifact_needs(tmp_path / "model.xml", RuntimeInfo("openvino", "openvino-cpu", "2026.4.1"))
    assert (ir.at_least, ir.exactly) == ("2026.0", "")
    assert release(openvino.__version__) is not None
    built = RuntimeInfo("trt", "tensorrt-rtx", "1.7.1.116", {"compute_capabilities": ["8.9"]})
    engine = artifact_needs(tmp_path / "model.engine", built)
    assert (engine.at_least, engine.exactly) == ("", "1.7.1.116")
    assert (engine.systems, engine.architectures) == ((sys.platform,), (architecture(),))
    assert engine.compute_capabilities == ("8.9",)


def test_the_kept_bundles_say_what_onnx_runtime_they_need() -> None:
    found = artifact_needs(BUNDLES / "kernels_ort" / "model.onnx", ORT)
    model = onnx.load(BUNDLES / "kernels_ort" / "model.onnx")
    assert (model.ir_version, model.opset_import[0].version) == (10, 20)
    assert found.at_least == "1.22"
