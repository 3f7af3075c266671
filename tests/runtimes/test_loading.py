from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tokexport.exporter.package.content import read_content
from tokexport.runtimes import Runner, TensorSpec, load
from tokexport.runtimes.bundle.manifest import RuntimeInfo
from tokexport.runtimes.errors import BundleError, InputMismatchError, RunError
from tokexport.runtimes.openvino.runner import convert
from tokexport.runtimes.trt.engine import build_engine

BundleMaker = Callable[..., Path]
RunPython = Callable[[str], CompletedProcess[str]]


def test_a_bundle_loads_from_a_path_or_a_text_and_runs(
    make_bundle: BundleMaker, weight: np.ndarray
) -> None:
    bundle = make_bundle()
    x = np.random.default_rng(5).standard_normal((2, 8), dtype=np.float32)
    for place in (bundle, str(bundle)):
        with load(place, threads=1) as runner:
            assert isinstance(runner, Runner)
            assert runner.inputs == (TensorSpec("x", (2, 8), "float32"),)
            assert [spec.name for spec in runner.outputs] == ["logits", "label"]
            logits = runner.run({"x": x})["logits"]
            engine = f"onnxruntime-cpu {runner.runtime.version}"
            assert repr(runner) == (
                f"ready: {engine}; x float32 (2, 8) → logits float32 (2, 5), label int64 (2,)"
            )
            shown = list(ElementTree.fromstring(runner._repr_html_()).itertext())
            assert shown[0] == "ready"
            assert shown[-4:] == ["output", "label", "int64", "(2,)"]
        assert repr(runner).startswith("closed: ")
        np.testing.assert_allclose(logits, np.maximum(x @ weight, 0), rtol=1e-5, atol=1e-6)


def test_an_openvino_bundle_loads_in_the_precision_of_its_manifest(
    make_bundle: BundleMaker,
    save_model: Callable[..., Path],
    classifier_model: onnx.ModelProto,
    weight: np.ndarray,
) -> None:
    path = save_model(classifier_model)
    xml = path.with_name("ir") / "model.xml"
    xml.parent.mkdir()
    info = convert(path, xml)
    bundle = make_bundle(artifact=xml, target="openvino", runtime=info)
    assert (bundle / "model.bin").is_file()
    x = np.ones((2, 8), np.float32)
    with load(bundle) as runner:
        assert runner.runtime.details["inference_precision"] == "fp32"
        np.testing.assert_allclose(
            runner.run({"x": x})["logits"], np.maximum(x @ weight, 0), rtol=1e-5, atol=1e-6
        )


def test_an_engine_goes_to_tensorrt_and_never_to_another_runtime(
    make_bundle: BundleMaker, save_model: Callable[..., Path], classifier_model: onnx.ModelProto
) -> None:
    path = save_model(classifier_model)
    engine = path.with_name("engine") / "model.engine"
    engine.parent.mkdir()
    info = build_engine(path, engine)
    other = RuntimeInfo(info.name, info.flavour, "0.0.0.1", info.details)
    bundle = make_bundle(artifact=engine, target="trt", status="BUILT, NOT RUN", runtime=other)
    with pytest.raises(RunError, match=r"was built by .* 0\.0\.0\.1, and .* is installed"):
        load(bundle)


def test_an_altered_artifact_is_found_before_anything_loads_it(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    path = bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="'model.onnx' is not the one that was written"):
        load(bundle)


@pytest.mark.parametrize("name", ["model.ort", "model.bin", "model.ONNX", "model"])
def test_an_artifact_is_looked_through_whatever_it_is_called(
    make_bundle: BundleMaker, name: str
) -> None:
    bundle = make_bundle()
    (bundle / "model.onnx").rename(bundle / name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"].pop("model.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"artifact": name}))
    with pytest.raises(BundleError, match=r"artifact of onnxruntime-cpu should end in \.onnx"):
        load(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "report.json"])
def test_a_link_to_itself_leads_nowhere(make_bundle: BundleMaker, name: str) -> None:
    bundle = make_bundle()
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).symlink_to(name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="names a file outside the bundle"):
        load(bundle)


def test_an_unknown_flavour_asks_for_an_update(make_bundle: BundleMaker) -> None:
    bundle = make_bundle(runtime=RuntimeInfo("npu", "npu-future", "3.0"))
    with pytest.raises(BundleError, match="'npu-future', which this tokexport does not know"):
        load(bundle)


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": (TensorSpec("pixels", (2, 8), "float32"),)},
        {"inputs": (TensorSpec("x", (3, 8), "float32"),)},
        {"inputs": (TensorSpec("x", (2, 8), "float16"),)},
        {"inputs": (TensorSpec("x", (2, 8, 1), "float32"),)},
        {"outputs": (TensorSpec("logits", (2, 5), "float32"),)},
        {
            "outputs": (
                TensorSpec("label", (2,), "int64"),
                TensorSpec("logits", (2, 5), "float32"),
            )
        },
    ],
)
def test_a_manifest_that_does_not_describe_the_artifact(
    make_bundle: BundleMaker, fields: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="does not describe the artifact"):
        load(make_bundle(**fields))


def test_inputs_are_held_to_the_manifest(make_bundle: BundleMaker) -> None:
    with load(make_bundle()) as runner, pytest.raises(InputMismatchError, match="takes 2 at"):
        runner.run({"x": np.zeros((1, 8), np.float32)})


