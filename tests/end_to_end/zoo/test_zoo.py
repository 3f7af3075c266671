"""Every method of the zoo compiles for every target, and what it is made of is found in its graph.

Of a variant, the same network in another spelling, the rewritten graph is held to eager: what comes
behind it is what comes behind the method's own.

Token counts are taken from the model itself in eager.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compiled_models import Compiled, assert_agrees, assert_builds, compile_for_ort
from helpers.thorough import thorough_but
from models.zoo import MODELS, VARIANTS
from torch import Tensor, nn

import tokexport
import tokexport.runtimes
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.outputs import flatten
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module, make_replay_graph
from tokexport.runtimes.bundle.manifest import BUILT_NOT_RUN, PASSED

#: A near-tie on the input that the compile did not see is excused, and pytest lists it at the end.
pytestmark = pytest.mark.filterwarnings("default::helpers.compiled_models.NearTieWarning")

#: What is no other spelling of something else.
METHODS = [name for name in MODELS if name not in VARIANTS]
#: What differs from another method by an option alone.
BY_OPTION = {
    *("tome, sizes not in attention", "tome, falling r", "tome, plain mean", "tome, distilled"),
    *("mctf, one way", "mctf, to the fewest", "evit", "evit, fused token", "aim, odd"),
}
#: What another test compiles whole, or whose other spelling every run rewrites and holds to eager.
ELSEWHERE = {
    *("tome", "diffrate", "dynamicvit", "divprune", "kth matching", "fixed positions"),
    *("top-k class attention", "vtc-cls", "patch merger", "tofu", "dpc-knn", "aim", "pitome"),
}
FIRST = thorough_but([name for name in METHODS if name not in BY_OPTION | ELSEWHERE], METHODS)

#: Tokens at the MLP of each block, then behind the last block.
TOKENS: dict[str, tuple[int, ...]] = {
    "tome": (33, 29, 25, 21, 21),
    "tome, sizes not in attention": (33, 29, 25, 21, 21),
    "tome, distilled": (34, 30, 26, 22, 22),
    "tome, falling r": (30, 25, 22, 21, 21),
    "tome, plain mean": (33, 29, 25, 21, 21),
    "tome, variant": (33, 29, 25, 21, 21),
    "mctf": (37, 30, 23, 16, 16),
    "mctf, variant": (37, 30, 23, 16, 16),
    "mctf, one way": (37, 30, 30, 25, 25),
    "mctf, one way, variant": (37, 30, 30, 25, 25),
    "mctf, to the fewest": (37, 19, 10, 10, 10),
    "pitome": (34, 31, 28, 26, 26),
    "pitome, variant": (34, 31, 28, 26, 26),
    "tofu": (34, 31, 28, 26, 26),
    "tofu, variant": (34, 31, 28, 26, 26),
    "dct": (37, 37, 30, 30, 25),
    "dct, by fft": (37, 37, 30, 30, 25),
    "diffrate": (37, 30, 26, 24, 24),
    "diffrate, variant": (37, 30, 26, 24, 24),
    "evit": (37, 27, 27, 20, 20),
    "evit, fused token": (37, 28, 28, 21, 21),
    "evit, fused token, distilled": (38, 28, 28, 21, 21),
    "evit, variant": (37, 28, 28, 21, 21),
    "evit, by masks": (37, 28, 28, 21, 21),
    "dynamicvit": (37, 26, 26, 18, 18),
    "dynamicvit, variant": (37, 26, 26, 18, 18),
    "top-k class attention": (37, 26, 18, 18, 18),
    "top-k class attention, variant": (37, 26, 18, 18, 18),
    "fixed positions": (37, 25, 25, 13, 13),
    "fixed positions, variant": (37, 25, 25, 13, 13),
    "vtc-cls": (37, 37, 37, 37),
    "vtc-cls, variant": (37, 37, 37, 37),
    "aim": (37, 37, 37, 37),
    "aim, variant": (37, 37, 37, 37),
    "aim, odd": (37, 37, 37, 37),
    "aim, odd, variant": (37, 37, 37, 37),
    "divprune": (37, 37, 37, 37),
    "divprune, variant": (37, 37, 37),
    "kth matching": (37, 19, 7, 7, 7),
    "kth matching, variant": (37, 19, 7, 7, 7),
    "pyra": (33, 29, 25, 21, 21),
    "crossget": (33, 28, 23, 18, 18),
    "dpc-knn": (37, 19, 19, 10, 10),
    "dpc-knn, variant": (37, 19, 19, 10, 10),
    "k-medoids": (37, 17, 9, 9, 9),
    "patch merger": (37, 37, 9, 9, 9),
    "patch merger, variant": (37, 37, 9, 9, 9),
    "sinkhorn": (37, 37, 10, 10, 10),
    "sinkhorn, plain": (37, 37, 10, 10, 10),
    "super tokens": (37, 10, 10, 10, 10),
}

#: What the rewritten graph holds: these operators, and no other of the domain.
RECOGNISED: dict[str, dict[str, int]] = {
    "tome": {"bipartite_match": 4, "merge_tokens": 8, "sized_attention": 4},
    "tome, sizes not in attention": {"bipartite_match": 4, "merge_tokens": 8, "sized_attention": 4},
    "tome, distilled": {"bipartite_match": 4, "merge_tokens": 8, "sized_attention": 4},
    "tome, falling r": {"bipartite_match": 4, "merge_tokens": 8, "sized_attention": 4},
    "tome, plain mean": {"bipartite_match": 4, "merge_tokens": 4, "sized_attention": 4},
    "tome, variant": {"bipartite_match": 4, "merge_tokens": 8, "sized_attention": 4},
    "mctf": {"bipartite_match": 6, "gather_tokens": 3, "merge_tokens": 28, "sized_attention": 1},
    "mctf, one way": {"bipartite_match": 2, "merge_tokens": 9, "sized_attention": 2},
    "mctf, to the fewest": {
        "bipartite_match": 4,
        "gather_tokens": 2,
        "merge_tokens": 20,
        "sized_attention": 2,
    },
    "mctf, variant": {
        "bipartite_match": 6,
        "gather_tokens": 3,
        "merge_tokens": 28,
        "sized_attention": 1,
    },
    "mctf, one way, variant": {"bipartite_match": 2, "merge_tokens": 9, "sized_attention": 2},
    "pitome": {"bipartite_match": 4, "gather_tokens": 20, "merge_tokens": 8, "sized_attention": 4},
    "pitome, variant": {
        "bipartite_match": 4,
        "gather_tokens": 12,
        "merge_tokens": 2,
        "scatter_tokens": 2,
        "sized_attention": 4,
    },
    "tofu": {"bipartite_match": 1, "gather_tokens": 5, "scatter_tokens": 2, "sized_attention": 4},
    "tofu, variant": {
        "bipartite_match": 1,
        "gather_tokens": 5,
        "scatter_tokens": 1,
        "sized_attention": 4,
    },
    "dct": {"sized_attention": 4},
    "dct, by fft": {"sized_attention": 4},
    "diffrate": {"bipartite_match": 3, "gather_tokens": 5, "merge_tokens": 5, "sized_attention": 1},
    "diffrate, variant": {
        "bipartite_match": 3,
        "gather_tokens": 5,
        "merge_tokens": 5,
        "sized_attention": 1,
    },
    "evit": {"gather_tokens": 2, "sized_attention": 2},
    "evit, fused token": {"gather_tokens": 6, "sized_attention": 2},
    "evit, fused token, distilled": {"gather_tokens": 6, "sized_attention": 2},
    "evit, variant": {"gather_tokens": 2, "sized_attention": 2},
    "evit, by masks": {"gather_tokens": 6, "sized_attention": 2},
    "dynamicvit": {"gather_tokens": 3, "sized_attention": 4},
    "dynamicvit, variant": {"gather_tokens": 3, "sized_attention": 4},
    "top-k class attention": {"gather_tokens": 2, "sized_attention": 4},
    "top-k class attention, variant": {"gather_tokens": 2, "sized_attention": 2},
    "fixed positions": {"sized_attention": 4},
    "fixed positions, variant": {"gather_tokens": 1, "sized_attention": 4},
    "vtc-cls": {"gather_tokens": 1, "sized_attention": 1},
    "vtc-cls, variant": {"gather_tokens": 1, "sized_attention": 1},
    "aim": {"bipartite_match": 2, "merge_tokens": 2, "sized_attention": 3},
    "aim, odd": {"bipartite_match": 2, "merge_tokens": 2, "sized_attention": 3},
    "aim, variant": {"bipartite_match": 2, "merge_tokens": 2, "sized_attention": 3},
    "aim, odd, variant": {"bipartite_match": 2, "merge_tokens": 2, "sized_attention": 3},
    "divprune": {"sized_attention": 3},
    "divprune, variant": {"gather_tokens": 9, "sized_attention": 3},
    "kth matching": {"bipartite_match": 2, "merge_tokens": 4, "sized_attention": 4},
    "kth matching, variant": {"bipartite_match": 2, "merge_tokens": 2, "sized_attention": 4},
    "pyra": {"bipartite_match": 4, "gather_tokens": 12, "scatter_tokens": 8, "sized_attention": 4},
    "crossget": {
        "bipartite_match": 4,
        "gather_tokens": 24,
        "merge_tokens": 4,
        "sized_attention": 4,
    },
    "dpc-knn": {"gather_tokens": 2, "scatter_tokens": 4, "sized_attention": 4},
    "dpc-knn, variant": {"gather_tokens": 2, "scatter_tokens": 2, "sized_attention": 4},
    "k-medoids": {"gather_tokens": 8, "scatter_tokens": 6, "sized_attention": 2},
    "patch merger": {"sized_attention": 5},
    "patch merger, variant": {"sized_attention": 4},
    "sinkhorn": {"sized_attention": 4},
    "sinkhorn, plain": {"sized_attention": 4},
    "super tokens": {"sized_attention": 4},
}

#: The shape of the first output, the batch left out, where it is not (classes,).
OUTPUTS: dict[str, tuple[int, ...]] = dict.fromkeys(
    (
        *("vtc-cls", "vtc-cls, variant", "aim", "aim, variant", "aim, odd", "aim, odd, variant"),
        *("divprune", "divprune, variant"),
    ),
    (9, 64),
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Compiles each model once: all targets start from the same emitted graph."""

    @functools.cache
    def compile_once(name: str) -> Compiled:
        return compile_for_ort(*MODELS[name](0), tmp_path_factory.mktemp("zoo"))

    return compile_once


