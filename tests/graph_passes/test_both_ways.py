"""How a layer that merges forth and back is lowered: MCTF's, and what only looks like it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest
import timm
import torch
from helpers.graphs import assert_close, emitted, lowered, rewrite, run_onnx
from models.plain_vits import DEPTH, build, image
from torch import Tensor, nn

import tokexport
from tokexport.exporter.build import save_onnx
from tokexport.graph_passes.onnx_functions import DOMAIN
from tokexport.graph_passes.ops import bipartite_match, gather_tokens
from tokexport.graph_passes.reduction.merges import Chain, Matching, Rows, TokenMap, even_and_odd
from tokexport.runtimes.openvino import OpenVinoRunner, convert
from tokexport.runtimes.ort import OrtRunner

#: 1 class token and 36 patches; each layer but the first merges.
RECIPE = "mctf:r=7,least=5"
MERGING = DEPTH - 1
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


def held(model: ir.Model, function: Callable[..., Tensor], *inputs: Tensor) -> Counter[str]:
    """Holds bodies and kernels of a lowered model to its function, and counts the calls."""
    with torch.no_grad():
        wanted = (function(*inputs),)
    assert_close(run_onnx(model, *inputs), wanted, 1e-5)
    with OrtRunner.from_bytes(ir.to_proto(model).SerializeToString()) as runner:
        assert runner.runtime.details["kernels"] != "none"
        arrays = runner.run({f"in{i}": one.numpy() for i, one in enumerate(inputs)}).values()
    assert_close(tuple(map(torch.from_numpy, arrays)), wanted, 1e-5)
    return calls(model)


def lowered_and_checked(function: Callable[..., Tensor], *inputs: Tensor) -> Counter[str]:
    """Lowers a function for ONNX Runtime, holds it, and counts the calls."""
    return held(lowered(emitted(rewrite(function, *inputs)), "ort"), function, *inputs)


@pytest.fixture(scope="module")
def mctf() -> Reduced:
    """A model that MCTF is put into."""
    x = image(2)
    model = tokexport.reduce(build("timm DeiT"), RECIPE, x)
    return Reduced(model, x, emitted(rewrite(model, x)))


def test_mctf_is_one_call_a_step(mctf: Reduced) -> None:
    found = held(lowered(mctf.emitted, "ort"), mctf.model, mctf.x)
    assert found["match_both_ways"] == found["merge_both_ways_by_weight"] == MERGING
    assert found["attention_weights"] == 1
    assert found["sized_attention_weights"] == MERGING - 1
    assert found["places_both_ways"] == MERGING
    # The sizes before the first merge are constants, and the last block is for the class token.
    assert found["fusion_criteria"] == MERGING - 1
    assert found["ahead_attention"] == MERGING - 1
    assert found["merge_both_ways"] == MERGING - 2
    assert not [name for name in found if name.startswith("bipartite_match")]


def test_the_kernels_serve_openvino_too(mctf: Reduced, tmp_path: Path) -> None:
    save_onnx(lowered(mctf.emitted, "openvino"), tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path / "model.xml")
    with torch.no_grad():
        wanted = (mctf.model(mctf.x),)
    for native in (True, False):
        with OpenVinoRunner.from_file(tmp_path / "model.xml", native=native) as runner:
            count = runner.runtime.details["kernel_calls"]
            assert isinstance(count, int)
            assert (count >= 4 * MERGING) is native
            arrays = runner.run({"in0": mctf.x.numpy()}).values()
        assert_close(tuple(map(torch.from_numpy, arrays)), wanted, 1e-4)


@pytest.mark.parametrize(
    ("option", "without"),
    [
        ("tau_sim=0.5", "match_both_ways"),
        ("pooling=0", "fusion_criteria"),
        ("pooling=2", "merge_both_ways_by_weight"),
        ("one_step_ahead=2", "ahead_attention"),
        ("bidirectional=false", "merge_both_ways"),
    ],
)
def test_other_options_take_the_calls_that_fit(option: str, without: str) -> None:
    x = image(1)
    model = timm.create_model("deit_tiny_patch16_224", **SHALLOW).eval()
    found = lowered_and_checked(tokexport.reduce(model, f"{RECIPE},{option}", x), x)
    assert found[without] == 0


def both_ways(scores: Tensor, a: Rows, b: Rows, forth: int = 4, back: int = 3) -> Chain:
    """Matches scores (B, Na, Nb) as MCTF does."""
    others, batch = slice(0, SPECIAL), scores.shape[0]
    kept, src, dst = bipartite_match(scores, forth, "index")
    first = Matching(COUNT, batch, others, a, b, kept, src, dst)
    odd = SPECIAL + kept.shape[1]
    count = odd + scores.shape[2]
    left = gather_tokens(scores, kept).transpose(1, 2)
    second = Matching(
        count,
        batch,
        others,
        slice(odd, count),
        slice(SPECIAL, odd),
        *bipartite_match(left, back, "score"),
        b_first=True,
    )
    return Chain(first, second)


def matched(x: Tensor, rare: Tensor) -> TokenMap:
    """Matches tokens (B, N, C) by cosine and the terms (B, N)."""
    _, a, b = even_and_odd(COUNT, SPECIAL)
    unit = x / x.norm(dim=-1, keepdim=True)
    scores = (unit[:, a] @ unit[:, b].transpose(1, 2) + 1) / 2
    return both_ways(scores * rare[:, a, None] * rare[:, None, b], a, b)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = tokens(2, COUNT, WIDTH)
RARE = tokens(2, COUNT, seed=1).abs() + 0.1


def test_the_places_are_told_by_what_they_are() -> None:
    def spread(x: Tensor, rare: Tensor) -> Tensor:
        by = matched(x, rare)
        return gather_tokens(by(x), by.places())

    assert lowered_and_checked(spread, X, RARE) == {
        "match_both_ways": 1,
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


def test_a_second_match_by_other_scores_stays_apart() -> None:
    def merged(x: Tensor, scores: Tensor, others: Tensor) -> Tensor:
        kept, src, dst = bipartite_match(scores, 4, "index")
        back = bipartite_match(gather_tokens(others, kept).transpose(1, 2), 3, "score")
        return x[:, :1] * (kept.sum() + src.sum() + dst.sum() + sum(one.sum() for one in back))

    scores, others = tokens(2, 10, 10), tokens(2, 10, 10, seed=1)
    found = lowered_and_checked(merged, X, scores, others)
    assert found["bipartite_match"] == found["bipartite_match_by_score"] == 1
    assert found["match_both_ways"] == 0


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
