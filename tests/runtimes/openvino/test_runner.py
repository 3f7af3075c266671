from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info

from tokexport.runtimes.errors import BuildError, OperatorRefusedError
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert

SaveModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def float_value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture
def converted(save_model: SaveModel, classifier_model: onnx.ModelProto) -> Path:
    path = save_model(classifier_model)
    info = convert(path, path.with_suffix(".xml"))
    assert (info.name, info.flavour) == ("openvino", "openvino-cpu")
    assert info.version.count(".") == 2
    return path.with_suffix(".xml")


def test_a_converted_model_agrees_in_fp32(converted: Path, weight: np.ndarray) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    with OpenVinoRunner.from_file(converted) as runner:
        assert [str(s) for s in runner.inputs] == ["x float32 (2, 8)"]
        assert [str(s) for s in runner.outputs] == ["logits float32 (2, 5)", "label int64 (2,)"]
        result = runner.run({"x": x})
    expected = np.maximum(x @ weight, 0)
    np.testing.assert_allclose(result["logits"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result["label"], expected.argmax(-1))


def test_results_of_one_run_outlive_the_next(converted: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    with OpenVinoRunner.from_file(converted) as runner:
        first = runner.run({"x": x})["logits"]
        kept = first.copy()
        x *= 3
        second = runner.run({"x": x})["logits"]
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_weights_keep_their_type(converted: Path) -> None:
    assert converted.with_suffix(".bin").stat().st_size >= 8 * 5 * 4
    constants = [
        layer.find("data").get("element_type")
        for layer in ElementTree.parse(converted).iter("layer")
        if layer.get("type") == "Const" and layer.find("data").get("shape") in ("8, 5", "5, 8")
    ]
    assert constants == ["f32"]


def test_names_of_several_outputs_of_one_tensor_are_kept(save_model: SaveModel) -> None:
    path = save_model(
        [
            make_node("Relu", ["x"], ["zeta"]),
            make_node("Identity", ["zeta"], ["alpha"]),
            make_node("Identity", ["x"], ["same"]),
        ],
        [float_value("x", [3])],
        [float_value("zeta", [3]), float_value("alpha", [3]), float_value("same", [3])],
    )
    convert(path, path.with_suffix(".xml"))
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    with OpenVinoRunner.from_file(path.with_suffix(".xml")) as runner:
        result = runner.run({"x": x})
    assert list(result) == ["zeta", "alpha", "same"]
    np.testing.assert_array_equal(result["alpha"], [0, 0, 2])
    np.testing.assert_array_equal(result["same"], x)


def test_of_equal_values_the_lower_index_comes_first_as_in_onnx(save_model: SaveModel) -> None:
    path = save_model(
        [
            make_node("Constant", [], ["k"], value_ints=[9]),
            make_node("TopK", ["x", "k"], ["values", "order"], axis=1),
            make_node("ArgMax", ["x"], ["first"], axis=1, keepdims=0),
            make_node("ArgMin", ["x"], ["last"], axis=1, keepdims=0),
        ],
        [float_value("x", [4, 36])],
        [
            make_tensor_value_info("order", TensorProto.INT64, [4, 9]),
            make_tensor_value_info("first", TensorProto.INT64, [4]),
            make_tensor_value_info("last", TensorProto.INT64, [4]),
        ],
    )
    convert(path, path.with_suffix(".xml"))
    x = np.random.default_rng(0).integers(0, 3, (4, 36)).astype(np.float32)
    with OpenVinoRunner.from_file(path.with_suffix(".xml")) as runner:
        result = runner.run({"x": x})
    np.testing.assert_array_equal(result["order"], np.argsort(-x, axis=1, kind="stable")[:, :9])
    np.testing.assert_array_equal(result["first"], x.argmax(axis=1))
    np.testing.assert_array_equal(result["last"], x.argmin(axis=1))


def test_names_of_operators_without_effect_do_not_join_those_of_ports(
    save_model: SaveModel,
) -> None:
    path = save_model(
        [
            make_node("Pad", ["x", "nothing"], ["a"]),
            make_node("Relu", ["a"], ["b"]),
            make_node("Pad", ["b", "nothing"], ["z"]),
        ],
        [float_value("x", [3])],
        [float_value("z", [3])],
        weights={"nothing": np.zeros(2, np.int64)},
    )
    convert(path, path.with_suffix(".xml"))
    with OpenVinoRunner.from_file(path.with_suffix(".xml")) as runner:
        assert [spec.name for spec in (*runner.inputs, *runner.outputs)] == ["x", "z"]
        result = runner.run({"x": np.array([-1.0, 0.0, 2.0], np.float32)})
    np.testing.assert_array_equal(result["z"], [0, 0, 2])


def test_external_data_becomes_part_of_the_ir(
    save_model: SaveModel, classifier_model: onnx.ModelProto
) -> None:
    plain = save_model(classifier_model)
    external = save_model(classifier_model, name="external.onnx", external="external.data")
    x = np.ones((2, 8), np.float32)
    results = []
    for path in (plain, external):
        convert(path, path.with_suffix(".xml"))
        path.with_name("external.data").unlink() if path == external else None
        with OpenVinoRunner.from_file(path.with_suffix(".xml")) as runner:
            results.append(runner.run({"x": x})["logits"])
    np.testing.assert_array_equal(*results)


def test_fp32_is_what_runs_unless_asked_otherwise(converted: Path) -> None:
    with OpenVinoRunner.from_file(converted) as runner:
        assert runner.runtime.details["inference_precision"] == "fp32"
        assert runner.runtime.details["layer_precisions"] == ["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_precision_that_ran_is_recorded_not_the_one_asked_for(
    converted: Path, weight: np.ndarray, precision: str
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    with OpenVinoRunner.from_file(converted, precision=precision) as runner:
        ran = runner.runtime.details["inference_precision"]
        logits = runner.run({"x": x})["logits"]
    error = np.abs(logits - np.maximum(x @ weight, 0)).max()
    # Rounding to a half precision shows in the result; a processor without one stays in fp32.
    assert ran in ("fp32", "bf16", "fp16")
    assert (error > 1e-5) == (ran != "fp32")


def test_threads_are_set(converted: Path) -> None:
    with OpenVinoRunner.from_file(converted, threads=1) as runner:
        assert runner.runtime.details["threads"] == 1


def test_an_unknown_precision_is_refused(converted: Path) -> None:
    with pytest.raises(BuildError, match="no inference precision 'int4'"):
        OpenVinoRunner.from_file(converted, precision="int4")


def test_a_refused_operator_is_named_with_its_node(save_model: SaveModel) -> None:
    path = save_model(
        [
            make_node("Fold", ["x"], ["folded"], name="fold_tokens", domain="custom"),
            make_node("Relu", ["folded"], ["y"]),
        ],
        [float_value("x", [2])],
        [float_value("y", [2])],
    )
    with pytest.raises(OperatorRefusedError, match="no operator custom:Fold") as caught:
        convert(path, path.with_suffix(".xml"))
    assert (caught.value.node, caught.value.operator) == ("fold_tokens", "custom:Fold")
    assert "fold_tokens" in caught.value.where
    assert not path.with_suffix(".xml").exists()


def test_a_model_local_function_is_refused_by_name(
    save_model: SaveModel, function_model: onnx.ModelProto
) -> None:
    path = save_model(function_model)
    with pytest.raises(OperatorRefusedError, match="tokexport:twice") as caught:
        convert(path, path.with_suffix(".xml"))
    assert (caught.value.node, caught.value.operator) == ("double", "tokexport:twice")
    assert "inline" in caught.value.fix


def test_several_refused_operators_are_all_named(save_model: SaveModel) -> None:
    path = save_model(
        [
            make_node("Fold", ["x"], ["a"], name="one", domain="custom"),
            make_node("Unfold", ["a"], ["b"], name="two"),
            make_node("Relu", ["b"], ["y"]),
        ],
        [float_value("x", [2])],
        [float_value("y", [2])],
    )
    with pytest.raises(OperatorRefusedError, match="Unfold, custom:Fold") as caught:
        convert(path, path.with_suffix(".xml"))
    assert "node one, operator custom:Fold; node two, operator Unfold" in caught.value.where


def test_an_invalid_node_is_named(save_model: SaveModel) -> None:
    path = save_model(
        [make_node("MatMul", ["x", "x"], ["s"], name="square"), make_node("Relu", ["s"], ["y"])],
        [float_value("x", [2, 3])],
        [float_value("y", [2, 2])],
    )
    with pytest.raises(BuildError, match="Incompatible MatMul") as caught:
        convert(path, path.with_suffix(".xml"))
    # OpenVINO names the node by its output here.
    assert (caught.value.node, caught.value.operator) == ("s", "MatMul")


def test_a_type_that_numpy_lacks_is_refused(save_model: SaveModel) -> None:
    path = save_model(
        [make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        [float_value("x", [2])],
        [make_tensor_value_info("y", TensorProto.BFLOAT16, [2])],
    )
    convert(path, path.with_suffix(".xml"))
    with pytest.raises(BuildError, match="'y' is a bf16"):
        OpenVinoRunner.from_file(path.with_suffix(".xml"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match="cannot read the model") as caught:
        convert(path, tmp_path / "model.xml")
    assert str(path) in caught.value.where


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_truncated_ir_is_refused(converted: Path, suffix: str) -> None:
    os.truncate(converted.with_suffix(suffix), 40)
    with pytest.raises(BuildError, match="cannot load the model"):
        OpenVinoRunner.from_file(converted)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="model file does not exist"):
        convert(tmp_path / "model.onnx", tmp_path / "model.xml")
    with pytest.raises(BuildError, match="model file does not exist"):
        OpenVinoRunner.from_file(tmp_path / "model.xml")


def test_an_ir_that_cannot_be_written_whole_is_an_os_error(
    save_model: SaveModel,
    classifier_model: onnx.ModelProto,
    run_python: Callable[[str], CompletedProcess[str]],
) -> None:
    path = save_model(classifier_model)
    done = run_python(
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from tokexport.runtimes.openvino.runner import convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"path = Path({str(path)!r})\n"
        "try: convert(path, path.with_suffix('.xml'))\n"
        "except OSError as error: print(Path(error.filename).name)"
    )
    assert done.stdout == "model.xml\n", done.stderr


def test_the_import_sends_no_telemetry_and_leaves_no_trace(
    run_python: Callable[[str], CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_python(
        f"import os, sys; os.environ['HOME'] = {str(tmp_path)!r}\n"
        "from tokexport.runtimes.openvino.runner import import_openvino\n"
        "import_openvino()\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_without_openvino_the_install_command_is_named(
    run_python: Callable[[str], CompletedProcess[str]], tmp_path: Path
) -> None:
    path = tmp_path / "model.xml"
    path.write_text("<net/>")
    done = run_python(
        "import sys; sys.modules['openvino'] = None\n"
        "from pathlib import Path\n"
        "from tokexport.runtimes.openvino.runner import OpenVinoRunner\n"
        "from tokexport.runtimes.errors import RuntimeMissingError\n"
        f"try: OpenVinoRunner.from_file(Path({str(path)!r}))\n"
        "except RuntimeMissingError as error: print(error)"
    )
    assert done.stdout.splitlines() == [
        "The package 'openvino' is not installed.",
        "Install it: pip install 'tokexport[openvino]'",
    ], done.stderr


def test_a_value_larger_than_the_weights_is_not_computed_ahead(save_model: SaveModel) -> None:
    path = save_model(
        [
            make_node("ConstantOfShape", ["size"], ["large"], name="many"),
            make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            make_node("Add", ["x", "sum"], ["y"]),
        ],
        [float_value("x", [2])],
        [float_value("y", [2])],
        weights={"size": np.array([2**27])},
    )
    convert(path, path.with_suffix(".xml"))
    with pytest.raises(BuildError, match=r"constant that is larger than its weights: Broadcast"):
        OpenVinoRunner.from_file(path.with_suffix(".xml"))
