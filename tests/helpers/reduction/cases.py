"""Draws tokens and attentions for the reduction methods, and holds what comes out to references.

Numbers are float64, so that no two scores are equal by accident. ``tied`` ones are few and short
enough for products, means and cosines to be exact in any order of summation: then many scores are
equal, and which of them comes first is a matter of the method alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from helpers.reduction.outcome import Array, Outcome, Sizes
from hypothesis import strategies as st
from torch import Tensor

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.tokens import Tokens, Trace

WIDTH, HEADS = 4, 2


@dataclass(frozen=True)
class Case:
    """The tokens of a batch, and an attention over them.

    Attributes:
        seed: Of the numbers.
        batch: B.
        special: Tokens at the front that are no patches.
        patches: T.
        sized: Whether sizes are given.
        tied: Whether many numbers are equal.
    """

    seed: int
    batch: int
    special: int
    patches: int
    sized: bool = False
    tied: bool = False

    @property
    def count(self) -> int:
        """N."""
        return self.special + self.patches

    def tokens(self) -> Tokens:
        """Tokens that are followed; tied ones are rows of 1 and -1."""
        x = _numbers(self.seed, self.tied, self.batch, self.count, WIDTH)
        size = None
        if self.sized:
            generator = np.random.default_rng(self.seed + 1)
            size = torch.from_numpy(2.0 ** generator.integers(0, 3, (self.batch, self.count, 1)))
        everyone = torch.arange(self.count).expand(self.batch, -1)
        return Tokens(x, self.special, self.count, size=size, trace=Trace(everyone, everyone))

    def attention(self) -> Attention:
        """Random heads; tied ones have head means of 1 and -1, and probabilities of a few kinds."""
        shape = self.batch, 1, self.count, WIDTH
        mean = _numbers(self.seed + 2, self.tied, *shape)
        apart = _numbers(self.seed + 3, self.tied, *shape)
        k = torch.cat([mean + apart, mean - apart], dim=1)
        generator = np.random.default_rng(self.seed + 4)
        q, v = (torch.from_numpy(generator.standard_normal(k.shape)) for _ in range(2))
        given = None
        if self.tied:  # a key has one probability for all queries and heads, a power of two
            given = torch.from_numpy(2.0 ** -generator.integers(1, 4, (self.batch, self.count)))
            given = given[:, None, None, :].repeat(1, HEADS, self.count, 1)
        return Attention(q, k, v, WIDTH**-0.5, given=given)


def _numbers(seed: int, tied: bool, *shape: int) -> Tensor:
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal(shape)
    return torch.from_numpy(np.where(drawn < 0, -1.0, 1.0) if tied else drawn)


@st.composite
def cases(
    draw: st.DrawFn,
    special: Sequence[int] = (0, 1, 2, 5),
    most: int = 14,
    tied: bool = True,
    sized: bool = True,
) -> Case:
    """Draws a batch of 1 or 3 images with 1 … ``most`` patches."""
    return Case(
        seed=draw(st.integers(0, 2**30)),
        batch=draw(st.sampled_from([1, 3])),
        special=draw(st.sampled_from(special)),
        patches=draw(st.integers(1, most)),
        sized=sized and draw(st.booleans()),
        tied=tied and draw(st.booleans()),
    )


def image(tokens: Tokens, number: int) -> tuple[Array, Sizes]:
    """The rows and sizes of one image."""
    size = None if tokens.size is None else tokens.size[number, :, 0].tolist()
    return tokens.x[number].numpy(), size


def assert_comes_to(found: Tokens, wanted: Sequence[Outcome], old: Tokens) -> None:
    """Holds tokens to the references of all images: values, sizes, and where each one is."""
    assert (found.special, found.began) == (old.special, old.began)
    rows = np.stack([outcome.x for outcome in wanted])
    np.testing.assert_allclose(found.x.numpy(), rows, rtol=0, atol=1e-9)
    if wanted[0].size is None:
        assert found.size is None
    else:
        assert found.size is not None
        sizes = np.array([outcome.size for outcome in wanted])
        np.testing.assert_allclose(found.size[..., 0].numpy(), sizes, rtol=0, atol=1e-9)
    trace = found.trace
    assert trace is not None
    assert trace.origins is not None
    assert trace.origins.tolist() == [[group[0] for group in one.groups] for one in wanted]
    assert trace.places.tolist() == [_places(one.groups, old.count) for one in wanted]


def _places(groups: list[list[int]], count: int) -> list[int]:
    found = [-1] * count
    for place, group in enumerate(groups):
        for member in group:
            assert found[member] == -1
            found[member] = place
    return found
