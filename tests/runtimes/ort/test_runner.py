from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info

from tokexport.runtimes.errors import BuildError, OperatorRefusedError
from tokexport.runtimes.native_library import kernels_of, native_library
from tokexport.runtimes.ort.runner import OrtRunner

SaveModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_file_runs_and_its_specs_come_from_it(
    save_model: SaveModel, classifier_model: onnx.ModelProto, weight: np.ndarray
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    with OrtRunner.from_file(save_model(classifier_model)) as runner:
        assert [str(s) for s in runner.outputs] == ["logits float32 (2, 5)", "label int64 (2,)"]
        result = runner.run({"x": x})
    expected = np.maximum(x @ weight, 0)
    assert list(result) == ["logits", "label"]
    np.testing.assert_allclose(result["logits"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result["label"], expected.argmax(-1))


def test_a_model_in_memory_runs(function_model: onnx.ModelProto) -> None:
    x = np.ones((1, 4, 8), np.float32)
    with OrtRunner.from_bytes(function_model.SerializeToString()) as runner:
        w = onnx.numpy_helper.to_array(function_model.graph.initializer[0])
        expected = np.maximum(2 * (x @ w), 0)
        np.testing.assert_allclose(runner.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_the_runtime_is_described(classifier_model: onnx.ModelProto) -> None:
    with OrtRunner.from_bytes(classifier_model.SerializeToString(), threads=2) as runner:
        assert (runner.runtime.name, runner.runtime.flavour) == ("ort", "onnxruntime-cpu")
        library = native_library()
        assert library is not None
        assert runner.runtime.details == {
            "providers": ["CPUExecutionProvider"],
            "kernels": kernels_of(library),
            "threads": 2,
        }


def test_external_data_beside_the_file_is_read(
    save_model: SaveModel, classifier_model: onnx.ModelProto
) -> None:
    plain = save_model(classifier_model)
    external = save_model(classifier_model, name="external.onnx", external="external.data")
    x = np.ones((2, 8), np.float32)
    with OrtRunner.from_file(plain) as one, OrtRunner.from_file(external) as other:
        np.testing.assert_array_equal(one.run({"x": x})["logits"], other.run({"x": x})["logits"])


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_external_data_that_is_not_there(
    save_model: SaveModel, classifier_model: onnx.ModelProto, damage: str
) -> None:
    path = save_model(classifier_model, external="weights.data")
    data = path.with_name("weights.data")
    data.unlink() if damage == "removed" else os.truncate(data, 10)
    with pytest.raises(BuildError, match="external data cannot be read") as caught:
        OrtRunner.from_file(path)
    assert "beside the model" in caught.value.fix


def float_value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_an_operator_of_an_unknown_domain_is_refused_by_name(save_model: SaveModel) -> None:
    node = make_node("Fold", ["x"], ["y"], name="fold_tokens", domain="custom")
    path = save_model([node], [float_value("x", [2])], [float_value("y", [2])])
    with pytest.raises(OperatorRefusedError, match="no operator custom:Fold") as caught:
        OrtRunner.from_file(path)
    assert caught.value.operator == "custom:Fold"
    assert str(path) in caught.value.where


def test_an_operator_of_no_opset_is_refused_with_its_node(save_model: SaveModel) -> None:
    node = make_node("Fold", ["x"], ["y"], name="fold_tokens")
    path = save_model([node], [float_value("x", [2])], [float_value("y", [2])])
    with pytest.raises(OperatorRefusedError, match="no operator Fold") as caught:
        OrtRunner.from_file(path)
    assert (caught.value.node, caught.value.operator) == ("fold_tokens", "Fold")


def test_an_operator_without_a_kernel_for_its_type_is_refused_with_its_node(
    save_model: SaveModel,
) -> None:
    cast_in = make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16)
    node = make_node("Sin", ["half"], ["wave"], name="wave_node")
    cast_out = make_node("Cast", ["wave"], ["y"], to=TensorProto.FLOAT)
    path = save_model(
        [cast_in, node, cast_out], [float_value("x", [2])], [float_value("y", [2])], opset=22
    )
    with pytest.raises(OperatorRefusedError, match="no operator Sin") as caught:
        OrtRunner.from_file(path)
    assert (caught.value.node, caught.value.operator) == ("wave_node", "Sin")


def test_an_invalid_node_is_named(save_model: SaveModel) -> None:
    node = make_node("MatMul", ["x", "x"], ["y"], name="square")
    path = save_model([node], [float_value("x", [2, 3])], [float_value("y", [2, 2])])
    with pytest.raises(BuildError, match="Incompatible dimensions") as caught:
        OrtRunner.from_file(path)
    assert not isinstance(caught.value, OperatorRefusedError)
    assert (caught.value.node, caught.value.operator) == ("square", "MatMul")
    assert "square" in caught.value.where


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model", b"\x00" * 64])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match="cannot load the model") as caught:
        OrtRunner.from_file(path)
    assert str(path) in caught.value.where
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="model file does not exist") as caught:
        OrtRunner.from_file(tmp_path / "model.onnx")
    assert "model.onnx" in caught.value.where


def test_a_size_without_a_value_takes_any(save_model: SaveModel) -> None:
    path = save_model(
        [make_node("Relu", ["x"], ["y"])],
        [float_value("x", ["N", 2])],
        [float_value("y", ["N", 2])],
    )
    with OrtRunner.from_file(path) as runner:
        assert runner.inputs[0].shape == (-1, 2)
        assert runner.run({"x": np.ones((5, 2), np.float32)})["y"].shape == (5, 2)


def test_a_type_that_numpy_lacks_is_refused(save_model: SaveModel) -> None:
    path = save_model(
        [make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        [float_value("x", [2])],
        [make_tensor_value_info("y", TensorProto.BFLOAT16, [2])],
    )
    with pytest.raises(BuildError, match="'y' is a tensor\\(bfloat16\\)"):
        OrtRunner.from_file(path)


def test_without_onnxruntime_the_install_command_is_named(
    run_python: Callable[[str], CompletedProcess[str]],
) -> None:
    done = run_python(
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from tokexport.runtimes.ort.runner import OrtRunner\n"
        "from tokexport.runtimes.errors import RuntimeMissingError\n"
        "try: OrtRunner.from_bytes(b'')\n"
        "except RuntimeMissingError as error: print(error)"
    )
    assert done.stdout.splitlines() == [
        "The package 'onnxruntime' is not installed.",
        "Install it: pip install 'tokexport[ort]'",
    ], done.stderr


def test_the_import_begins_no_statistics_and_leaves_no_trace(
    run_python: Callable[[str], CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_python(
        f"import os; os.environ |= dict.fromkeys(('HOME', 'TMPDIR'), {str(tmp_path)!r})\n"
        "before = dict(os.environ)\n"
        "from tokexport.runtimes.importing import import_runtime\n"
        "import_runtime('onnxruntime', extra='ort')\n"
        "print(dict(os.environ) == before, 'XDG_CACHE_HOME' in before)"
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_no_value_larger_than_the_model_is_computed_ahead(
    run_python: Callable[[str], CompletedProcess[str]], save_model: SaveModel
) -> None:
    path = save_model(
        [
            make_node("ConstantOfShape", ["size"], ["large"]),
            make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            make_node("Add", ["x", "sum"], ["y"]),
        ],
        [make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        weights={"size": np.array([2**27])},
    )
    done = run_python(
        "import re\n"
        "from pathlib import Path\n"
        "from tokexport.runtimes.ort.runner import OrtRunner\n"
        f"OrtRunner.from_file(Path({str(path)!r}))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+([0-9]+) kB', status)[1]) < 400_000)"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
