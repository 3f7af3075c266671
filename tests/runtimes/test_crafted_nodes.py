"""Kernels told sizes and indices that no exporter writes: refused, or computed within bounds.

Reads and writes out of bounds are seen under AddressSanitizer (``make sanitize``) wherever they
are; without it only where they end the process.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from helpers.crafted_nodes import COUNTS, HEADS, Node, crafted_nodes, sound_nodes
from helpers.function_models import Call, model_of

from tokexport.runtimes.errors import RuntimesError
from tokexport.runtimes.native_library import NO_KERNELS
from tokexport.runtimes.ort.runner import OrtRunner

SOUND = {node.name: node for node in sound_nodes()}


def run(node: Node) -> str:
    """Runs a node with its kernel; returns what refused it, or nothing.

    What a kernel computes is held to the body of the function, where that runs.
    """
    arrays = {f"in{i}": array for i, array in enumerate(node.inputs)}
    try:
        with OrtRunner.from_bytes(node.model(), threads=2) as runner:
            assert runner.runtime.details["kernels"] != NO_KERNELS
            found = [*runner.run(arrays).values()]
    except RuntimesError as error:
        return str(error)
    call = Call(node.name, node.inputs, [one.shape for one in found], node.attributes)
    try:
        with OrtRunner.from_bytes(
            ir.to_proto(model_of([call])).SerializeToString(), threads=2, native=False
        ) as runner:
            wanted = [*runner.run(arrays).values()]
    except RuntimesError:  # an attribute that only the body reads
        return ""
    for one, other in zip(found, wanted, strict=True):
        scale = np.abs(other[np.isfinite(other)]).max(initial=1)
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * scale, err_msg=str(node))
    return ""


@pytest.mark.parametrize("name", SOUND)
def test_what_an_exporter_writes_runs_and_is_right(name: str) -> None:
    assert run(SOUND[name]) == ""


def test_crafted_nodes_are_refused_or_run() -> None:
    said = [run(node) for node in crafted_nodes(seed=0, count=200)]
    assert 50 < sum(map(bool, said)) < 200


@pytest.mark.parametrize("count", [one for one in COUNTS if not 0 <= one <= 2**24])
@pytest.mark.parametrize("name", ["rows_attention", "cosine_merge_norm", "places_both_ways"])
def test_no_attribute_counts_more_than_there_can_be(name: str, count: int) -> None:
    node = SOUND[name]
    for attribute, value in node.attributes.items():
        if isinstance(value, list):
            said = run(Node(name, node.inputs, {**node.attributes, attribute: [count]}))
            assert said, attribute


@pytest.mark.parametrize(("heads", "depth"), HEADS)
def test_heads_that_the_rows_do_not_hold_are_refused(heads: int, depth: int) -> None:
    for node in SOUND.values():
        if "heads" in node.attributes:
            shared = {**node.attributes, "heads": [heads], "depth": [depth]}
            assert run(Node(node.name, node.inputs, shared)), node.name


def test_an_empty_tensor_of_endless_images_is_refused() -> None:
    node = SOUND["linear"]
    x = np.empty((2**31, 0, 8), np.float32)
    assert run(Node("linear", (np.broadcast_to(x, x.shape), *node.inputs[1:]), {})) == ""
    endless = np.empty((2**40, 0, 2**20), np.float32)
    assert "elements that are expected at most" in run(
        Node("layer_norm", (endless, *SOUND["layer_norm"].inputs[1:]), {"epsilon": 1e-5})
    )