def _first_output(result: Any) -> Tensor:
    """Returns a model's first output."""
    outputs, _ = flatten(result)
    return next(iter(outputs.values()))


def _counts(model: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Runs a model and returns the tokens at the MLPs and behind the last block."""
    counts: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(inputs[0].shape[1])

    hooks = [
        module.register_forward_pre_hook(note)
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and name.rpartition(".")[2] in ("norm2", "norm")
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return tuple(counts)


def test_every_model_is_held_to_counts() -> None:
    assert set(TOKENS) == set(RECOGNISED) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_it_reduces_as_its_method_says(name: str) -> None:
    model, example = MODELS[name](0)
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    assert _counts(model, x) == TOKENS[name]
    with torch.no_grad():
        assert _first_output(model(x)).shape[1:] == OUTPUTS.get(name, (10,))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_answers_the_same(name: str) -> None:
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = (_first_output(MODELS[one](5)[0](x)) for one in (name, VARIANTS[name]))
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-6)


REWRITTEN = [*VARIANTS, "tofu", "divprune", "crossget"]
#: Methods that every run compiles whole, or whose steps another one's are made of.
WHOLE = {
    *("mctf, variant", "tofu", "crossget", "tome, variant", "diffrate, variant"),
    *("top-k class attention, variant", "fixed positions, variant", "vtc-cls, variant"),
    *("patch merger, variant", "sinkhorn, plain", "divprune, variant"),
}


@pytest.mark.parametrize(
    "name",
    thorough_but(
        [name for name in REWRITTEN if VARIANTS.get(name) not in BY_OPTION and name not in WHOLE],
        REWRITTEN,
    ),
)
def test_of_a_variant_the_rewritten_graph_answers_as_eager_does(name: str) -> None:
    ops.register()
    model, example = MODELS[name](0)
    flat = FlatModel(model, call_spec(model, (example,), {}))
    program = capture(flat, (example,))
    eager = {node.name for node in program.graph.nodes}
    rewritten = pipelines.rewrite(program)
    assert rewritten.recognised == RECOGNISED[name]
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, wanted = (one(x) for one in (as_graph_module(rewritten.program), flat))
    torch.testing.assert_close(found[0], wanted[0], rtol=0.0, atol=1e-5)
    outputs = [f"output {place}" for place in range(len(found))]
    replay = make_replay_graph(as_graph_module(rewritten.program), flat.spec.names, outputs)
    for source in replay.sources.values():  # a tie can be told of what eager decides too
        assert eager & {*source.names}, source


@pytest.mark.parametrize("name", FIRST)
def test_it_compiles_within_the_fp32_gate(name: str, compiled: Callable[[str], Compiled]) -> None:
    model = compiled(name)
    assert model.result.status == PASSED
    assert all(stage.passed for stage in model.result.report.stages)
    with tokexport.runtimes.load(model.result.bundle) as runner:
        assert_agrees(runner, model)


@pytest.mark.parametrize("name", FIRST)
def test_what_the_method_is_made_of_is_recognised(
    name: str, compiled: Callable[[str], Compiled]
) -> None:
    assert compiled(name).result.report.recognised == RECOGNISED[name]


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("target", ["openvino", "trt"])
def test_it_builds_for_the_other_targets(
    name: str, target: str, compiled: Callable[[str], Compiled], tmp_path: Path
) -> None:
    assert_builds(compiled(name), target, tmp_path)


@pytest.mark.usefixtures("without_gpu")
def test_a_whole_compile_says_what_ran(tmp_path: Path) -> None:
    for target, status in (("openvino", PASSED), ("trt", BUILT_NOT_RUN)):
        model, example = MODELS["diffrate"](0)
        result = tokexport.compile(model, example, target, output=tmp_path / target)
        assert result.status == status
        assert result.report.recognised == RECOGNISED["diffrate"]
