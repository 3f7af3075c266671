from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tokexport.exporter.shared_weights.onnx_files import share_onnx_weights


def model(weights: dict[str, np.ndarray]) -> ir.Model:
    """A model of initializers that are added to its input, of their shape."""
    x = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT))
    initializers = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in weights.items()
    ]
    nodes = [ir.node("Add", [x, one]) for one in initializers]
    graph = ir.Graph(
        [x],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": 18},
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("outside", [False, True])
def test_every_weight_stays_what_it_was(tmp_path: Path, outside: bool) -> None:
    sizes = {"tiny": 8, "small": 100, "middle": 255, "large": 1000}  # 32 to 4000 bytes
    shared = {f"{name}_shared": np.full(size, 9, np.float32) for name, size in sizes.items()}
    wanted = {}
    places = {}
    for place, name in enumerate(("a.onnx", "b.onnx")):
        own = {
            f"{kind}_own": np.arange(size, dtype=np.float32) + 10 * place
            for kind, size in sizes.items()
        }
        folder = tmp_path / f"compiled-{place}"
        folder.mkdir()
        data = "model.onnx.data" if outside else None
        ir.save(model(shared | own), folder / "model.onnx", external_data=data)
        wanted[name] = shared | own
        places[folder / "model.onnx"] = tmp_path / name
    share_onnx_weights(places)
    for name, weights in wanted.items():
        found = ir.load(tmp_path / name).graph.initializers
        for weight, array in weights.items():
            const = found[weight].const_value
            assert const is not None
            np.testing.assert_array_equal(const.numpy(), array)
    data_file = tmp_path / "a.onnx.data"
    once = sum(array.nbytes for array in shared.values())
    assert data_file.stat().st_size < 3 * once + 2048
    assert not list(tmp_path.glob("*.partial"))
