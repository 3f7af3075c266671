"""A model repository of Triton: read by its own protocol buffers, and run without tokexport."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from helpers.cli import in_own_process, refusal, tokexport
from helpers.plain_runtime import hold_to_reference
from helpers.small_bundles import LARGEST, WEIGHT, WIDTH, product_bundle
from tritonclient.grpc import model_config_pb2 as proto
from tritonclient.utils import np_to_triton_dtype

from tokexport.exporter.errors import UsageError
from tokexport.exporter.package import triton_config
from tokexport.exporter.package.content import read_content
from tokexport.exporter.package.options import PackageOptions
from tokexport.exporter.package.triton import triton_files
from tokexport.exporter.package.triton_config import TritonModel
from tokexport.runtimes.bundle.class_scores import ClassScores
from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.bundle.reference import read_reference
from tokexport.runtimes.native_library import native_library


def packaged(bundle: Path, output: Path, *options: object) -> Path:
    """Packages a bundle and returns the folder of the model."""
    answer = tokexport("package", bundle, "--format", "triton", "--output", output, *options)
    assert answer.code == 0, answer
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []
    (model,) = output.iterdir()
    return model


def config_of(model: Path) -> proto.ModelConfig:
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, proto.ModelConfig())


def test_the_config_of_onnxruntime(ort_bundle: Path, tmp_path: Path) -> None:
    model = packaged(ort_bundle, tmp_path / "models", "--instances", "2", "--threads", "3")
    config, manifest = config_of(model), read_manifest(ort_bundle)
    assert (config.name, config.backend) == (model.name, "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (0, "model.onnx")
    for found, wanted in ((config.input, manifest.inputs), (config.output, manifest.outputs)):
        assert [(one.name, tuple(one.dims)) for one in found] == [
            (one.name, one.shape) for one in wanted
        ]
        types = [proto.DataType.Name(one.data_type).removeprefix("TYPE_") for one in found]
        assert types == [np_to_triton_dtype(np.dtype(one.dtype)) for one in wanted]
    assert [(g.count, g.kind) for g in config.instance_group] == [
        (2, proto.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert not config.HasField("dynamic_batching")
    assert not config.model_operations.op_library_filename
    (warm_up,) = config.model_warmup
    data = warm_up.inputs["image"]
    sample = np.fromfile(model / "warmup" / data.input_data_file, np.float32).reshape(data.dims)
    reference = read_reference(ort_bundle, manifest)
    assert np.array_equal(sample, reference.inputs["image"][0])
    hold_to_reference(model / "1" / "model.onnx", ort_bundle, tmp_path)


def test_labels_stand_in_the_order_of_their_numbers(ort_bundle: Path, tmp_path: Path) -> None:
    model = packaged(ort_bundle, tmp_path / "models", "--name", "vit")
    assert model.name == "vit"
    (logits,) = config_of(model).output
    assert logits.label_filename == "labels.txt"
    lines = (model / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"digit {number}" for number in range(10)]


def test_labels_of_an_output_that_scores(ort_bundle: Path) -> None:
    content = read_content(ort_bundle)
    scores = ClassScores("output", "logits")
    names = ("a\nb", "", *map(str, range(8)))
    manifest = dataclasses.replace(content.manifest, scores=scores, labels=names)
    replaced = dataclasses.replace(content, manifest=manifest)
    files = triton_files(replaced, PackageOptions()).files
    lines = files["vit-ort/labels.txt"].decode().splitlines()
    assert lines == ["a b", "", *map(str, range(8))]


def test_openvino(openvino_bundle: Path, tmp_path: Path) -> None:
    model = packaged(openvino_bundle, tmp_path / "models")
    config = config_of(model)
    assert (config.backend, config.default_model_filename) == ("openvino", "model.xml")
    assert {path.name for path in (model / "1").iterdir()} == {"model.xml", "model.bin"}
    hold_to_reference(model / "1" / "model.xml", openvino_bundle, tmp_path)


def test_kernels_only_where_they_are_asked_for(ort_bundle: Path, tmp_path: Path) -> None:
    library = "/opt/tokexport/tokexport_native.so"
    model = packaged(ort_bundle, tmp_path / "models", "--kernels", library)
    assert [*config_of(model).model_operations.op_library_filename] == [library]


def test_an_engine_and_what_triton_does_not_run(ort_bundle: Path) -> None:
    content = read_content(ort_bundle)
    names = {"tensorrt": "tensorrt", "tensorrt-rtx": None, "unknown": None}
    for flavour, backend in names.items():
        runtime = RuntimeInfo("trt", flavour, "10.0")
        other = dataclasses.replace(
            content, manifest=dataclasses.replace(content.manifest, runtime=runtime)
        )
        if backend is None:
            with pytest.raises(UsageError, match=f"no backend for {flavour}"):
                triton_files(other, PackageOptions())
            continue
        files = triton_files(other, PackageOptions()).files
        config = text_format.Parse(files["vit-ort/config.pbtxt"].decode(), proto.ModelConfig())
        assert config.backend == backend
        assert config.instance_group[0].kind == proto.ModelInstanceGroup.KIND_GPU
        with pytest.raises(UsageError, match="Batching is for bundles of ort and openvino"):
            triton_files(other, PackageOptions(batching=True))


def test_any_type_name_and_shape() -> None:
    odd = 'a "quoted" \\ name\n\twith {braces} and ünïcode 🐝\0'
    shapes = {(): (1,), (3,): (3,), (2, -1, 4): (2, -1, 4)}
    for dtype, name in triton_config.TYPES.items():
        for shape, dims in shapes.items():
            spec = TensorSpec(odd, shape, dtype)
            for batches in ((), (1, 4)):
                text = TritonModel("m", "b", "f", (spec,), (spec,), batches).config()
                config = text_format.Parse(text, proto.ModelConfig())
                (found,) = config.input
                assert found.name == odd
                assert proto.DataType.Name(found.data_type) == name
                assert np_to_triton_dtype(np.dtype(dtype)) == name.removeprefix("TYPE_")
                assert tuple(found.dims) == dims
                # an empty one is refused of a model that does not batch
                assert found.HasField("reshape") == (bool(batches) and shape == ())
                assert not found.reshape.shape
    with pytest.raises(UsageError, match="no tensor with a size of 0"):
        TritonModel("m", "b", "f", (TensorSpec("x", (0, 2), "int8"),), ()).config()


@pytest.mark.parametrize("odd", [TensorSpec("x", (), "float32"), TensorSpec("x", (2,), "float64")])
def test_what_the_backend_for_openvino_does_not_take(
    openvino_bundle: Path, odd: TensorSpec
) -> None:
    content = read_content(openvino_bundle)
    manifest = dataclasses.replace(content.manifest, outputs=(odd,))
    with pytest.raises(UsageError, match="no scalars and no float64"):
        triton_files(dataclasses.replace(content, manifest=manifest), PackageOptions())


def test_refusals(ort_bundle: Path, openvino_bundle: Path, tmp_path: Path) -> None:
    def refused(bundle: Path, *options: object) -> str:
        given = ("--format", "triton", "--output", tmp_path / "models", *options)
        return refusal(tokexport("package", bundle, *given), 2, tmp_path)

    assert "takes no library" in refused(openvino_bundle, "--kernels", "/k.so")
    assert "--instances is 0" in refused(ort_bundle, "--instances", "0")
    assert "1 to 2147483647 are possible" in refused(ort_bundle, "--instances", "99999999999")
    assert "--threads is -1" in refused(ort_bundle, "--threads", "-1")
    assert "waits for others only where" in refused(ort_bundle, "--delay-us", "5")
    assert not (tmp_path / "models").exists()


def test_wide_int8_weights_are_noted(ort_bundle: Path, tmp_path: Path) -> None:
    content = read_content(ort_bundle)
    runtime = RuntimeInfo("ort", "onnxruntime-cpu", "1.32.0", {"weight_bits": 8})
    manifest = dataclasses.replace(content.manifest, runtime=runtime)
    for options in (PackageOptions(), PackageOptions(batching=True)):
        notes = triton_files(dataclasses.replace(content, manifest=manifest), options).notes
        assert [one for one in notes if "without VNNI" in one]


def test_a_folder_of_others_is_never_replaced(ort_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    packaged(ort_bundle, models)
    given = ("package", ort_bundle, "--format", "triton", "--output", models)
    refusal(tokexport(*given), 2, tmp_path, "there already")
    assert tokexport(*given, "--force").code == 0
    assert tokexport(*given, "--force", "--batching").code == 0  # it has other files
    assert tokexport(*given, "--force").code == 0
    assert tokexport(*given, "--force", "--name", "other").code == 2
    (models / "resnet").mkdir()
    (models / "resnet" / "config.pbtxt").write_text("mine")
    refusal(tokexport(*given, "--force"), 2, tmp_path, "resnet/config.pbtxt")
    link = tmp_path / "link"
    link.symlink_to(models)
    given = ("package", ort_bundle, "--format", "triton", "--output", link, "--force")
    refusal(tokexport(*given), 2, tmp_path, "it is a link, not a folder")
    assert (models / "resnet" / "config.pbtxt").read_text() == "mine"


# ---------------------------------------------------------------------------------------------
# model.py, run outside Triton: what stands in for its module does what the module documents.

_BACKEND = """
class Tensor:
    def __init__(self, name, array):
        assert array.flags["C_CONTIGUOUS"]
        self._name, self._array = name, array
    def name(self):
        return self._name
    def as_numpy(self):
        return self._array
