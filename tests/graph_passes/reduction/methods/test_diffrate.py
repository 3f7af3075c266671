"""DiffRate against its reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.reduction import selections as reference
from helpers.reduction.cases import Case, assert_comes_to, cases, image
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.methods.diffrate import DiffRate


@given(case=cases(special=(1, 2, 5)), prune=st.integers(1, 24), merge=st.integers(1, 24))
@settings(max_examples=80)
def test_it_sorts_prunes_and_merges(case: Case, prune: int, merge: int) -> None:
    tokens, attention = case.tokens(), case.attention()
    method = DiffRate(prune=(99, prune), merge=(99, merge))
    found = method.after_attention(Layer(1, 2), tokens, attention)
    attended = attention.probabilities[:, :, 0].mean(dim=1).tolist()
    wanted = [
        reference.diffrate(*image(tokens, number), attended[number], case.special, prune, merge)
        for number in range(case.batch)
    ]
    assert_comes_to(found, wanted, tokens)


@pytest.mark.parametrize("only", ["prune", "merge"])
def test_one_list_is_enough(only: str) -> None:
    case = Case(0, 2, 1, 10)
    method = DiffRate(prune=(11, 7)) if only == "prune" else DiffRate(merge=(11, 7))
    tokens, attention = case.tokens(), case.attention()
    found = method.after_attention(Layer(1, 2), tokens, attention)
    attended = attention.probabilities[:, :, 0].mean(dim=1).tolist()
    prune = 7 if only == "prune" else 11
    wanted = [
        reference.diffrate(*image(tokens, number), attended[number], 1, prune, 7)
        for number in range(2)
    ]
    assert_comes_to(found, wanted, tokens)


def test_it_leaves_the_first_block_alone() -> None:
    method = DiffRate(merge=(5,) * 12)
    assert [n for n in range(12) if method.acts_in(Layer(n, 12))] == list(range(1, 12))


def test_it_reads_its_schedule(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"prune": [37, 33], "merge": [37, 30]}))
    method = DiffRate(schedule=str(path))
    assert (method.prune, method.merge) == ((37, 33), (37, 30))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"prune": [1]}', '{"prune": 3, "merge": [1]}', '{"prune": ["x"]}']
)
def test_it_refuses_a_file_that_is_no_schedule(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(SurgeryError, match=r"schedule .* cannot be read"):
        DiffRate(schedule=str(path))


def test_it_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"none\.json cannot be read: FileNotFoundError"):
        DiffRate(schedule=str(tmp_path / "none.json"))
