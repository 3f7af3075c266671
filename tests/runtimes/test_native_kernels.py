"""The native kernels against the bodies of their functions in ONNX Runtime.

OpenVINO runs bodies too, but puts ties in an order of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.function_models import Call
from helpers.native_kernels import (
    BATCH,
    EMULATED,
    FUZZ,
    RUNTIMES,
    SEED,
    assert_same,
    multiplies_bytes,
    run,
)
from helpers.thorough import thorough_but
from helpers.token_cases import Array, rows, values
from hypothesis import given
from hypothesis import strategies as st

from tokexport.graph_passes.onnx_passes.fuse.pack_integer_linears import packed_bytes
from tokexport.graph_passes.onnx_passes.fuse.pack_linears import packed_panels
from tokexport.graph_passes.onnx_passes.graph.integer_weights import per_channel
from tokexport.graph_passes.ops import ops
from tokexport.graph_passes.ops.fused_functions import PANEL
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.native_library import (
    VARIABLE,
    kernels_of,
    native_library,
    openvino_library,
)
from tokexport.runtimes.openvino.runner import kernels_here

Shapes = list[tuple[int, ...]]

#: From the plainest to the best.
SETS = (
    ("neon", "neon_dotprod", "neon_i8mm")
    if platform.machine() == "aarch64"
    else ("baseline", "avx2", "avxvnni", "avx512", "avx512vnni")
)


def linear_calls(seed: int, batch: int, count: int, depth: int, columns: int) -> list[Call]:
    x, w = values(seed, batch, count, depth), values(seed + 1, depth, columns)
    bias, residual = values(seed + 2, columns), values(seed + 3, batch, count, columns)
    inputs = (x, packed_panels(w), bias)
    shapes = [(batch, count, columns)]
    return [
        Call("linear", inputs, shapes),
        Call("linear_gelu", inputs, shapes),
        Call("linear_add", (*inputs, residual), shapes),
    ]


@FUZZ
@given(SEED, BATCH, st.integers(1, 61), st.integers(1, 97), st.integers(1, 131))
def test_linear(seed: int, batch: int, count: int, depth: int, columns: int) -> None:
    assert_same(*linear_calls(seed, batch, count, depth, columns), tolerance=1e-5)


in_integers = pytest.mark.skipif(
    not multiplies_bytes(), reason="no kernel multiplies bytes with these instructions"
)


def integer_calls(seed: int, batch: int, count: int, depth: int, columns: int) -> list[Call]:
    x, w = values(seed, batch, count, depth), values(seed + 1, depth, columns)
    bias, residual = values(seed + 2, columns), values(seed + 3, batch, count, columns)
    integers, scales = per_channel(w)
    inputs = (x + bias.mean(), packed_bytes(integers), scales, bias)
    shapes = [(batch, count, columns)]
    return [
        Call("integer_linear", inputs, shapes),
        Call("integer_linear_gelu", inputs, shapes),
        Call("integer_linear_add", (*inputs, residual), shapes),
    ]


@in_integers
@FUZZ
@given(SEED, BATCH, st.integers(1, 61), st.integers(1, 97), st.integers(1, 131))
def test_linear_in_integers(seed: int, batch: int, count: int, depth: int, columns: int) -> None:
    assert_same(*integer_calls(seed, batch, count, depth, columns))


@in_integers
def test_linear_in_integers_with_more_rows_than_a_task_takes() -> None:
    assert_same(*integer_calls(0, 3, 2200, 256, 70))


@in_integers
@pytest.mark.parametrize("x", [0.0, 3.0, -2.0, 1e-45, -1e-43])
def test_integers_of_one_number(x: float) -> None:
    panels = packed_bytes(np.array([[5], [-7]], np.int8))
    one = np.ones(1, np.float32)
    assert_same(
        Call("integer_linear", (np.full((1, 4, 2), x, np.float32), panels, one, one), [(1, 4, 1)])
    )


@in_integers
def test_rows_without_depth_in_integers() -> None:
    deep, one = packed_bytes(np.ones((0, 3), np.int8)), np.ones(3, np.float32)
    call = Call("integer_linear", (values(0, 1, 4, 0), deep, one, one), [(1, 4, 3)])
    np.testing.assert_array_equal(run([call], native=True)["y_0"], np.ones((1, 4, 3)))


@in_integers
@pytest.mark.parametrize("x", [np.inf, -np.inf])
def test_what_is_not_finite_stays_so_in_integers(x: float) -> None:
    rows = values(0, 1, 4, 40)
    rows[0, 2, 39] = x
    integers, scales = per_channel(values(1, 40, 3))
    inputs = (rows, packed_bytes(integers), scales, np.ones(3, np.float32))
    found = run([Call("integer_linear", inputs, [(1, 4, 3)])], native=True)
    assert not np.isfinite(found["y_0"]).any()


@in_integers
def test_integers_packed_for_another_depth_are_refused() -> None:
    x, bias = values(0, 1, 4, 8), values(1, 3)
    panels = packed_bytes(np.ones((9, 3), np.int8))
    with pytest.raises(RunError, match=r"panels has shape \(.*\), expected \("):
        run([Call("integer_linear", (x, panels, bias, bias), [(1, 4, 3)])], native=True)


def test_linear_with_more_rows_than_a_task_takes() -> None:
    assert_same(*linear_calls(0, 3, 400, 256, 70), tolerance=1e-5)


def test_gelu_far_from_zero() -> None:
    x = np.linspace(-40, 40, 2001, dtype=np.float32)[None, :, None]
    panels = packed_panels(np.ones((1, 1), np.float32))
    bias = np.zeros(1, np.float32)
    assert_same(Call("linear_gelu", (x, panels, bias), [x.shape]), tolerance=5e-8)


def test_weights_packed_for_another_depth_are_refused() -> None:
    x, bias = values(0, 1, 4, 8), values(1, 3)
    panels = packed_panels(values(2, 9, 3))
    with pytest.raises(RunError, match=r"panels has shape \(.*\), expected \("):
        run([Call("linear", (x, panels, bias), [(1, 4, 3)])], native=True)


@FUZZ
@given(SEED, BATCH, st.integers(1, 4), st.integers(1, 40), st.integers(1, 75), st.integers(1, 40))
def test_attention(seed: int, batch: int, heads: int, queries: int, keys: int, depth: int) -> None:
    q = values(seed, batch, heads, queries, depth)
    k, v = values(seed + 1, batch, heads, keys, depth), values(seed + 2, batch, heads, keys, 5)
    size = values(seed + 3, batch, keys)
    size[:, 1::3] = -np.inf
    shapes, scale = [(batch, heads, queries, 5)], {"scale": 0.3}
    assert_same(
        Call("attention", (q, k, v), shapes, scale),
        Call("sized_attention", (q, k, v, size), shapes, scale),
    )


@FUZZ
@given(SEED, st.integers(1, 75), st.sampled_from([30.0, 60.0, 200.0, 2000.0]))
def test_keys_far_below_the_best_have_no_weight(seed: int, keys: int, scale: float) -> None:
    q, k, v = (values(seed + i, 1, 2, keys, 8) for i in range(3))
    call = Call("attention", (q, k, v), [q.shape], {"scale": scale})
    # The largest logits are rounded before they are told apart.
    assert_same(call, tolerance=1e-6 * scale)


def test_attention_to_no_key_is_no_number_in_both() -> None:
    q, size = values(0, 1, 2, 3, 4), np.full((1, 3), -np.inf, np.float32)
    call = Call("sized_attention", (q, q, q, size), [q.shape], {"scale": 1.0})
    for native in (False, True):
        assert np.isnan(run([call], native)["y_0"]).all()


def test_tokens_without_size_are_not_attended_to() -> None:
    qkv, size = values(0, 2, 21, 12), np.ones((2, 21, 1), np.float32)
    size[:, 1::3] = 0.0
    shared = {"scale": 0.4, "heads": [1], "depth": [4]}
    starts = {"q_start": [0], "k_start": [4], "v_start": [8]}
    call = Call("rows_attention_by_size", (qkv, qkv, qkv, size), [(2, 21, 4)], {**shared, **starts})
    assert_same(call)
    assert np.isfinite(run([call], native=True)["y_0"]).all()


@FUZZ
@given(SEED, BATCH, st.integers(1, 4), st.integers(1, 60), st.integers(1, 40))
def test_attention_on_rows(seed: int, batch: int, heads: int, count: int, depth: int) -> None:
    width = heads * depth
    qkv, size = values(seed, batch, count, 3 * width + 2), values(seed + 1, batch, count)
    q = values(seed + 2, batch, 7, width)
    shared = {"scale": 0.4, "heads": [heads], "depth": [depth]}
    packed = {**shared, "q_start": [0], "k_start": [width], "v_start": [2 * width + 2]}
    apart = {**shared, "q_start": [0], "k_start": [1], "v_start": [width]}
    sizes = (1 + 20 * np.abs(size)).round()[..., None]
    assert_same(
        Call("rows_attention", (qkv, qkv, qkv), [(batch, count, width)], packed),
        Call("rows_sized_attention", (q, qkv, qkv, size), [(batch, 7, width)], apart),
        Call("rows_attention_by_size", (q, qkv, qkv, sizes), [(batch, 7, width)], apart),
    )


@FUZZ
@given(SEED, BATCH, st.data())
def test_patch_embed(seed: int, batch: int, data: Any) -> None:
    channels, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70))
    patch = data.draw(st.tuples(st.integers(1, 17), st.integers(1, 17)))
    # The image may end within a patch, which is none then.
    height, width = (data.draw(st.integers(size, 5 * size)) for size in patch)
    first, count = data.draw(st.integers(0, 3)), height // patch[0] * (width // patch[1])
    depth = channels * patch[0] * patch[1]
    inputs = (
        values(seed, batch, channels, height, width),
        packed_panels(values(seed + 1, depth, columns)),
        values(seed + 2, columns),
        values(seed + 3, 1, first + count, columns),
    )
    attributes = {"patch": patch, "kernel": [-1, channels, *patch], "first": [first]}
    shapes = [(batch, first + count, columns)]
    assert_same(Call("patch_embed", inputs, shapes, attributes), tolerance=1e-5)


@FUZZ
@given(SEED, BATCH, st.integers(1, 40), st.integers(1, 70))
def test_layer_norm(seed: int, batch: int, count: int, channels: int) -> None:
    x = values(seed, batch, count, channels) * 3 + 1
    inputs = (x, values(seed + 1, channels), values(seed + 2, channels))
    # A row of nearly equal numbers loses the digits that they share, in any order of adding them.
    lost = np.abs(x).max() / np.sqrt(x.var(axis=-1).min() + 1e-5)
    call = Call("layer_norm", inputs, [x.shape], {"epsilon": 1e-5})
    assert_same(call, tolerance=5e-7 * max(4.0, lost))


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, BATCH, st.integers(1, 70), st.integers(1, 70), st.integers(0, 3), st.data())
def test_match(
    runtime: str, seed: int, batch: int, na: int, nb: int, levels: int, data: Any
) -> None:
    scores = values(seed, batch, na, nb, levels=levels)  # few levels make ties
    scores[:, 0] = -np.inf
    r = data.draw(st.integers(1, na))
    shapes = [(batch, na - r), (batch, r), (batch, r)]
    read = (0, 1, 2) if r < na else (1, 2)
    names = ("bipartite_match", "bipartite_match_by_score")
    assert_same(
        *(Call(name, (scores,), shapes, {"r": [r]}, read) for name in names), runtime=runtime
    )


@FUZZ
@given(SEED, st.integers(6, 99), st.data())
def test_scores_that_are_no_number_rank_as_in_torch(seed: int, count: int, data: Any) -> None:
    tokens = values(seed, 1, count, 4)
    na, nb = len(range(0, count, 2)), len(range(1, count, 2))
    # A token of b without direction is the first that is no number in every row.
    odd = data.draw(st.sets(st.integers(0, nb - 1), max_size=3))
    even = data.draw(st.sets(st.integers(0, na - 1), min_size=1, max_size=3))
    tokens[0, [2 * i for i in even] + [2 * i + 1 for i in odd]] = 0
    r = data.draw(st.integers(1, na if odd else len(even)))
    attributes = {"heads": [1], "depth": [4], "start": [0], "blocked": [0]}
    sets = {"a_start": [0], "b_start": [1], "step": [2], "r": [r]}
    shapes, read = [(1, na - r), (1, r), (1, r)], (0, 1, 2) if r < na else (1, 2)
    call = Call("cosine_match", (tokens,), shapes, {**attributes, **sets}, read)
    metric = torch.from_numpy(tokens)
    unit = metric / metric.norm(dim=-1, keepdim=True)
    wanted = ops.bipartite_match(unit[:, ::2] @ unit[:, 1::2].mT, r, "index")
    for place, array in zip(read, run([call], native=True).values(), strict=True):
        np.testing.assert_array_equal(array, wanted[place].numpy())


SCATTERS = [
    f"scatter_tokens_{mode}{own}"
    for mode in ("sum", "mean", "prod", "amax", "amin")
    for own in ("", "_exclude_self")
]
MERGES = [f"merge_tokens_{mode}" for mode in ("none", "sum", "mean", "prod", "amax", "amin")]


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, BATCH, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 37, 300]))
def test_scatters_and_gather(
    runtime: str, seed: int, batch: int, tokens: int, count: int, channels: int
) -> None:
    dst, src = values(seed, batch, tokens, channels), values(seed + 1, batch, count, channels)
    index = rows(seed + 2, batch, count, tokens)  # with duplicates
    few = min(count, tokens)
    once = rows(seed + 3, batch, few, tokens, unique=True)
    assert_same(
        Call("gather_tokens", (dst, index), [src.shape]),
        Call("scatter_tokens_none", (dst, once, src[:, :few].copy()), [dst.shape]),
        *(Call(name, (dst, index, src), [dst.shape]) for name in SCATTERS),
        tolerance=1e-5,
        runtime=runtime,
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, BATCH, st.integers(2, 50), st.integers(1, 50), st.sampled_from([1, 5, 300]), st.data())
def test_merges(
    runtime: str, seed: int, batch: int, na: int, nb: int, channels: int, data: Any
) -> None:
    r = data.draw(st.integers(1, na))
    a, b = values(seed, batch, na, channels), values(seed + 1, batch, nb, channels)
    ranked, dst = rows(seed + 2, batch, na, na, unique=True), rows(seed + 3, batch, r, nb)
    inputs = (a, b, ranked[:, r:].copy(), ranked[:, :r].copy(), dst)
    shape = (batch, na - r + nb, channels)
    assert_same(*(Call(name, inputs, [shape]) for name in MERGES), tolerance=1e-5, runtime=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["gather_tokens", "merge_tokens_sum"])
def test_an_index_outside_is_refused(name: str, runtime: str) -> None:
    x, far = values(0, 1, 4, 3), np.array([[0, 4]])
    inputs = (x, far) if name == "gather_tokens" else (x, x, far, far, far)
    with pytest.raises(RunError, match=r"names row -?\d+, expected 0 to below \d+"):
        run([Call(name, inputs, [(1, 6 if len(inputs) > 2 else 2, 3)])], True, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, BATCH, st.integers(1, 3), st.integers(6, 90), st.sampled_from([4, 19, 64]), st.data())
def test_the_match_of_tome(
    runtime: str, seed: int, batch: int, heads: int, count: int, depth: int, data: Any
) -> None:
    tokens = values(seed, batch, count, heads * depth + 3)
    protected = data.draw(st.integers(0, 2))
    first = data.draw(st.integers(0, 1))
    a_start, b_start = protected + first, protected + 1 - first
    na = len(range(a_start, count, 2))
    blocked = data.draw(st.integers(0, 1))
    r = data.draw(st.integers(1, na - blocked))
    sets = {"a_start": [a_start], "b_start": [b_start], "step": [2]}
    attributes = {"heads": [heads], "depth": [depth], "start": [3], "blocked": [blocked], **sets}
    call = Call(
        "cosine_match",
        (tokens,),
        [(batch, na - r), (batch, r), (batch, r)],
        {**attributes, "r": [r]},
        (0, 1, 2) if r < na else (1, 2),
    )
    wanted, found = run([call], native=False), run([call], True, runtime)
    # Scores are rounded differently, and so a near-tie may fall the other way: it is looked at.
    unit = tokens[..., 3:].reshape(batch, count, heads, depth).astype(np.float64).mean(2)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    scores = unit[:, a_start::2] @ unit[:, b_start::2].swapaxes(1, 2)
    scores[:, :blocked] = -np.inf
    for image in range(batch):
        pairs = [
            sum(scores[image, src, dst] for src, dst in zip(*ends, strict=True))
            for ends in ((one["src_0"][image], one["dst_0"][image]) for one in (wanted, found))
        ]
        assert pairs[0] == pytest.approx(pairs[1], abs=1e-5 * r)
        taken = [*found["src_0"][image], *(found["kept_0"][image] if r < na else ())]
        assert sorted(taken) == list(range(na))


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, BATCH, st.integers(6, 60), st.sampled_from([1, 64, 97, 200]), st.data())
def test_the_merge_of_tome(
    runtime: str, seed: int, batch: int, count: int, channels: int, data: Any
) -> None:
    protected = data.draw(st.integers(0, 2))
    na, nb = len(range(protected + 1, count, 2)), len(range(protected, count, 2))
    r = data.draw(st.integers(1, na))
    x = values(seed, batch, count, channels)
    size = 1 + np.abs(values(seed + 1, batch, count, 1)).round()
    ranked, dst = rows(seed + 2, batch, na, na, unique=True), rows(seed + 3, batch, r, nb)
    inputs = (x, size, ranked[:, r:].copy(), ranked[:, :r].copy(), dst)
    left = protected + na - r + nb
    sets = {"a_start": [protected + 1], "b_start": [protected], "step": [2]}
    assert_same(
        Call(
            "merge_by_size",
            inputs,
            [(batch, left, channels), (batch, left, 1)],
            {"protected": [protected], **sets},
        ),
        runtime=runtime,
    )


@pytest.mark.parametrize("native", [True, False])
@FUZZ
@given(SEED, BATCH, st.integers(6, 90), st.sampled_from([(1, 4), (3, 19), (2, 64)]), st.data())
def test_the_match_merge_and_norm_of_tome_are_those_three(
    native: bool, seed: int, batch: int, count: int, heads: tuple[int, int], data: Any
) -> None:
    channels = heads[0] * heads[1]
    keys, x = values(seed, batch, count, channels + 3), values(seed + 1, batch, count, channels + 1)
    size = 1 + np.abs(values(seed + 2, batch, count, 1)).round()
    affine = values(seed + 3, channels + 1), values(seed + 4, channels + 1)
    protected = data.draw(st.integers(0, 2))
    starts = data.draw(st.permutations([protected, protected + 1]))
    na, nb = (len(range(start, count, 2)) for start in starts)
    blocked = data.draw(st.integers(0, 1))
    r = data.draw(st.integers(1, na - blocked))
    left = protected + na - r + nb
    sets = {"a_start": [starts[0]], "b_start": [starts[1]], "step": [2]}
    matched = {"heads": [heads[0]], "depth": [heads[1]], "start": [3], "blocked": [blocked]}
    matched["r"] = [r]
    merged, normed = {"protected": [protected]}, {"epsilon": 1e-5}

    def steps(
        name: str, inputs: tuple[Array, ...], shapes: Shapes, **attributes: Any
    ) -> list[Array]:
        return list(run([Call(name, inputs, shapes, attributes)], native).values())

    indices = [(batch, na - r), (batch, r), (batch, r)]
    means = [(batch, left, channels + 1), (batch, left, 1)]
    match = steps("cosine_match", (keys,), indices, **matched, **sets)
    y, y_size = steps("merge_by_size", (x, size, *match), means, **merged, **sets)
    (z,) = steps("layer_norm", (y, *affine), means[:1], **normed)
    joined = {**matched, **merged, **normed, **sets}
    shapes = [*means, means[0]]
    found = steps("cosine_merge_norm", (keys, x, size, *affine), shapes, **joined)
    for array, wanted in zip(found, (y, y_size, z), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_panels_hold_the_columns_in_order() -> None:
    w = values(0, 5, 70)
    panels = packed_panels(w)
    assert panels.shape == (3, 5, PANEL)
    unpacked = panels.transpose(1, 0, 2).reshape(5, -1)
    np.testing.assert_array_equal(unpacked[:, :70], w)
    assert not unpacked[:, 70:].any()


#: What Linux calls the instructions of a set, and the option of the compiler that is the youngest.
NEEDED = {
    "avx2": ("avx2 fma", "-mavx2"),
    "avxvnni": ("avx2 fma avx_vnni", "-mavxvnni"),
    "avx512": ("avx2 fma avx512f avx512bw avx512dq avx512vl", "-mavx512vl"),
    "avx512vnni": ("avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni", "-mavx512vnni"),
    "neon_dotprod": ("asimddp", "-march=armv8.2-a+dotprod"),
    "neon_i8mm": ("asimddp i8mm", "-march=armv8.2-a+dotprod+i8mm"),
}


def widest() -> str:
    """Returns the best set that is allowed, that this processor has and the compiler knows."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line for line in lines if line.startswith(("flags", "Features")))
    flags = next((line.partition(":")[2].split() for line in named), ())
    most = SETS.index(os.environ.get("TOKEXPORT_MAX_ISA", SETS[-1]))
    for isa in reversed(SETS[1 : most + 1]):
        instructions, option = NEEDED[isa]
        if {*instructions.split()} <= {*flags} and compiler_knows(option):
            return isa
    return SETS[0]


