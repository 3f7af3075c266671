"""What selects, counts and moves tokens stays in float32 in OpenVINO's half precisions and int8."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.function_models import Call, model_of
from helpers.graphs import emitted, rewrite
from helpers.openvino_models import MERGES, images, save_merging_vit
from helpers.torchvision_ops import child_environment

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.build.artifact import build
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.openvino_graph.int8 import left_out
from tokexport.exporter.openvino_graph.roles import is_linear, operators_and_roles
from tokexport.exporter.openvino_graph.rows import put_rows_first
from tokexport.exporter.parity.gates import LEAST_COSINE
from tokexport.graph_passes.pipelines import lower, lowering
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert, import_openvino
from tokexport.runtimes.tolerances.comparison import compare


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_merging_vit(tmp_path_factory.mktemp("lowered") / "model.onnx")


@dataclass(frozen=True)
class Layer:
    """A layer of a compiled model: its kind, the precision it runs in, what it was made of."""

    kind: str
    precision: str
    made_of: str


def compiled_layers(xml: Path, precision: str) -> list[Layer]:
    hint = {"bf16": "bf16", "int8": "f32"}[precision]
    openvino = import_openvino()
    options = {"INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(str(xml), "CPU", options)
    ran = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if ran != hint:
        pytest.skip(f"this processor computes in {ran}")
    keys = ("layerType", "runtimePrecision", "originalLayersNames")
    return [
        Layer(*(str(layer.rt_info[key].astype(str)) for key in keys))
        for layer in compiled.get_runtime_model().get_ops()
    ]


def layers(xml: Path, precision: str) -> Counter[tuple[str, str]]:
    """Counts the layers of a compiled model by their kind and the precision they run in."""
    return Counter((layer.kind, layer.precision) for layer in compiled_layers(xml, precision))


def test_roles_are_found_by_structure(lowered: Path, tmp_path: Path) -> None:
    convert(lowered, tmp_path / "model.xml")
    model = import_openvino().Core().read_model(tmp_path / "model.xml")
    operators, roles = operators_and_roles(model)

    def counted(places: frozenset[int]) -> Counter[str]:
        return Counter(operators[i].get_type_name() for i in places)

    assert counted(roles.selecting)["MatMul"] == MERGES
    assert counted(roles.selecting)["TopK"] == 3 * MERGES
    assert counted(roles.moving)["MatMul"] == MERGES
    assert counted(roles.heads) == {"MatMul": 1}
    assert counted(roles.first) == {"Convolution": 1}
    assert "Log" in counted(roles.counting)


def test_bf16_computes_what_selects_in_float32(lowered: Path, tmp_path: Path) -> None:
    build(BACKENDS["openvino"], lowered, tmp_path, "bf16")
    found = layers(tmp_path / "model.xml", "bf16")
    for kind in ("TopK", "Reduce"):
        assert found[kind, "bf16"] == 0
        assert found[kind, "f32"] >= MERGES, (kind, found)
    assert found["MatMul", "f32"] == 3 * MERGES  # scores, and one-hot products of rows and sizes
    assert found["FullyConnected", "bf16"] >= 4 * 3  # the linears are in bf16 all the same


def test_bf16_divides_by_lengths_and_sizes_in_float32(lowered: Path, tmp_path: Path) -> None:
    build(BACKENDS["openvino"], lowered, tmp_path, "bf16")
    found = compiled_layers(tmp_path / "model.xml", "bf16")
    divisions = [layer for layer in found if "/inverse" in layer.made_of]
    assert [layer.precision for layer in divisions] == ["f32"] * 2 * MERGES


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_ranks_beyond_what_half_can_count_stay_apart(precision: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((1, 5000, 24)).astype(np.float32)
    call = Call("bipartite_match", [scores], [(1, 4990), (1, 10), (1, 10)], {"r": [10]})
    save_onnx(lower(model_of([call]), lowering("openvino")).model, tmp_path / "in.onnx")
    build(BACKENDS["openvino"], tmp_path / "in.onnx", tmp_path, precision)
    with OpenVinoRunner.from_file(tmp_path / "model.xml", precision=precision) as runner:
        kept, src, dst = runner.run({"in0": scores}).values()
    order = np.argsort(-scores.max(axis=-1)[0], kind="stable")
    np.testing.assert_array_equal(src[0], order[:10])
    np.testing.assert_array_equal(kept[0], np.sort(order[10:]))
    np.testing.assert_array_equal(dst[0], scores[0].argmax(axis=-1)[order[:10]])


def test_a_model_that_selects_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = emitted(rewrite(torch.nn.Linear(8, 8), torch.rand(2, 8)))
    save_onnx(lower(model, lowering("openvino")).model, tmp_path / "in.onnx")
    convert(tmp_path / "in.onnx", tmp_path / "plain.xml")
    build(BACKENDS["openvino"], tmp_path / "in.onnx", tmp_path, "bf16")
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "plain.bin").read_bytes()


@pytest.fixture(scope="module")
def narrow(lowered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact in int8, an IR."""
    (name,) = import_openvino().Core().read_model(lowered).inputs[0].get_names()
    folder = tmp_path_factory.mktemp("int8")
    build(BACKENDS["openvino"], lowered, folder, "int8", images(name))
    return folder / "model.xml"


