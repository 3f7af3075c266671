"""A failed gate names the command that finds the node, and that command finds it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import MODELS, TESTS, compile_model, refusal, tokexport

SOURCE = f"{MODELS}:plain_of_two_faces"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "x.npz"
    x = np.random.default_rng(0).standard_normal((2, 3, 24, 24)).astype(np.float32)
    np.savez(path, x=x)
    return path


def test_the_command_of_a_failed_gate_finds_the_node(inputs: Path, tmp_path: Path) -> None:
    options = ("--code-path", TESTS, "--inputs", inputs, "--seed", 3)
    failed = compile_model(SOURCE, tmp_path / "out", *options, "--json")
    assert failed.code == 1, failed
    _, _, command = failed.json["error"]["fix"].partition("To find the node: ")
    words = shlex.split(command)
    assert words[:3] == ["tokexport", "bisect", SOURCE]
    assert words[3:] == [
        *("--target", "ort", "--code-path", str(TESTS), "--inputs", str(inputs), "--seed", "3")
    ]
    answer = tokexport(*words[1:], "--output", tmp_path / "found", "--json")
    assert answer.code == 1, answer
    fault = answer.json["fault"]
    assert (fault["stage"], fault["block"]) == ("captured", "blocks.0")
    assert "super().forward(x) + by" in fault["line"]
    record = json.loads((tmp_path / "found" / "bisect.json").read_text())
    assert record["fault"] == fault
    assert "captured" in (tmp_path / "found" / "README.md").read_text()
    again = (*words[1:], "--output", tmp_path / "found")
    refusal(tokexport(*again), 2, tmp_path, "The folder for the reproduction is there already.")
    (tmp_path / "found" / "notes.txt").write_text("mine")
    refusal(tokexport(*again, "--force"), 2, tmp_path, "holds other things", "notes.txt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing says what the source is compared with"),
        (("bundle", "--target", "ort"), "A bundle has a target of its own"),
    ],
)
def test_what_is_compared_has_to_be_named(arguments: tuple[str, ...], said: str) -> None:
    answer = tokexport("bisect", SOURCE, *arguments)
    assert answer.code == 2
    assert said in answer.said