def compiler_knows(option: str) -> bool:
    command = ["c++", option, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(bool(EMULATED), reason="the library is for this processor")
def test_the_library_is_installed_with_the_widest_vectors_there_are() -> None:
    library = native_library()
    assert library is not None, "A compile error can hide: build it with pip install -v"
    assert kernels_of(library) == widest()


@pytest.mark.skipif(
    bool(EMULATED) or VARIABLE in os.environ, reason="beside that library there is no other"
)
def test_the_library_for_openvino_is_installed_and_fits_one_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, beside = kernels_here(), native_library()
    assert library is not None, "Install openvino first, and build with pip install -v"
    assert beside is not None
    assert kernels_of(library) == kernels_of(beside)
    assert openvino_library("2000.0.0") is None
    monkeypatch.setenv(VARIABLE, "off")
    assert kernels_here() is None


@pytest.mark.skipif(bool(EMULATED) or "TOKEXPORT_MAX_ISA" in os.environ, reason="this is that run")
@pytest.mark.parametrize("isa", thorough_but(SETS[:1], SETS[:-1]))
def test_narrower_vectors_compute_the_same(isa: str) -> None:
    environment = {**os.environ, "TOKEXPORT_MAX_ISA": isa, "TOKEXPORT_FUZZ": "4"}
    files = [str(path) for path in Path(__file__).parent.glob("test_*_kernels.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
