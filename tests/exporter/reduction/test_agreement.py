"""The agreement of two models' outputs, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.reduction.agreement import agreements


def batches(samples: int, size: int) -> Batches:
    x = np.zeros((-(-samples // size), size, 1), np.float32)
    return Batches(("x",), {"x": x}, samples, None, "by hand")


def test_top1_cosine_and_kl() -> None:
    unreduced = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]]]))
    reduced = np.log(np.array([[[0.25, 0.75], [0.9, 0.1]]])) + 3.0  # softmax knows no shift
    (found,) = agreements({"y": unreduced}, {"y": reduced}, batches(2, 2)).values()
    assert found is not None
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert found.top1 == 0.5
    u, v = unreduced.reshape(2, 2), reduced.reshape(2, 2)
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(u, v, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines))


def test_what_fills_up_the_last_batch_does_not_count() -> None:
    unreduced = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    reduced = unreduced.copy()
    reduced[1, 1] = [0.0, 1.0]
    (three,) = agreements({"y": unreduced}, {"y": reduced}, batches(3, 2)).values()
    (four,) = agreements({"y": unreduced}, {"y": reduced}, batches(4, 2)).values()
    assert three is not None
    assert four is not None
    assert (three.top1, three.cosine, three.kl) == (1.0, 1.0, 0.0)
    assert (four.top1, four.cosine) == (0.75, 0.75)


def test_tokens_have_no_kl_and_another_shape_no_agreement() -> None:
    tokens = np.random.default_rng(0).standard_normal((1, 2, 5, 3))
    count = np.ones((1, 2), np.int64)
    outputs = {"same": tokens, "fewer": tokens, "count": count}
    reduced = {"same": tokens, "fewer": tokens[:, :, :4], "count": count}
    found = agreements(outputs, reduced, batches(2, 2))
    assert found["fewer"] is None
    assert found["count"] is None
    same = found["same"]
    assert same is not None
    assert (same.top1, same.kl) == (1.0, None)
    assert same.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min, np.finfo(np.float64).min])
def test_masked_classes_say_nothing(fill: float) -> None:
    random = np.random.default_rng(0)
    plain = random.standard_normal((3, 2, 8)), random.standard_normal((3, 2, 8))
    masked = [np.concatenate([one, np.full((3, 2, 2), fill)], axis=2) for one in plain]
    (wanted,) = agreements({"y": plain[0]}, {"y": plain[1]}, batches(6, 2)).values()
    (found,) = agreements({"y": masked[0]}, {"y": masked[1]}, batches(6, 2)).values()
    assert found is not None
    assert wanted is not None
    assert found.cosine == pytest.approx(wanted.cosine)
    assert found.kl == pytest.approx(wanted.kl)
    assert found.top1 == wanted.top1


def test_zeros_are_like_zeros_and_like_nothing_else() -> None:
    zeros, ones = np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    found = agreements({"a": zeros, "b": zeros}, {"a": zeros, "b": ones}, batches(1, 1))
    assert [one.cosine for one in found.values() if one is not None] == [1.0, 0.0]
