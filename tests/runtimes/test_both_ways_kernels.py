"""The kernels of layers that merge forth and back, against the bodies of their functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.function_models import Call
from helpers.native_kernels import BATCH, FUZZ, RUNTIMES, SEED, assert_same, run
from helpers.token_cases import Array, rows, values
from hypothesis import given
from hypothesis import strategies as st

from tokexport.runtimes.errors import RunError

ROUNDING = 1e-5
#: Tokens of length one, whose cosines are 0 and 1 exactly.
ONES = np.eye(8, dtype=np.float32)


@dataclass(frozen=True)
class Split:
    """How tokens are split, and how many of each set go: B images of N."""

    batch: int
    count: int
    protected: int
    forth: int
    back: int

    @property
    def a(self) -> range:
        return range(self.protected, self.count, 2)

    @property
    def b(self) -> range:
        return range(self.protected + 1, self.count, 2)

    @property
    def left(self) -> int:
        return self.protected + len(self.a) - self.forth + len(self.b) - self.back

    @property
    def attributes(self) -> dict[str, list[int]]:
        sets = {"a_start": [self.a.start], "b_start": [self.b.start], "step": [2]}
        return {"protected": [self.protected], **sets}

    def matches(self, seed: int) -> tuple[Array, ...]:
        """Draws both: what stays, what goes, and where to."""
        found: list[Array] = []
        ends = ((len(self.a), self.forth, len(self.b)), (len(self.b), self.back, 0))
        for own, taken, other in ends:
            ranked = rows(seed, self.batch, own, own, unique=True)
            to = rows(seed + 1, self.batch, taken, other or len(self.a) - self.forth)
            found += [ranked[:, taken:].copy(), ranked[:, :taken].copy(), to]
            seed += 2
        return tuple(found)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Draws a split: of a something is left, of b all may go, and of either nothing may go."""
    batch, protected = draw(BATCH), draw(st.integers(0, 2))
    count = protected + draw(st.integers(5, 60))
    split = Split(batch, count, protected, 0, 0)
    forth, back = draw(st.integers(0, len(split.a) - 1)), draw(st.integers(0, len(split.b)))
    return Split(batch, count, protected, forth, back)


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, splits(), st.sampled_from([1, 64, 97, 200]))
def test_what_merges_both_ways(runtime: str, seed: int, split: Split, channels: int) -> None:
    x = values(seed, split.batch, split.count, channels)
    weight = 1 + np.abs(values(seed + 1, split.batch, split.count, 1))
    matches = split.matches(seed + 2)
    merged = (split.batch, split.left)
    assert_same(
        Call("places_both_ways", matches, [(split.batch, split.count)], split.attributes),
        Call("merge_both_ways", (x, *matches), [(*merged, channels)], split.attributes),
        Call(
            "merge_both_ways_by_weight",
            (x, weight, *matches),
            [(*merged, channels), (*merged, 1)],
            split.attributes,
        ),
        runtime=runtime,
    )


@FUZZ
@given(SEED, BATCH, st.integers(1, 4), st.integers(1, 60), st.integers(1, 40))
def test_the_weights_of_attention(
    seed: int, batch: int, heads: int, count: int, depth: int
) -> None:
    width = heads * depth
    qk, size = values(seed, batch, count, 2 * width + 3), values(seed + 1, batch, count)
    size[:, 1::3] = -np.inf
    q = values(seed + 2, batch, 7, width)
    shared = {"scale": 0.4, "heads": [heads], "depth": [depth]}
    packed = {**shared, "q_start": [0], "k_start": [width + 3]}
    apart = {**shared, "q_start": [0], "k_start": [1]}
    sizes = 1 + np.abs(values(seed + 3, batch, count, 1))
    assert_same(
        Call("attention_weights", (qk, qk), [(batch, heads, count, count)], packed),
        Call("sized_attention_weights", (q, qk, size), [(batch, heads, 7, count)], apart),
        Call("attention_weights_by_size", (q, qk, sizes), [(batch, heads, 7, count)], apart),
    )


@pytest.mark.parametrize("at", [(0, 1, 0), (1, 0, 3), (1, 2, 8), (0, 17, 12)])
@pytest.mark.parametrize("number", [np.inf, -np.inf])
def test_weights_of_what_is_infinite_are_no_numbers(
    at: tuple[int, int, int], number: float
) -> None:
    qk = values(0, 2, 20, 16)
    qk[at] = number
    shared = {"scale": 1.0, "heads": [1], "depth": [8], "q_start": [0], "k_start": [8]}
    call = Call("attention_weights", (qk, qk), [(2, 1, 20, 20)], shared)
    wanted, found = run([call], native=False), run([call], native=True)
    assert np.isnan(wanted["weights_0"]).any()
    np.testing.assert_allclose(found["weights_0"], wanted["weights_0"], rtol=0, atol=1e-6)


@FUZZ
@given(SEED, BATCH, st.integers(1, 4), st.integers(1, 9), st.integers(1, 150))
def test_the_criteria(seed: int, batch: int, heads: int, queries: int, count: int) -> None:
    weights = 0.01 + np.abs(values(seed, batch, heads, queries, count))
    size = 1 + np.abs(values(seed + 1, batch, count, 1)).round()
    assert_same(
        Call(
            "fusion_criteria",
            (weights, size),
            [(batch, count), (batch, count, 1)],
            {"info_power": 0.05, "size_power": 0.5},
        )
    )


