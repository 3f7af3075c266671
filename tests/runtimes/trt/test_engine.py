from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.helper import make_node, make_tensor_value_info

from tokexport.runtimes.errors import BuildError, OperatorRefusedError
from tokexport.runtimes.trt.engine import RTX_CAPABILITIES, build_engine
from tokexport.runtimes.trt.libraries import RTX, Log, find_tensorrt, load_rtx

SaveModel = Callable[..., Path]
RunPython = Callable[[str], CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def value(name: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return make_tensor_value_info(name, dtype, shape)


def is_engine(path: Path) -> bool:
    """Whether a file is an engine as TensorRT writes it: plain, with nothing put before it."""
    return path.read_bytes()[:4] in (b"vtrt", b"ftrt")


def test_an_engine_is_built_of_a_model_with_a_model_local_function(
    save_model: SaveModel, function_model: onnx.ModelProto
) -> None:
    path = save_model(function_model)
    engine = path.with_suffix(".engine")
    info = build_engine(path, engine)
    assert is_engine(engine)
    assert info.name == "trt"
    assert info.flavour in ("tensorrt", "tensorrt-rtx")
    assert info.version == find_tensorrt().version
    if info.flavour == RTX:
        assert info.details["compute_capabilities"] == list(RTX_CAPABILITIES)


def test_nested_functions_are_inlined(
    save_model: SaveModel, function_model: onnx.ModelProto
) -> None:
    outer = helper.make_function(
        "tokexport",
        "four_times",
        ["x"],
        ["y"],
        [
            make_node("twice", ["x"], ["t"], domain="tokexport"),
            make_node("twice", ["t"], ["y"], domain="tokexport"),
        ],
        [helper.make_opsetid("tokexport", 1)],
    )
    function_model.functions.append(outer)
    function_model.graph.node[1].op_type = "four_times"
    path = save_model(function_model)
    build_engine(path, path.with_suffix(".engine"))
    assert is_engine(path.with_suffix(".engine"))


def test_weights_in_external_data_are_read(
    save_model: SaveModel, function_model: onnx.ModelProto
) -> None:
    plain = save_model(function_model)
    external = save_model(function_model, name="external.onnx", external="external.data")
    for path in (plain, external):
        build_engine(path, path.with_suffix(".engine"))
    sizes = [path.with_suffix(".engine").stat().st_size for path in (plain, external)]
    assert sizes[0] == sizes[1]


def test_a_scatter_with_a_reduction_is_refused_and_its_node_named(
    save_model: SaveModel, refused_model: onnx.ModelProto
) -> None:
    path = save_model(refused_model)
    with pytest.raises(OperatorRefusedError, match="ScatterElements: Unsupported red") as caught:
        build_engine(path, path.with_suffix(".engine"))
    assert (caught.value.node, caught.value.operator) == ("merge_sum", "ScatterElements")
    assert "node merge_sum" in caught.value.where
    assert not path.with_suffix(".engine").exists()


def test_a_refusal_inside_a_function_names_the_inner_node_and_the_function(
    save_model: SaveModel,
) -> None:
    function = helper.make_function(
        "tokexport",
        "count",
        ["x"],
        ["y"],
        [make_node("NonZero", ["x"], ["y"], name="find")],
        [helper.make_opsetid("", 18)],
    )
    path = save_model(
        [make_node("count", ["x"], ["y"], name="outer", domain="tokexport")],
        [value("x", [2, 3])],
        [value("y", [2, "n"], TensorProto.INT64)],
        functions=[function],
    )
    with pytest.raises(OperatorRefusedError) as caught:
        build_engine(path, path.with_suffix(".engine"))
    assert (caught.value.node, caught.value.operator) == ("find", "NonZero")


@pytest.mark.parametrize(
    ("operator", "domain", "output"),
    [("NonZero", "", TensorProto.INT64), ("Fold", "custom", TensorProto.FLOAT)],
)
def test_an_unknown_operator_is_refused_and_its_node_named(
    save_model: SaveModel, operator: str, domain: str, output: int
) -> None:
    path = save_model(
        [make_node(operator, ["x"], ["y"], name="stranger", domain=domain)],
        [value("x", [2, 3])],
        [value("y", [2, "n"], output)],
    )
    with pytest.raises(OperatorRefusedError) as caught:
        build_engine(path, path.with_suffix(".engine"))
    assert (caught.value.node, caught.value.operator) == ("stranger", operator)


def test_a_refusal_leaves_the_next_build_alone(
    save_model: SaveModel, refused_model: onnx.ModelProto, function_model: onnx.ModelProto
) -> None:
    refused = save_model(refused_model, name="refused.onnx")
    with pytest.raises(OperatorRefusedError):
        build_engine(refused, refused.with_suffix(".engine"))
    path = save_model(function_model)
    build_engine(path, path.with_suffix(".engine"))
    assert is_engine(path.with_suffix(".engine"))


def test_a_network_that_parses_and_does_not_build_names_its_node(save_model: SaveModel) -> None:
    path = save_model(
        [make_node("TopK", ["x", "k"], ["v", "i"], name="best", axis=1)],
        [value("x", [1, 5000])],
        [value("v", [1, 4000])],
        weights={"k": np.array([4000])},
    )
    with pytest.raises(BuildError, match="K exceeds the maximum value allowed") as caught:
        build_engine(path, path.with_suffix(".engine"))
    assert (caught.value.node, caught.value.operator) == ("best", "TopK")


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_attention_builds_in_every_precision(save_model: SaveModel, dtype: int) -> None:
    path = save_model(
        [make_node("Attention", ["q", "k", "v"], ["y"], name="attend")],
        [value(name, [1, 2, 16, 32], dtype) for name in "qkv"],
        [value("y", [1, 2, 16, 32], dtype)],
        opset=23,
    )
    build_engine(path, path.with_suffix(".engine"))
    assert is_engine(path.with_suffix(".engine"))


def test_a_size_that_is_not_fixed_is_refused(save_model: SaveModel) -> None:
    path = save_model(
        [make_node("Relu", ["x"], ["y"])], [value("x", ["N", 3])], [value("y", ["N", 3])]
    )
    with pytest.raises(BuildError, match=r"Input x has a size that is not fixed: \(-1, 3\)"):
        build_engine(path, path.with_suffix(".engine"))


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a model", b""])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match="TensorRT") as caught:
        build_engine(path, tmp_path / "model.engine")
    assert str(path) in caught.value.where
    assert not (tmp_path / "model.engine").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="model file does not exist"):
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine")


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_external_data_that_is_not_there(
    save_model: SaveModel, function_model: onnx.ModelProto, damage: str
) -> None:
    path = save_model(function_model, external="weights.data")
    data = path.with_name("weights.data")
    data.unlink() if damage == "removed" else os.truncate(data, 10)
    with pytest.raises(BuildError, match="cannot read the model") as caught:
        build_engine(path, path.with_suffix(".engine"))
    assert not isinstance(caught.value, OperatorRefusedError)
    assert "weights.data" in caught.value.where


def test_an_engine_that_cannot_be_written_is_an_os_error(
    save_model: SaveModel, function_model: onnx.ModelProto, tmp_path: Path
) -> None:
    path = save_model(function_model)
    with pytest.raises(FileNotFoundError):
        build_engine(path, tmp_path / "absent" / "model.engine")


def test_the_log_keeps_errors_and_the_last_parsed_node_until_it_starts_anew() -> None:
    log = Log()
    with log.collecting():
        log.record(4, "Parsing node: blocks.0/merge [tokexport::merge]")
        log.record(1, "it went wrong\n")
        log.record(2, "a warning")
        assert log.errors == ["it went wrong"]
        assert log.parsing == ("blocks.0/merge", "tokexport::merge")
    with log.collecting():
        assert (log.errors, log.parsing) == ([], ("", ""))


def test_rtx_loads_once_and_knows_its_exact_version() -> None:
    assert load_rtx() is load_rtx()
    assert load_rtx().version == load_rtx().api.__version__
    assert load_rtx().version.count(".") == 3


def hidden(*modules: str) -> str:
    """The start of a program in which modules cannot be imported, and an engine is asked for."""
    return (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
        "from tokexport.runtimes.errors import RuntimeMissingError\n"
        "from tokexport.runtimes.trt.libraries import find_tensorrt\n"
    )


ASK = "try: find_tensorrt()\nexcept RuntimeMissingError as error: print(error)"


def test_without_either_flavour_both_ways_out_are_named(run_python: RunPython) -> None:
    names = ("tensorrt", "onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_rtx_bindings")
    done = run_python(hidden(*names) + ASK)
    assert done.stdout.splitlines() == [
        "No TensorRT found.",
        "Install `tensorrt` (needs an NVIDIA GPU), or the `trt-rtx` extra to build without a GPU: "
        "pip install 'tokexport[trt-rtx]'",
    ], done.stderr


@pytest.mark.parametrize("name", ["onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_half_of_rtx_names_the_other_half(run_python: RunPython, name: str) -> None:
    done = run_python(hidden("tensorrt", name) + ASK)
    assert done.stdout.splitlines() == [
        f"TensorRT-RTX is not whole: the package {name} is not installed.",
        "Install it: pip install 'tokexport[trt-rtx]'",
    ], done.stderr


def test_rtx_libraries_that_are_not_there_are_named(run_python: RunPython, tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime_ep_nv_tensorrt_rtx"
    package.mkdir()
    (package / "__init__.py").touch()
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = run_python(start + hidden("tensorrt") + ASK)
    assert "TensorRT-RTX is not whole: there is no libtensorrt_rtx.so.*." in done.stdout
    assert str(package) in done.stdout


def test_rtx_libraries_that_do_not_load_say_why(run_python: RunPython, tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime_ep_nv_tensorrt_rtx"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "libtensorrt_rtx.so.9.9.9").write_bytes(b"not a library")
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = run_python(start + hidden("tensorrt") + ASK)
    assert "TensorRT-RTX does not load on this machine." in done.stdout
    assert "libtensorrt_rtx.so.9.9.9" in done.stdout


def test_rtx_bindings_of_another_version_are_refused(run_python: RunPython, tmp_path: Path) -> None:
    package = tmp_path / "tensorrt_rtx_bindings"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "1.6.0.1"\n')
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = run_python(start + hidden("tensorrt") + ASK)
    assert f"library is {load_rtx().version}, and its Python bindings are 1.6.0.1" in done.stdout


def test_a_tensorrt_without_a_library_gives_way_to_rtx(
    run_python: RunPython, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text('raise ImportError("libnvinfer.so.10 not found")\n')
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = run_python(start + hidden() + "print(find_tensorrt().flavour)")
    assert done.stdout == "tensorrt-rtx\n", done.stderr
