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

from tokexport.exporter.build import build, save_onnx
from tokexport.exporter.openvino_int8 import left_out
from tokexport.exporter.openvino_roles import operators_and_roles
from tokexport.graph_passes import pipelines
from tokexport.runtimes.openvino import OpenVinoRunner, convert, import_openvino


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
    build("openvino", lowered, tmp_path, "bf16")
    found = layers(tmp_path / "model.xml", "bf16")
    for kind in ("TopK", "Reduce"):
        assert found[kind, "bf16"] == 0
        assert found[kind, "f32"] >= MERGES, (kind, found)
    assert found["MatMul", "f32"] == 3 * MERGES  # scores, and one-hot products of rows and sizes
    assert found["FullyConnected", "bf16"] >= 4 * 3  # the linears are in bf16 all the same


def test_bf16_divides_by_lengths_and_sizes_in_float32(lowered: Path, tmp_path: Path) -> None:
    build("openvino", lowered, tmp_path, "bf16")
    found = compiled_layers(tmp_path / "model.xml", "bf16")
    divisions = [layer for layer in found if "/inverse" in layer.made_of]
    assert [layer.precision for layer in divisions] == ["f32"] * 2 * MERGES


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_ranks_beyond_what_half_can_count_stay_apart(precision: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((1, 5000, 24)).astype(np.float32)
    call = Call("bipartite_match", [scores], [(1, 4990), (1, 10), (1, 10)], {"r": [10]})
    save_onnx(pipelines.lower(model_of([call]), "openvino"), tmp_path / "in.onnx")
    build("openvino", tmp_path / "in.onnx", tmp_path, precision)
    with OpenVinoRunner.from_file(tmp_path / "model.xml", precision=precision) as runner:
        kept, src, dst = runner.run({"in0": scores}).values()
    order = np.argsort(-scores.max(axis=-1)[0], kind="stable")
    np.testing.assert_array_equal(src[0], order[:10])
    np.testing.assert_array_equal(kept[0], np.sort(order[10:]))
    np.testing.assert_array_equal(dst[0], scores[0].argmax(axis=-1)[order[:10]])


def test_a_model_that_selects_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = emitted(rewrite(torch.nn.Linear(8, 8), torch.rand(2, 8)))
    save_onnx(pipelines.lower(model, "openvino"), tmp_path / "in.onnx")
    convert(tmp_path / "in.onnx", tmp_path / "plain.xml")
    build("openvino", tmp_path / "in.onnx", tmp_path, "bf16")
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "plain.bin").read_bytes()


def test_int8_quantises_the_blocks_and_nothing_else(lowered: Path, tmp_path: Path) -> None:
    model = import_openvino().Core().read_model(lowered)
    (name,) = model.inputs[0].get_names()
    build("openvino", lowered, tmp_path, "int8", images(name))
    quantised = import_openvino().Core().read_model(tmp_path / "model.xml")
    kept = set(left_out(quantised))
    products = [op for op in quantised.get_ordered_ops() if op.get_type_name() == "MatMul"]
    narrow = {
        product.get_friendly_name()
        for product in products
        if any(_is_quantised(port.get_source_output().get_node()) for port in product.inputs())
    }
    assert not narrow & kept
    # the head, and per merge scores and two one-hot products
    assert sum(product.get_friendly_name() in kept for product in products) == 1 + 3 * MERGES
    found = layers(tmp_path / "model.xml", "int8")
    assert found["FullyConnected", "u8"] + found["FullyConnected", "i8"] >= 4 * 3
    assert found["Convolution", "f32"] == 1


def _is_quantised(node: Any) -> bool:
    """Tells whether a FakeQuantize or an integer weight comes out of a node."""
    while node.get_type_name() in ("Convert", "Multiply", "Reshape", "Subtract", "Transpose"):
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        return True
    return node.get_type_name() == "Constant" and "8" in node.get_element_type().get_type_name()


def test_nncf_sends_no_usage_statistics() -> None:
    program = (
        "from tokexport.exporter.openvino_int8 import import_nncf\n"
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
