"""What ``tokexport inspect`` prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import MODELS, in_own_process, refusal, tokexport

SOURCE = f"{MODELS}:with_inputs"
#: A model that talks while it is built and while it runs.
TALKS = """
import torch
print("imported here")

class Talks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 5)

    def forward(self, x):
        print("called here")
        return self.layer(x), {"twice": self.layer(x * 2)}

def build():
    return Talks(), torch.zeros(2, 4)
"""


def test_it_prints_the_blocks_the_cost_and_the_targets() -> None:
    answer = tokexport("inspect", f"{MODELS}:merging_vit", "--input-shape", "1,3,12,12")
    assert answer.code == 0
    shown = answer.stdout.splitlines()
    assert shown[0] == f"{MODELS}:merging_vit  x [1, 3, 12, 12]"
    assert "the whole  " in answer.stdout
    assert "bipartite_match" in answer.stdout
    targets = shown[shown.index("Targets") + 1 :]
    assert [line.split()[:3] for line in targets] == [
        [target, "no", "refusal"] for target in ("ort", "openvino", "trt")
    ]


def test_json_is_one_object() -> None:
    found = tokexport("inspect", SOURCE, "--json").json
    assert (found["exit_code"], found["error"]) == (0, None)
    assert found["source"] == SOURCE
    assert found["inputs"] == {"x": [1, 3, 12, 12]}
    assert found["outside"]["recognised"] == {
        "bipartite_match": 1,
        "merge_tokens": 1,
        "sized_attention": 1,
    }
    assert found["macs"]["convolution"] == 9 * 8 * 3 * 16
    assert [verdict["target"] for verdict in found["targets"]] == ["ort", "openvino", "trt"]


def test_what_the_model_prints_does_not_reach_the_json(tmp_path: Path) -> None:
    (tmp_path / "talking.py").write_text(TALKS)
    answer = in_own_process(
        "inspect", "talking:build", "--code-path", tmp_path, "--target", "ort", "--json"
    )
    assert answer.code == 0, answer
    assert json.loads(answer.stdout)["macs"]["linear"] == 2 * 2 * 4 * 5
    assert "imported here" in answer.stderr
    assert "called here" in answer.stderr


def test_one_target_is_asked_alone() -> None:
    found = tokexport("inspect", SOURCE, "--target", "trt", "--json").json
    assert [verdict["target"] for verdict in found["targets"]] == ["trt"]


def test_a_refusal_by_a_target_is_a_finding_and_no_failure() -> None:
    answer = tokexport(
        "inspect", f"{MODELS}:SortsNumbers", "--input-shape", "2,4", "--target", "trt"
    )
    assert answer.code == 0
    assert "trt      refuses" in answer.stdout
    assert "numbers = (x * 100).long().sort(-1).values  # sorted here" in answer.stdout


def test_a_batch_and_samples_of_a_file(tmp_path: Path) -> None:
    shape = ("--input-shape", "1,3,12,12", "--target", "ort", "--json")
    one = tokexport("inspect", f"{MODELS}:merging_vit", *shape).json
    two = tokexport("inspect", f"{MODELS}:merging_vit", "--batch", 2, *shape).json
    assert two["batch"] == 2
    assert two["macs"]["linear"] == 2 * one["macs"]["linear"]
    np.savez(tmp_path / "data.npz", x=np.zeros((5, 3, 12, 12), np.float32))
    options = ("--inputs", tmp_path / "data.npz", "--batch", 2, "--target", "ort", "--json")
    assert tokexport("inspect", f"{MODELS}:merging_vit", *options).json["macs"] == two["macs"]


@pytest.mark.parametrize(
    ("source", "options", "code", "parts"),
    [
        ("models.nowhere:build", (), 2, ("models.nowhere",)),
        (f"{MODELS}:merging_vit", (), 2, ("--input-shape",)),
        (f"{MODELS}:with_inputs", ("--batch", "0"), 2, ("batch",)),
        (f"{MODELS}:plain_vit", ("--restore",), 2, ("there is no --reduce",)),
        (f"{MODELS}:KeepsSome", ("--input-shape", "2,4"), 3, ("depends on the values", "masked")),
        (f"{MODELS}:LeavesTorch", ("--input-shape", "2,4"), 3, ("left here",)),
    ],
)
def test_what_cannot_be_inspected(
    source: str, options: tuple[str, ...], code: int, parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = tokexport("inspect", source, *options)
    refusal(answer, code, tmp_path, *parts)
    answer = tokexport("inspect", source, *options, "--json")
    assert (answer.code, answer.json["exit_code"]) == (code, code)
    assert answer.json["error"]["what"]


def test_an_unknown_target_is_a_usage_error() -> None:
    assert tokexport("inspect", SOURCE, "--target", "coreml").code == 2


def test_a_reduction_is_counted_against_the_model_as_it_was() -> None:
    source = f"{MODELS}:plain_vit"
    given = ("--reduce", "tome:r=4", "--target", "ort")
    found = tokexport("inspect", source, *given, "--json").json
    assert sum(found["unreduced"].values()) > sum(found["macs"].values())
    assert found["recipe"] == "tome:r=4"
    assert [block["tokens_out"] for block in found["blocks"]] == [33, 29, 25]
    shown = tokexport("inspect", source, *given).stdout
    assert shown.startswith(f"{source}  x [1, 3, 24, 24]  reduced by tome:r=4\n")
    assert "counted on the model as it was given" in shown


@pytest.mark.thorough
def test_restored_tokens_leave_the_last_block() -> None:
    given = ("--reduce", "tome:r=4", "--restore", "--target", "trt", "--json")
    found = tokexport("inspect", f"{MODELS}:plain_vit", *given).json
    assert found["recipe"] == "tome:r=4,restore=true"
    assert [block["tokens_out"] for block in found["blocks"]] == [33, 29, 37]


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tokexport("inspect", SOURCE).code == 0
    assert list(tmp_path.iterdir()) == []
