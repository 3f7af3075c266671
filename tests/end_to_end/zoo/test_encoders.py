"""Encoders in the spellings of others keep what they say, and answer alike on every target."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.compiled_models import Compiled, assert_agrees, assert_builds, compile_for_ort, draw
from helpers.thorough import thorough_but
from models.encoders import MODELS
from torch import Tensor

import tokexport
import tokexport.runtimes
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module
from tokexport.runtimes.bundle.manifest import PASSED

#: A near-tie on the input that the compile did not see is excused, and pytest lists it at the end.
pytestmark = pytest.mark.filterwarnings("default::helpers.compiled_models.NearTieWarning")

BATCHES = (1, 3)

#: The shape of each output of a batch of b.
SHAPES: dict[str, Callable[[int], list[tuple[int, ...]]]] = {
    "mask pruner": lambda b: [(b, 10), (b, 4), (b, 16)],
    "diverse pruner": lambda b: [(b, 16, 40), (b, 8), (b, 8)],
    "window merge": lambda b: [(b, 5, 4, 4), (b, 2)],
    "image and text": lambda b: [(b, b), (b, b)],
    "video": lambda b: [(b, 6), (b, 10)],
    "rotary merger": lambda b: [(3 * b, 40), (b, 3)],
    "neighbour merge": lambda b: [(b, 9, 32), (b, 3), (b, 5)],
    "policy mask": lambda b: [(b, 10), (b, 16, 1), (b, 6)],
    "resampler": lambda b: [(b, 14, 20)],
    "mask units": lambda b: [(b, 7), (b, 32, 4, 4), (b, 4)],
    "query detector": lambda b: [(b, 5, 4), (b, 5, 4), (b, 4), (b, 4), (b, 4, 4)],
    "dense restore": lambda b: [(b, 4, 16, 16), (b, 16)],
    "decoder pruner": lambda b: [(b, 40), (b, 5)],
}

#: Outputs that are different places of a row, with how many there are to take.
PLACES: dict[str, dict[int, int]] = {
    "mask pruner": {1: 16},
    "diverse pruner": {1: 16, 2: 16},
    "window merge": {1: 4},
    "video": {1: 16},
    "rotary merger": {1: 4},
    "neighbour merge": {2: 16},
    "policy mask": {2: 16},
    "decoder pruner": {1: 9},
}

#: What the rows of an output add up to.
SUMS: dict[str, dict[int, int]] = {
    "mask pruner": {2: 4},
    "neighbour merge": {1: 11},
    "policy mask": {1: 11},
    "mask units": {2: 3},
    "dense restore": {1: 16},
}

#: What the rewritten graph holds: these operators, and no other of the domain.
RECOGNISED: dict[str, dict[str, int]] = {
    "mask pruner": {"gather_tokens": 2},
    "diverse pruner": {"gather_tokens": 10, "scatter_tokens": 4, "sized_attention": 1},
    "window merge": {"gather_tokens": 2, "scatter_tokens": 2, "sized_attention": 1},
    "image and text": {
        "bipartite_match": 2,
        "gather_tokens": 5,
        "scatter_tokens": 2,
        "sized_attention": 3,
    },
    "video": {
        "bipartite_match": 2,
        "gather_tokens": 14,
        "merge_tokens": 2,
        "scatter_tokens": 6,
        "sized_attention": 5,
    },
    "rotary merger": {},
    "neighbour merge": {"gather_tokens": 6, "scatter_tokens": 4, "sized_attention": 2},
    "policy mask": {"gather_tokens": 1, "scatter_tokens": 1, "sized_attention": 2},
    "resampler": {"sized_attention": 2},
    "mask units": {"gather_tokens": 2, "sized_attention": 3},
    "query detector": {"gather_tokens": 5, "scatter_tokens": 6, "sized_attention": 6},
    "dense restore": {"gather_tokens": 3, "scatter_tokens": 3, "sized_attention": 3},
    "decoder pruner": {"gather_tokens": 4},
}


def flat_model(name: str, batch: int) -> FlatModel:
    model, example = MODELS[name](batch, 0)
    return FlatModel(model, call_spec(model, example, {}))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Compiled]:
    """Compiles each model once: all targets start from the same emitted graph."""

    @functools.cache
    def compile_once(name: str, batch: int) -> Compiled:
        return compile_for_ort(*MODELS[name](batch, 0), tmp_path_factory.mktemp("encoder"))

    return compile_once


def test_every_model_is_held_to_what_it_gives() -> None:
    assert set(SHAPES) == set(RECOGNISED) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_it_keeps_as_many_as_it_says(name: str, batch: int) -> None:
    flat = flat_model(name, batch)
    with torch.no_grad():
        found = flat(*draw(flat.spec.examples, 3))
    assert [tuple(one.shape) for one in found] == SHAPES[name](batch)
    for position, count in PLACES.get(name, {}).items():
        rows = found[position].sort(dim=1).values
        assert (rows.diff(dim=1) > 0).all()
        assert 0 <= int(rows.min()) <= int(rows.max()) < count
    for position, total in SUMS.get(name, {}).items():
        assert (found[position].reshape(batch, -1).sum(1) == total).all()


@pytest.mark.parametrize("name", MODELS)
def test_each_image_is_answered_as_alone(name: str) -> None:
    if name in ("image and text", "rotary merger"):  # every image meets every text, or is a row
        return
    three, one = flat_model(name, 3), flat_model(name, 1)
    inputs = draw(three.spec.examples, 4)
    with torch.no_grad():
        together = three(*inputs)
        alone = [one(*(each[at : at + 1] for each in inputs)) for at in range(3)]
    for position, found in enumerate(together):
        wanted = torch.cat([each[position] for each in alone])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


#: Those that say most of what tracing has to follow.
TRACED = ("diverse pruner", "rotary merger", "policy mask")


@pytest.mark.parametrize("name", thorough_but(TRACED, MODELS))
def test_the_rewritten_graph_answers_as_eager_does(name: str) -> None:
    ops.register()
    flat = flat_model(name, 3)
    rewritten = pipelines.rewrite(capture(flat, flat.spec.examples))
    assert rewritten.recognised == RECOGNISED[name]
    graph = as_graph_module(rewritten.program)
    for seed in (5, 6):
        inputs: tuple[Tensor, ...] = draw(flat.spec.examples, seed)
        with torch.no_grad():
            found, wanted = graph(*inputs), flat(*inputs)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


CASES = [*itertools.product(MODELS, BATCHES)]
FIRST = [("mask pruner", 3), ("image and text", 1)]


@pytest.mark.parametrize(("name", "batch"), thorough_but(FIRST, CASES))
def test_it_compiles_within_the_fp32_gate(
    name: str, batch: int, compiled: Callable[[str, int], Compiled]
) -> None:
    model = compiled(name, batch)
    assert model.result.status == PASSED
    assert all(stage.passed for stage in model.result.report.stages)
    with tokexport.runtimes.load(model.result.bundle) as runner:
        assert_agrees(runner, model)


@pytest.mark.parametrize(("name", "batch"), thorough_but(FIRST, CASES))
@pytest.mark.parametrize("target", ["openvino", "trt"])
def test_it_builds_for_the_other_targets(
    name: str, batch: int, target: str, compiled: Callable[[str, int], Compiled], tmp_path: Path
) -> None:
    assert_builds(compiled(name, batch), target, tmp_path)
