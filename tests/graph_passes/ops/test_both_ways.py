"""How a layer that merges forth and back is lowered: MCTF's, and what only looks like it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest
import timm
import torch
from helpers.graphs import Outputs, assert_close, emitted, lowered, rewrite, run_eager, run_onnx
from helpers.thorough import thorough_but
from models.plain_vits import DEEPER, build, image
from torch import Tensor, nn

import tokexport
from tokexport.exporter.build.emit import emit
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.capture.trace import capture
from tokexport.graph_passes.onnx_passes.every_target.annotate_kernel_calls import KERNEL_CALLS
from tokexport.graph_passes.ops.onnx_functions import DOMAIN
from tokexport.graph_passes.ops.ops import bipartite_match, gather_tokens
from tokexport.graph_passes.reduction.token_maps import (
    Chain,
    Matching,
    Rows,
    TokenMap,
    even_and_odd,
)
from tokexport.graph_passes.torch_passes.graph.decisions import as_graph_module, make_replay_graph
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert
from tokexport.runtimes.ort.runner import OrtRunner

#: 1 class token and 36 patches; each layer but the first merges.
RECIPE = "mctf:r=7,least=5"
MERGING = DEEPER - 1
SHALLOW = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
SPECIAL, COUNT, WIDTH, HEADS = 1, 21, 24, 3


def calls(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


@dataclass(frozen=True)
class Reduced:
    """A model, its input, and what is emitted of it."""

    model: nn.Module
    x: Tensor
    emitted: ir.Model


def held(model: ir.Model, function: Callable[..., Outputs], *inputs: Tensor) -> Counter[str]:
    """Holds bodies and kernels of a lowered model to its function, and counts the calls."""
    with torch.no_grad():
        wanted = run_eager(function, *inputs)
    assert_close(run_onnx(model, *inputs), wanted, 1e-5)
    with OrtRunner.from_bytes(ir.to_proto(model).SerializeToString()) as runner:
        assert runner.runtime.details["kernels"] != "none"
        arrays = runner.run({f"in{i}": one.numpy() for i, one in enumerate(inputs)}).values()
    assert_close(tuple(map(torch.from_numpy, arrays)), wanted, 1e-5)
    return calls(model)


def lowered_and_checked(function: Callable[..., Outputs], *inputs: Tensor) -> Counter[str]:
    """Lowers a function for ONNX Runtime, holds it, and counts the calls."""
    return held(lowered(emitted(rewrite(function, *inputs)), "ort"), function, *inputs)


@pytest.fixture(scope="module")
def mctf() -> Reduced:
    """A model that MCTF is put into."""
    x = image(2)
    model = tokexport.reduce(build("timm DeiT", depth=DEEPER), RECIPE, x)
    return Reduced(model, x, emitted(rewrite(model, x)))


def test_mctf_is_one_call_a_step(mctf: Reduced) -> None:
    found = held(lowered(mctf.emitted, "ort"), mctf.model, mctf.x)
    assert found["scored_match"] == found["match_back"] == MERGING
    assert found["merge_both_ways_by_weight"] == MERGING
    assert found["attention_weights"] == 1
    assert found["attention_weights_by_size"] == MERGING - 1
    assert found["places_both_ways"] == MERGING
    # The sizes before the first merge are constants, and the last block is for the class token.
    assert found["fusion_criteria"] == MERGING - 1
    assert found["ahead_attention"] == MERGING - 1
    assert found["merge_both_ways"] == MERGING - 2
    assert not [name for name in found if name.startswith("bipartite_match")]


def test_the_kernels_serve_openvino_too(mctf: Reduced, tmp_path: Path) -> None:
    model = lowered(mctf.emitted, "openvino")
    named = Counter(one["operator"] for one in json.loads(model.metadata_props[KERNEL_CALLS]))
    assert named["scored_match"] == named["match_back"] == named["places_both_ways"] == MERGING
    assert named["merge_both_ways_by_weight"] == 2 * MERGING - 1  # tokens, and attended rows
    save_onnx(model, tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path / "model.xml")
    with torch.no_grad():
        wanted = (mctf.model(mctf.x),)
    for native in (True, False):
        with OpenVinoRunner.from_file(tmp_path / "model.xml", native=native) as runner:
            calls = sum(named.values()) if native else 0
            assert runner.runtime.details["kernel_calls"] == calls
            arrays = runner.run({"in0": mctf.x.numpy()}).values()
        assert_close(tuple(map(torch.from_numpy, arrays)), wanted, 1e-4)


@pytest.mark.parametrize("target", thorough_but(["ort"], ["ort", "openvino"]))
def test_a_graph_that_is_told_how_to_decide_runs_the_same_kernels(target: str) -> None:
    x = image(1)
    model = timm.create_model("deit_tiny_patch16_224", **SHALLOW).eval()
    rewritten = rewrite(tokexport.reduce(model, RECIPE, x), x).program
    replay = make_replay_graph(as_graph_module(rewritten), ("in0",), ("out0",))
    inputs = (node.meta["val"] for node in replay.module.graph.find_nodes(op="placeholder"))
    example = [torch.zeros(value.shape, dtype=value.dtype) for value in inputs]
    names, results = (*replay.inputs, *replay.decision_inputs), (*replay.outputs, *replay.exposed)
    found = lowered(emit(capture(replay.module, example), names, results), target)
    named = json.loads(found.metadata_props.get(KERNEL_CALLS, "[]"))
    made = calls(found) if target == "ort" else Counter(call["operator"] for call in named)
    for name in ("scored_match", "match_back", "merge_both_ways_by_weight", "places_both_ways"):
        assert made[name] >= 2, name  # the last layer's attended rows are of the class token alone
    assert "bipartite_match" not in made


OPTIONS: list[tuple[str, str, set[str]]] = [
    ("tau_sim=0.5", "scored_match", {"bipartite_match", "match_back", "places_both_ways"}),
    ("pooling=0", "fusion_criteria", {"scored_match", "match_back", "merge_both_ways"}),
    ("pooling=2", "fusion_criteria", {"scored_match", "places_both_ways", "merge_tokens_amax"}),
    ("one_step_ahead=2", "ahead_attention", {"scored_match", "rows_attention_by_size"}),
    ("bidirectional=false", "match_back", {"scored_match", "merge_tokens_sum"}),
]


@pytest.mark.parametrize(("option", "without", "left"), thorough_but([OPTIONS[3]], OPTIONS))
def test_other_options_take_the_calls_that_fit(option: str, without: str, left: set[str]) -> None:
    x = image(1)
    model = timm.create_model("deit_tiny_patch16_224", **SHALLOW).eval()
    found = lowered_and_checked(tokexport.reduce(model, f"{RECIPE},{option}", x), x)
    assert without not in found
    assert left <= {*found}


def both_ways(
    scores: Tensor,
    a: Rows,
    b: Rows,
    special: int = SPECIAL,
    forth: int = 4,
    back: int = 3,
    count: int = COUNT,
) -> Chain:
    """Matches scores (B, Na, Nb) as MCTF does."""
    others, batch = slice(0, special), scores.shape[0]
    kept, src, dst = bipartite_match(scores, forth, "index")
    first = Matching(count, batch, others, a, b, kept, src, dst)
    odd = special + kept.shape[1]
    count = odd + scores.shape[2]
    left = gather_tokens(scores, kept).transpose(1, 2)
    second = Matching(
        count,
        batch,
        others,
        slice(odd, count),
        slice(special, odd),
        *bipartite_match(left, back, "score"),
        b_first=True,
    )
    return Chain(first, second)


def matched(
    x: Tensor, rare: Tensor, special: int = SPECIAL, forth: int = 4, back: int = 3
) -> TokenMap:
    """Matches tokens (B, N, C) by cosine and the terms (B, N)."""
    _, a, b = even_and_odd(x.shape[1], special)
    unit = x / x.norm(dim=-1, keepdim=True)
    scores = (unit[:, a] @ unit[:, b].transpose(1, 2) + 1) / 2
    scores = scores * rare[:, a, None] * rare[:, None, b]
    return both_ways(scores, a, b, special, forth, back, x.shape[1])


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = tokens(2, COUNT, WIDTH)
RARE = tokens(2, COUNT, seed=1).abs() + 0.1


def test_the_places_are_told_by_what_they_are() -> None:
    def spread(x: Tensor, rare: Tensor) -> Tensor:
        by = matched(x, rare)
        return gather_tokens(by(x), by.places())

    assert lowered_and_checked(spread, X, RARE) == {
        "scored_match": 1,
        "match_back": 1,
        "merge_both_ways": 1,
        "places_both_ways": 1,
        "gather_tokens": 1,
    }


def test_an_index_that_is_nearly_the_places_stays() -> None:
    def spread(x: Tensor, rare: Tensor) -> Tensor:
        by = matched(x, rare)
        places = by.places()
        return gather_tokens(by(x), torch.cat([places[:, :-1], places[:, :1]], dim=1))

    found = lowered_and_checked(spread, X, RARE)
    assert found["gather_tokens"] == 1
    assert found["places_both_ways"] == 0


def test_tokens_in_neither_set_are_no_merge_both_ways() -> None:
    def merged(x: Tensor, scores: Tensor) -> Tensor:
        result: Tensor = both_ways(scores, slice(1, None, 3), slice(2, None, 3))(x)
        return result

    found = lowered_and_checked(merged, X, tokens(2, 7, 7, seed=2))
    assert found["merge_both_ways"] == 0
    assert found["merge_tokens_sum"] == 2


def test_a_mean_by_other_weights_stays_a_quotient() -> None:
    def mean(x: Tensor, rare: Tensor, weight: Tensor) -> Tensor:
        by = matched(x, rare)
        return by(x * rare[..., None]) / by(weight)

    weight = tokens(2, COUNT, 1, seed=3).abs() + 1
    found = lowered_and_checked(mean, X, RARE, weight)
    assert found["merge_both_ways"] == 2
    assert found["merge_both_ways_by_weight"] == 0


@pytest.mark.parametrize(
    ("special", "count", "forth", "back"),
    thorough_but(
        [(1, 21, 4, 3), (2, 20, 0, 1), (3, 21, 4, 0)],
        [
            (special, count, *amounts)
            for special in (0, 1, 2, 3)
            for count in (20, 21)
            for amounts in ((0, 1), (4, 3), (4, 0))
        ],
    ),
)
def test_special_tokens_and_sizes(special: int, count: int, forth: int, back: int) -> None:
    def merged(x: Tensor, rare: Tensor) -> tuple[Tensor, Tensor]:
        by = matched(x, rare, special, forth, back)
        y = by(x * rare[..., None]) / by(rare[..., None])
        return y, gather_tokens(y, by.places())

    found = lowered_and_checked(merged, tokens(2, count, WIDTH), tokens(2, count, seed=1).abs())
    if not forth or not back:  # what merges nothing is gone before
        return
    assert found["scored_match"] == found["match_back"] == 1
    assert found["merge_both_ways_by_weight"] == found["places_both_ways"] == 1


def test_a_match_back_by_other_scores_is_one_call_too() -> None:
    def back(scores: Tensor, others: Tensor) -> Tensor:
        kept, src, dst = bipartite_match(scores, 4, "index")
        kept_back, src_back, dst_back = bipartite_match(
            gather_tokens(others, kept).transpose(1, 2), 3, "score"
        )
        return torch.cat([kept, src, dst, kept_back, src_back, dst_back], dim=1).float()

    found = lowered_and_checked(back, tokens(2, 10, 10), tokens(2, 10, 10, seed=1))
    assert found == {"bipartite_match": 1, "match_back": 1}


def criteria(p: Tensor, sizes: Tensor, received: Tensor | None = None) -> Tensor:
    """Both that MCTF computes of attention (B, H, N, N) and sizes (B, N, 1), in one tensor."""
    received = p.mean(dim=(1, 2)) if received is None else received
    small = 1 / sizes[..., 0]
    rare = (1 / received / (1 / received).amax(1, keepdim=True)) ** 0.05
    rare = rare * (small / small.amax(1, keepdim=True)) ** 0.025
    share = received[..., None] * sizes / sizes.amax(1, keepdim=True)
    return torch.stack([rare, share[..., 0]])


SIZES = (tokens(6, 6, 1, seed=2).abs() + 1).round()
P = tokens(6, HEADS, 6, 6, seed=3).softmax(-1)


def test_the_criteria_are_one_call() -> None:
    assert lowered_and_checked(criteria, P, SIZES) == {"fusion_criteria": 1}


@pytest.mark.parametrize(
    "other",
    [
        lambda p, s: criteria(p, s.transpose(0, 1)),  # the sizes of other images
        lambda p, s: criteria(p, s, p.mean(dim=(1, 3))),  # what is given, not received
        lambda p, s: criteria(p, s, p.amax(dim=(1, 2))),
        lambda p, s: criteria(p, s, p[:, 0].mean(dim=1)),
    ],
)
def test_what_only_looks_like_the_criteria(other: Callable[..., Tensor]) -> None:
    assert not lowered_and_checked(other, P, SIZES)


def ahead(
    p: Tensor, v: Tensor, x: Tensor, rare: Tensor, heads: int = HEADS, roll: int = 0
) -> Tensor:
    """Attention of before a merge on values (B, M, ·) from behind it."""
    by = matched(x, rare)
    spread = gather_tokens(v, by.places().roll(roll, 1))
    spread = spread.view(2, COUNT, heads, -1).transpose(1, 2)
    rows = (p @ spread).transpose(1, 2).flatten(2)
    share = rare[..., None]
    return by(rows * share) / by(share) + by(x * share) / by(share)


def test_attention_ahead_of_a_merge_is_one_call() -> None:
    p, v = tokens(2, HEADS, COUNT, COUNT, seed=4).softmax(-1), tokens(2, COUNT - 7, WIDTH, seed=5)
    assert lowered_and_checked(ahead, p, v, X, RARE)["ahead_attention"] == 1


@pytest.mark.parametrize("one_for_all", [True, False])
def test_attention_ahead_that_the_kernel_does_not_compute(one_for_all: bool) -> None:
    heads = 1 if one_for_all else HEADS
    p, v = tokens(2, heads, COUNT, COUNT, seed=4).softmax(-1), tokens(2, COUNT - 7, WIDTH, seed=5)

    def other(p: Tensor, v: Tensor, x: Tensor, rare: Tensor) -> Tensor:
        if one_for_all:  # one matrix for all heads
            return ahead(p, v, x, rare)
        return ahead(p.transpose(0, 1)[:2].transpose(0, 1)[:, :1].expand_as(p), v, x, rare)

    assert lowered_and_checked(other, p, v, X, RARE)["ahead_attention"] == (not one_for_all)


@pytest.mark.parametrize(
    ("bias", "call"),
    [
        ((2, COUNT), "sized_attention_weights"),
        ((2, 1, COUNT, COUNT), None),
        ((1, HEADS, 1, COUNT), None),
    ],
)
def test_attention_weights_with_a_bias(bias: tuple[int, ...], call: str | None) -> None:
    def weights(qk: Tensor, bias: Tensor) -> Tensor:
        q, k = qk.view(2, COUNT, 2, HEADS, 4).permute(2, 0, 3, 1, 4)
        bias = bias[:, None, None] if bias.ndim == 2 else bias
        result: Tensor = (q @ k.transpose(-2, -1) * 0.5 + bias).softmax(dim=-1)
        return result

    found = lowered_and_checked(weights, tokens(2, COUNT, 2 * HEADS * 4), tokens(*bias, seed=1))
    assert found == ({} if call is None else {call: 1})


def test_attention_weights_of_interleaved_heads_stay_apart() -> None:
    def weights(qk: Tensor) -> Tensor:
        q, k = qk.view(2, COUNT, 2, 4, HEADS).permute(2, 0, 4, 1, 3)
        result: Tensor = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return result

    assert not lowered_and_checked(weights, tokens(2, COUNT, 2 * HEADS * 4))