@FUZZ
@given(SEED, splits(), st.integers(1, 4), st.integers(1, 40), st.integers(0, 3))
def test_attention_ahead_of_a_merge(
    seed: int, split: Split, heads: int, depth: int, start: int
) -> None:
    weights = np.abs(values(seed, split.batch, heads, split.count, split.count))
    v = values(seed + 1, split.batch, 9, heads * depth + start)
    place = rows(seed + 2, split.batch, split.count, 9)
    share = 1 + np.abs(values(seed + 3, split.batch, split.count, 1))
    assert_same(
        Call(
            "ahead_attention",
            (weights, v, place, share, *split.matches(seed + 4)),
            [(split.batch, split.left, heads * depth)],
            {"heads": [heads], "depth": [depth], "v_start": [start], **split.attributes},
        ),
        tolerance=1e-5,
    )


def scored_call(split: Split, tokens: Array, rare: Array) -> Call:
    na, nb, r = len(split.a), len(split.b), split.forth
    shapes = [(split.batch, n) for n in (na - r, r, r)]
    attributes = {name: given for name, given in split.attributes.items() if name != "protected"}
    return Call(
        "scored_match", (tokens, rare), [*shapes, (split.batch, na, nb)], attributes | {"r": [r]}
    )


def back_call(split: Split, scores: Array, kept: Array) -> Call:
    nb, r = len(split.b), split.back
    shapes = [(split.batch, n) for n in (nb - r, r, r)]
    return Call("match_back", (scores, kept), shapes, {"r": [r]})


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, splits(), st.sampled_from([4, 19, 64]))
def test_the_scored_match(runtime: str, seed: int, split: Split, channels: int) -> None:
    tokens = values(seed, split.batch, split.count, channels)
    rare = 0.5 + np.abs(values(seed + 1, split.batch, split.count)) / 2
    call = scored_call(split, tokens, rare)
    unit = tokens.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    a, b = (slice(part.start, None, 2) for part in (split.a, split.b))
    scores = (unit[:, a] @ unit[:, b].swapaxes(1, 2) + 1) / 2 * rare[:, a, None] * rare[:, None, b]
    # Scores are rounded differently, and so a near-tie may fall either way: the scores decide.
    for found in (run([call], native=False), run([call], True, runtime)):
        np.testing.assert_allclose(found["scores_0"], scores, rtol=0, atol=ROUNDING)
        for image in range(split.batch):
            kept, src, dst = (found[f"{name}_0"][image] for name in ("kept", "src", "dst"))
            best = scores[image].max(axis=1)
            assert sorted([*kept, *src]) == list(range(len(best)))
            assert np.all(scores[image, src, dst] >= best[src] - ROUNDING)
            assert np.all(np.diff(best[src]) <= ROUNDING)
            assert best[kept].max() <= best[src].min(initial=np.inf) + ROUNDING
            assert np.all(np.diff(kept) > 0)


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, splits())
def test_of_equal_scores_the_first_wins(runtime: str, seed: int, split: Split) -> None:
    tokens = ONES[rows(seed, split.batch, split.count, len(ONES))]
    rare = np.array([0.5, 1], np.float32)[rows(seed + 1, split.batch, split.count, 2)]
    assert_same(scored_call(split, tokens, rare), runtime=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@FUZZ
@given(SEED, splits(), st.sampled_from([0, 0, 3]), st.booleans())
def test_the_match_back(runtime: str, seed: int, split: Split, levels: int, blocked: bool) -> None:
    na = len(split.a)
    scores = values(seed, split.batch, na, len(split.b), levels=levels)  # few levels make ties
    if blocked:
        scores[:, 0] = -np.inf
    kept = np.sort(rows(seed + 1, split.batch, na - split.forth, na, unique=True))
    assert_same(back_call(split, scores, kept), runtime=runtime)


def test_of_a_token_without_direction_every_score_is_no_number_and_comes_first() -> None:
    split = Split(1, 10, 0, 1, 2)
    tokens, rare = values(0, 1, 10, 4), np.ones((1, 10), np.float32)
    tokens[0, 6] = 0  # the fourth of a
    call = scored_call(split, tokens, rare)
    found = run([call], native=True)
    assert found["src_0"].tolist() == [[3]]
    assert np.isnan(found["scores_0"][0, 3]).all()
    assert np.isfinite(found["scores_0"][0, :3]).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_matches_that_name_a_token_twice_are_refused(runtime: str) -> None:
    split = Split(1, 6, 0, 1, 1)
    kept, src, *others = split.matches(0)
    kept = np.full_like(kept, src[0, 0])
    call = Call("places_both_ways", (kept, src, *others), [(1, 6)], split.attributes)
    with pytest.raises(RunError, match=r"leave out token \d+, expected each token once"):
        run([call], True, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("position", range(6))
def test_a_match_outside_of_the_tokens_is_refused(runtime: str, position: int) -> None:
    split = Split(1, 8, 1, 1, 1)
    matches: list[Any] = list(split.matches(0))
    matches[position] = np.full_like(matches[position], 7)
    call = Call("merge_both_ways", (values(0, 1, 8, 3), *matches), [(1, 6, 3)], split.attributes)
    with pytest.raises(RunError, match=r"names row -?\d+, expected 0 to below \d+"):
        run([call], True, runtime)
