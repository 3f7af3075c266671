"""On an input that a compile did not see, a near-tie is excused and said, and no error is."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compiled_models import (
    Compiled,
    NearTieWarning,
    assert_agrees,
    assert_builds,
    compile_for_ort,
)
from helpers.near_ties import (
    CHANNELS,
    TOKENS,
    HalfAgain,
    KeepsTheBest,
    Nudge,
    SmallestFirst,
    samples,
)
from models.zoo import tome

import tokexport.runtimes
from tokexport.exporter.parity.proof import ParityError
from tokexport.graph_passes import pipelines


def lowered_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, apart: float, *passes: Any
) -> Compiled:
    """Compiles the model, to be held to eager on a decision that close, and adds passes."""
    model = compile_for_ort(
        KeepsTheBest(), torch.zeros(1, TOKENS, CHANNELS), folder, samples(apart)
    )
    lower = {**pipelines.LOWER, "openvino": (*pipelines.LOWER["openvino"], *passes)}
    monkeypatch.setattr(pipelines, "LOWER", lower)
    return model


def test_a_tie_is_excused_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lowered_with(monkeypatch, tmp_path, 2e-7, Nudge(1e-6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_builds(model, "openvino", tmp_path)
    said = [str(one.message) for one in caught if one.category is NearTieWarning]
    assert [text.split(": 1 choices differ")[0] for text in said] == [
        "openvino, lowered",
        "openvino, artifact",
    ]
    assert all("topk(KEPT, dim=1)" in text and "by margins of at most" in text for text in said)


def test_a_wide_decision_needs_no_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lowered_with(monkeypatch, tmp_path, 0.5, Nudge(1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NearTieWarning)
        assert_builds(model, "openvino", tmp_path)


@pytest.mark.parametrize(
    ("apart", "passes", "why_not"),
    [
        (1e-4, (Nudge(1e-3),), "are off by 3.3e-04 of their scale, and 1.0e-05 is allowed"),
        (2e-7, (SmallestFirst(),), "it chooses what is worse by 9.0e-01 of the scale"),
        (2e-7, (Nudge(1e-6), HalfAgain()), "with eager's decisions as inputs it is off as well"),
        (0.5, (HalfAgain(),), "with eager's decisions as inputs it is off as well"),
    ],
)
def test_an_error_fails(
    apart: float,
    passes: tuple[Any, ...],
    why_not: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = lowered_with(monkeypatch, tmp_path, apart, *passes)
    with pytest.raises(ParityError, match="Parity failed at 'lowered'") as caught:
        assert_builds(model, "openvino", tmp_path)
    assert why_not in str(caught.value)


@pytest.mark.thorough
def test_a_model_of_the_zoo_that_is_off_fails(tmp_path: Path) -> None:
    model = compile_for_ort(*tome.build(), tmp_path)
    with tokexport.runtimes.load(model.result.bundle) as runner:
        assert_agrees(runner, model)
        off = replace(model, wanted={name: one * 1.001 for name, one in model.wanted.items()})
        vars(off)["measured"] = model.measured  # of what is right
        with pytest.raises(ParityError, match="with eager's decisions as inputs it is off as well"):
            assert_agrees(runner, off)