def test_an_artifact_that_gives_another_shape_than_it_says(
    make_bundle: BundleMaker, save_model: Callable[..., Path]
) -> None:
    node = helper.make_node("Reshape", ["x", "sizes"], ["y"], name="turn")
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])
    taken = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [2]),
    ]
    bundle = make_bundle(
        artifact=save_model([node], taken, [given]),
        inputs=(TensorSpec("x", (2, 5), "float32"), TensorSpec("sizes", (2,), "int64")),
        outputs=(TensorSpec("y", (2, 5), "float32"),),
    )
    x = np.zeros((2, 5), np.float32)
    with load(bundle) as runner:
        assert runner.run({"x": x, "sizes": np.array([2, 5])})["y"].shape == (2, 5)
        with pytest.raises(RunError, match=r"returned y as float32 \(5, 2\), not as the"):
            runner.run({"x": x, "sizes": np.array([5, 2])})


def test_an_openvino_bundle_of_an_unknown_precision(
    make_bundle: BundleMaker, save_model: Callable[..., Path], classifier_model: onnx.ModelProto
) -> None:
    path = save_model(classifier_model)
    xml = path.with_name("ir") / "model.xml"
    xml.parent.mkdir()
    info = convert(path, xml)
    bundle = make_bundle(artifact=xml, precision="fp3", runtime=info)
    with pytest.raises(Exception, match="no inference precision 'fp3'"):
        load(bundle)


HEAVY = [
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "onnx_ir",
    "tensorrt_rtx_bindings",
    "timm",
    "rich",
    "typer",
]


def test_the_import_needs_numpy_alone(run_python: RunPython) -> None:
    done = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        "import tokexport.runtimes\n"
        "from tokexport.runtimes import doctor, verification\n"
        "from tokexport.runtimes.openvino import runner\n"
        "from tokexport.runtimes.ort import runner\n"
        "from tokexport.runtimes.trt import engine, runner\n"
        "print(sorted(name for name in sys.modules if name.startswith('tokexport.')\n"
        "             and not name.startswith('tokexport.runtimes')))"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_bundle_runs_where_there_is_only_numpy_and_onnxruntime(
    run_python: RunPython, make_bundle: BundleMaker
) -> None:
    bundle = make_bundle()
    others = [name for name in HEAVY if name != "onnxruntime"]
    done = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({others!r}))\n"
        "from tokexport.runtimes.verification import verify_bundle\n"
        f"print(verify_bundle({str(bundle)!r}).passed)"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_bundle_whose_runtime_is_not_installed(
    run_python: RunPython, make_bundle: BundleMaker
) -> None:
    bundle = make_bundle()
    done = run_python(
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from tokexport.runtimes import load\n"
        "from tokexport.runtimes.errors import RuntimeMissingError\n"
        f"try: load({str(bundle)!r})\n"
        "except RuntimeMissingError as error: print(error.fix)"
    )
    assert done.stdout == "Install it: pip install 'tokexport[ort]'\n", done.stderr


def test_a_file_that_the_manifest_does_not_list_is_not_read(
    make_bundle: BundleMaker, save_model: Callable[..., Path], classifier_model: onnx.ModelProto
) -> None:
    path = save_model(classifier_model, name="big.onnx", external="big.weights")
    bundle = make_bundle(artifact=path)
    with load(bundle):
        pass
    unlisted = make_bundle(name="unlisted", artifact=path)
    manifest = json.loads((unlisted / "manifest.json").read_text())
    del manifest["files"]["big.weights"]
    (unlisted / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list: 'big\.weights'"):
        load(unlisted)


def test_weights_are_looked_for_beside_the_artifact(
    make_bundle: BundleMaker, save_model: Callable[..., Path], classifier_model: onnx.ModelProto
) -> None:
    path = save_model(classifier_model, name="big.onnx", external="big.weights")
    bundle = make_bundle(artifact=path)
    (bundle / "inner").mkdir()
    (bundle / "big.onnx").rename(bundle / "inner" / "big.onnx")
    shutil.copyfile(bundle / "big.weights", bundle / "inner" / "big.weights")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifact"] = "inner/big.onnx"
    manifest["files"]["inner/big.onnx"] = manifest["files"].pop("big.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list: 'inner/big\.weights'"):
        load(bundle)
    manifest["files"]["inner/big.weights"] = manifest["files"]["big.weights"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with load(bundle):
        pass
    assert {*read_content(bundle).read_by("inner/big.onnx")} == {
        "inner/big.onnx",
        "inner/big.weights",
    }


def test_an_artifact_that_runs_a_graph_in_a_node_is_refused(
    make_bundle: BundleMaker, save_model: Callable[..., Path]
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])
    more = helper.make_tensor_value_info("more", TensorProto.BOOL, [])
    step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])
    carried = [helper.make_node("Identity", [a], [b]) for a, b in (("more", "on"), ("x", "z"))]
    out = [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 8]),
    ]
    endless = helper.make_graph(carried, "body", [step, more, x], out)
    loop = helper.make_node("Loop", ["", "", "x"], ["y"], body=endless)
    graph = helper.make_graph([loop], "graph", [x], [y])
    path = save_model(helper.make_model(graph), name="loop.onnx")
    with pytest.raises(BundleError, match="a graph of its own, as If, Loop and Scan do"):
        load(make_bundle(artifact=path))
