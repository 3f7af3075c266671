"""The pages of ``verify --against`` and of ``inspect --image``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import opened
from helpers.cli import MODELS, TESTS, Answer, compile_model, tokexport
from helpers.html_words import Words
from models.cli_models import plain_vit
from PIL import Image

from tokexport.exporter.report_page.page import (
    BAD,
    GOOD,
    Page,
    Section,
    Table,
    Verdict,
    render_page,
)

SOURCE = f"{MODELS}:plain_vit"
AGAINST = ("--builder", SOURCE, "--code-path", TESTS)


def refused(answer: Answer) -> str:
    """What a refusal of usage says."""
    assert answer.code == 2, answer
    return answer.said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, its weights, and the weights of another model."""
    folder = tmp_path_factory.mktemp("made")
    weights = plain_vit()[0].state_dict()
    torch.save(weights, folder / "weights.pt")
    weights["head.weight"].neg_()
    torch.save(weights, folder / "others.pt")
    assert compile_model(SOURCE, folder / "bundle", "--reduce", "tome:r=4").code == 0
    return folder


def test_a_bundle_of_another_model_is_said_to_be_wrong(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "against.html"
    answer = tokexport(
        *("verify", made / "bundle", "--against", made / "others.pt", *AGAINST),
        *("--html", page, "--json"),
    )
    assert (answer.code, answer.json["verdict"]) == (1, "wrong")
    text = Words.of(page)
    assert f"WRONG The bundle is not the model of {made / 'others.pt'}" in text
    assert "The weights are others" in text
    assert "Output logits is off by" in text
    assert "Compile the source anew, or pass the source that the bundle was compiled from." in text
    assert "output: tokens" in text
    assert "1. bipartite match, cli_models.py:" in text
    found = opened(page, tmp_path, 360, dark=True)
    assert (found.console, found.measured["wide"]) == ([], [])


def test_the_bundle_of_a_model_is_said_to_be_it(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "against.html"
    given = ("verify", made / "bundle", "--against", made / "weights.pt", *AGAINST, "--html", page)
    answer = tokexport(*given, "--json")
    word = answer.json["verdict"].upper()
    assert f"{word} The bundle is the model of {made / 'weights.pt'}" in Words.of(page)
    assert "Why not" not in Words.of(page)
    assert "The output file is there already." in refused(tokexport(*given))


def test_a_page_of_verify_needs_a_source(made: Path, tmp_path: Path) -> None:
    said = refused(tokexport("verify", made / "bundle", "--html", tmp_path / "page.html"))
    assert "--against SOURCE" in said


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture whose left half is of one colour."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    pixels[:, :12] = 200
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_the_tokens_of_a_picture_are_drawn(photo: Path, tmp_path: Path) -> None:
    page = tmp_path / "tokens.html"
    answer = tokexport(
        *("inspect", SOURCE, "--code-path", TESTS, "--reduce", "tome:r=4", "--target", "ort"),
        *("--image", photo, "--preprocess", "mean=half", "--output", page, "--json"),
    )
    assert answer.code == 0, answer
    steps = answer.json["drawn"]["tokens"]["steps"]
    assert [step["tokens"] for step in steps] == [37, 33, 29, 25]
    text = Words.of(page)
    assert "DRAWN The 37 tokens of photo.png become 25." in text
    assert "The model cuts a picture into 6 × 6 patches." in text
    assert "into blocks.1: 32 tokens + 1 without a patch" in text
    found = opened(page, tmp_path, 1280, dark=False)
    assert (found.console, found.measured["wide"]) == ([], [])


def test_a_picture_is_the_only_sample(photo: Path, tmp_path: Path) -> None:
    given = ("inspect", SOURCE, "--code-path", TESTS, "--image", photo)
    assert "Leave one of them out." in refused(tokexport(*given, "--inputs", photo))
    (tmp_path / "there.html").write_text("mine")
    said = refused(tokexport(*given, "--output", tmp_path / "there.html"))
    assert "The output file is there already." in said


def test_a_page_of_another_command_is_data() -> None:
    table = Table(("output", "change"), (("logits", "2e-3"),), ("change",), tones=(BAD,))
    html = render_page(
        Page(
            title="vit.lock",
            kind="check",
            verdict=Verdict(GOOD, "UNCHANGED", "Nothing <moved>.", ("On 3 bundles.",)),
            sections=(Section("Outputs", (table,), "What moved."),),
        )
    )
    assert "Nothing &lt;moved&gt;." in html
    assert '<td data-name="change" class="number">2e-3</td>' in html