def test_int8_quantises_the_blocks_and_nothing_else(narrow: Path) -> None:
    quantised = import_openvino().Core().read_model(narrow)
    kept = set(left_out(quantised))
    products = [op for op in quantised.get_ordered_ops() if op.get_type_name() == "MatMul"]
    of_bytes = {
        product.get_friendly_name()
        for product in products
        if any(_is_quantised(port.get_source_output().get_node()) for port in product.inputs())
    }
    assert not of_bytes & kept
    # the head, and per merge scores and two one-hot products
    assert sum(product.get_friendly_name() in kept for product in products) == 1 + 3 * MERGES
    found = layers(narrow, "int8")
    assert found["FullyConnected", "u8"] + found["FullyConnected", "i8"] >= 4 * 3
    assert found["Convolution", "f32"] == 1


def test_no_decision_reads_a_number_rounded_behind_a_linear_in_int8(narrow: Path) -> None:
    operators, roles = operators_and_roles(import_openvino().Core().read_model(narrow))
    places = {operator.get_name(): i for i, operator in enumerate(operators)}
    read, linears = {*roles.selecting}, 0
    for i in reversed(range(len(operators))):
        operator = operators[i]
        if i not in read or operator.get_type_name() == "ShapeOf":
            continue
        assert operator.get_type_name() != "FakeQuantize", operator.get_friendly_name()
        if operator.get_type_name() == "MatMul" and is_linear(operator):
            linears += 1
            continue
        of_numbers = 1 if operator.get_type_name() == "ConvertLike" else None
        sources = [port.get_node() for port in operator.input_values()[:of_numbers]]
        read |= {places[node.get_name()] for node in sources}
    assert linears == MERGES


def test_what_int8_leaves_decides_in_float32_also_where_the_rest_runs_in_bf16(
    narrow: Path,
) -> None:
    found = layers(narrow, "bf16")
    for kind in ("TopK", "Reduce"):
        assert found[kind, "bf16"] == 0
        assert found[kind, "f32"] >= MERGES, (kind, found)
    assert found["FullyConnected", "u8"] + found["FullyConnected", "i8"] >= 4 * 3


def test_int8_has_the_rows_of_token_sizes_first(
    narrow: Path, lowered: Path, tmp_path: Path
) -> None:
    core = import_openvino().Core()
    convert(lowered, tmp_path / "model.xml")
    assert put_rows_first(core.read_model(tmp_path / "model.xml")) >= MERGES
    assert put_rows_first(core.read_model(narrow)) == 0


@pytest.mark.parametrize("hint", ["f32", "bf16"])
@pytest.mark.parametrize("joined", ["YES", "NO"])
def test_int8_answers_as_float32_does_also_where_every_rounding_stands(
    joined: str, hint: str, narrow: Path, lowered: Path
) -> None:
    """Without its transformations for bytes, the plugin rounds wherever the model says so."""
    core = import_openvino().Core()
    options = {"INFERENCE_PRECISION_HINT": hint, "LP_TRANSFORMS_MODE": joined}
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    quantised, exact = (
        core.compile_model(str(path), "CPU", {**asked, "INFERENCE_NUM_THREADS": 1})
        for path, asked in ((narrow, options), (lowered, exactly))
    )
    (arrays,) = images("x").arrays.values()
    found = np.stack([quantised([batch])[0] for batch in arrays])
    expected = np.stack([exact([batch])[0] for batch in arrays])
    assert compare(expected, found).cosine >= LEAST_COSINE


def _is_quantised(node: Any) -> bool:
    """Tells whether a FakeQuantize or an integer weight comes out of a node."""
    while node.get_type_name() in ("Convert", "Multiply", "Reshape", "Subtract", "Transpose"):
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        return True
    return node.get_type_name() == "Constant" and "8" in node.get_element_type().get_type_name()


def test_nncf_sends_no_usage_statistics() -> None:
    program = (
        "from tokexport.exporter.openvino_graph.int8 import import_nncf\n"
        "import sys\n"
        "import_nncf()\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "assert 'Mock' in type(telemetry).__name__, type(telemetry)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=child_environment(), check=False
    )
    assert done.returncode == 0