class TritonError:
    def __init__(self, text):
        self.text = text
class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        self.output_tensors, self.error = output_tensors, error
def get_input_tensor_by_name(request, name):
    return request[name]
"""

_PROGRAM = """
import json, sys
import numpy as np
folder, given, output, sizes = sys.argv[1:]
sys.path.insert(0, folder + "/1")
import triton_python_backend_utils as backend
from model import TritonPythonModel

with np.load(given) as file:
    arrays = {name: file[name] for name in file.files}
model = TritonPythonModel()
model.initialize({"model_repository": folder, "model_version": "1"})
done, requests = 0, []
for size in json.loads(sizes):
    requests.append({k: backend.Tensor(k, a[done:done + size]) for k, a in arrays.items()})
    done += size
answers = model.execute(requests)
assert len(answers) == len(requests)
said = [one.error.text if one.error else "" for one in answers]
found = [{t.name(): t.as_numpy() for t in one.output_tensors} for one in answers]
assert not [name for name in sys.modules if name.partition(".")[0] in ("tokexport", "torch")]
assert sys.modules.get("openvino_telemetry") is None
np.savez(output, said=np.array(said), **{
    f"{i}/{name}": array for i, one in enumerate(found) for name, array in one.items()})
"""


def execute(
    model: Path, place: Path, inputs: dict[str, np.ndarray], sizes: list[int]
) -> tuple[list[str], list[dict[str, np.ndarray]]]:
    """Runs model.py on one call of ``execute`` with requests of these sizes.

    Returns:
        The refusal of each request, and its outputs by name.
    """
    (place / "triton_python_backend_utils.py").write_text(_BACKEND, encoding="utf-8")
    np.savez(place / "given.npz", **inputs)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PROGRAM,
            model,
            place / "given.npz",
            place / "out.npz",
            json.dumps(sizes),
        ],
        env={**os.environ, "PYTHONPATH": str(place), "ORT_DISABLE_TELEMETRY": "1"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, np.ndarray]] = [{} for _ in sizes]
    with np.load(place / "out.npz") as file:
        for key in file.files:
            if key != "said":
                index, _, name = key.partition("/")
                found[int(index)][name] = file[key]
        return [str(one) for one in file["said"]], found


def samples_of(bundle: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the reference's inputs and outputs, a sample a row."""
    reference = read_reference(bundle, read_manifest(bundle))
    return tuple(  # type: ignore[return-value]
        {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
        for arrays in (reference.inputs, reference.outputs)
    )


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_requests_are_joined_split_and_filled_up(
    target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(f"{target}_bundle")
    options = ("--batching", "--delay-us", "100", "--threads", "1")
    model = packaged(bundle, tmp_path / "models", *options)
    config = config_of(model)
    assert (config.backend, config.max_batch_size) == ("python", 4)
    assert [*config.dynamic_batching.preferred_batch_size] == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert [tuple(one.dims) for one in config.input] == [(1, 8, 8)]
    inputs, outputs = samples_of(bundle)
    assert len(inputs["image"]) > 7
    sizes = [1, 2, 3, 1]  # seven samples: a whole batch and a filled one
    said, answers = execute(model, tmp_path, {"image": inputs["image"][:7]}, sizes)
    assert said == [""] * 4
    assert [len(one["output"]) for one in answers] == sizes
    found = np.concatenate([one["output"] for one in answers])
    np.testing.assert_allclose(found, outputs["output"][:7], atol=1e-4)


def test_native_kernels_where_they_are_named(ort_bundle: Path, tmp_path: Path) -> None:
    library = native_library()
    assert library is not None
    model = packaged(ort_bundle, tmp_path / "models", "--batching", "--kernels", library)
    inputs, outputs = samples_of(ort_bundle)
    _, (found,) = execute(model, tmp_path, {"image": inputs["image"][:3]}, [3])
    np.testing.assert_allclose(found["output"], outputs["output"][:3], atol=1e-4)
    serving = json.loads((model / "1" / "serving.json").read_text())
    (model / "1" / "serving.json").write_text(json.dumps({**serving, "library": "/nowhere.so"}))
    with pytest.raises(AssertionError, match="nowhere.so"):  # it is what is registered
        execute(model, tmp_path, {"image": inputs["image"][:3]}, [3])


@pytest.mark.parametrize("format", ["tar", "triton", "oci"])
def test_a_disk_that_takes_no_more_leaves_nothing(
    ort_bundle: Path, tmp_path: Path, format: str
) -> None:
    given = ("package", ort_bundle, "--format", format, "--output", tmp_path / "package")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    answer = in_own_process(*given, before=limit)
    refusal(answer, 4, tmp_path, "cannot be written")
    assert [*tmp_path.iterdir()] == []


def product_inputs(samples: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.random((samples, WIDTH), np.float32)
    return {"x": x, "shift": draw.integers(0, 10, (samples, 1))}


def product_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = inputs["x"] @ WEIGHT + inputs["shift"].astype(np.float32)
    return found


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_a_ladder_of_batches(target: str, tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 8, 1, 2, target=target)
    model = packaged(bundle, tmp_path / "models", "--batching")
    config = config_of(model)
    assert [*config.dynamic_batching.preferred_batch_size] == [1, 2, 8]
    assert config.max_batch_size == 8
    assert len([*(model / "1").glob("model*")]) == (4 if target == "ort" else 5)  # model.py too
    inputs = product_inputs(13)
    said, answers = execute(model, tmp_path, inputs, [6, 7])
    assert said == ["", ""]
    found = np.concatenate([one["y"] for one in answers])
    np.testing.assert_allclose(found, product_of(inputs), rtol=1e-5)


def test_a_ladder_without_batching_serves_its_first_artifact(tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 8, 1)
    model = packaged(bundle, tmp_path / "models")
    assert [path.name for path in (model / "1").iterdir()] == ["model.onnx"]
    assert [tuple(one.dims) for one in config_of(model).input] == [(8, WIDTH), (8, 1)]


def test_wrong_requests_are_refused_alone(tmp_path: Path) -> None:
    """A NaN, a number outside its range, and a value that fails the artifact's own check."""
    model = packaged(product_bundle(tmp_path / "product", 4), tmp_path / "models", "--batching")
    assert [one.name for one in config_of(model).output] == ["y"]
    inputs = product_inputs(8)
    wanted = product_of(inputs)
    inputs["x"][1, 0] = np.nan
    inputs["shift"][3] = 10
    inputs["x"][5, 2] = LARGEST + 1
    said, answers = execute(model, tmp_path, inputs, [1, 1, 1, 1, 1, 1, 2])
    assert [index for index, one in enumerate(said) if one] == [1, 3, 5]
    assert said[1] == "Input x holds NaN."
    assert said[3] == "Input shift holds a number outside 0 to 9."
    assert "x is too large" in said[5]
    found = np.concatenate([answers[index]["y"] for index in (0, 2, 4, 6)])
    np.testing.assert_allclose(found, wanted[[0, 2, 4, 6, 7]], rtol=1e-5)
    assert [answers[index] for index in (1, 3, 5)] == [{}, {}, {}]


def test_without_batching_a_client_has_to_read_the_checks(tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 4)
    output = tmp_path / "models"
    answer = tokexport("package", bundle, "--format", "triton", "--output", output, "--json")
    notes = answer.json["notes"]
    assert "the output holds: it must be true" in notes[0]
    assert "input_ranges" in notes[1]
    config = config_of(output / "product")
    assert [one.name for one in config.output] == ["y", "holds"]
    assert not config.model_warmup  # without a reference nothing is made up


def test_samples_that_may_depend_on_one_another_are_not_joined(tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 4)
    dataclasses.replace(read_manifest(bundle), samples_independent=False).write(bundle)
    given = ("--format", "triton", "--batching", "--output", tmp_path / "models")
    refusal(tokexport("package", bundle, *given), 2, tmp_path, "may change one another's answers")


def test_the_plan_goes_by_what_runs_took(tmp_path: Path) -> None:
    """Where a run of eight takes as long as one of two, seven samples are one run of eight."""
    bundle = product_bundle(tmp_path / "product", 8, 2)
    manifest = read_manifest(bundle)
    rungs = tuple(dataclasses.replace(one, latency_ms=1.0) for one in manifest.rungs)
    dataclasses.replace(manifest, latency_ms=1.0, rungs=rungs).write(bundle)
    model = packaged(bundle, tmp_path / "models", "--batching")
    plan = json.loads((model / "1" / "serving.json").read_text())["plan"]
    assert plan == [[2], [2], *[[8]] * 6]
    inputs = product_inputs(7)
    _, answers = execute(model, tmp_path, inputs, [3, 4])
    found = np.concatenate([one["y"] for one in answers])
    np.testing.assert_allclose(found, product_of(inputs), rtol=1e-5)


def test_what_has_no_batch_is_not_batched(tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 4)
    manifest = read_manifest(bundle)
    scalar = TensorSpec("shift", (), "int64")
    dataclasses.replace(manifest, inputs=(manifest.inputs[0], scalar)).write(bundle)
    given = ("--format", "triton", "--batching", "--output", tmp_path / "models")
    refusal(tokexport("package", bundle, *given), 2, tmp_path, "cannot batch the bundle", "shift")
