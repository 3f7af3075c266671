"""``--json`` of commands that fail: one object with the error, as the command's schema says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.cli import MODELS, Answer, tokexport
from helpers.json_schemas import check, check_bundle, fault

from tokexport.exporter.cli.app import app
from tokexport.exporter.report.report import Report
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.torch_passes.graph.editor import Editor
from tokexport.graph_passes.torch_passes.graph.pass_runner import TorchPass

aten = torch.ops.aten

NOWHERE = "models.cli_models:nowhere"
PLAIN = f"{MODELS}:plain_vit"
#: Arguments with which a command fails, and its exit code.
FAILS: dict[str, tuple[tuple[str, ...], int]] = {
    "compile": ((NOWHERE, "--target", "ort"), 2),
    "inspect": ((NOWHERE,), 2),
    "run": (("nowhere", "--inputs", "x.npz", "--output", "y.npz"), 5),
    "verify": (("nowhere",), 5),
    "reduce": ((NOWHERE, "--reduce", "tome:r=4", "--output", "out.pt2"), 2),
    "sweep": ((NOWHERE, "--reduce", "tome", "--values", "4", "--target", "ort"), 2),
    "bench": ((NOWHERE, "--targets", "ort"), 2),
    "compare": (("nowhere.onnx", "neither.onnx"), 2),
    "lock": (("nowhere",), 5),
    "check": ((), 2),
    "bisect": ((NOWHERE, "nowhere"), 2),
    "report": (("nowhere",), 2),
    "package": (("nowhere", "--format", "tar", "--output", "out.tar"), 5),
    "rebuild": (("nowhere",), 5),
    "sign": (("nowhere", "--key", "key.pem"), 5),
    "bom": (("nowhere",), 5),
    "schema": (("nowhere",), 2),
}
#: Commands without arguments, which fail with the machine alone.
NEVER_FAIL = {"doctor", "methods"}
BUNDLES = Path(__file__).parents[2] / "bundles"


def test_every_command_is_here() -> None:
    assert {*FAILS} | NEVER_FAIL == {str(one.name) for one in app.registered_commands}


@pytest.mark.parametrize("command", FAILS)
def test_a_command_that_fails_prints_its_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, code = FAILS[command]
    answer = tokexport(command, *arguments, "--json")
    assert answer.code == code, answer
    found = answer.json
    assert [*found] == ["exit_code", "error"]
    assert found["exit_code"] == code
    assert found["error"]["what"]
    check(command, found)


@pytest.mark.parametrize("command", sorted(NEVER_FAIL))
def test_a_command_without_arguments(command: str) -> None:
    answer = tokexport(command, "--json")
    assert answer.code == 0
    found = answer.json
    check(command, found)
    (key, *_) = (name for name in found if isinstance(found[name], list))
    found[key][0]["undeclared"] = 1
    assert "'undeclared' was unexpected" in fault(command, found)


class MinusForPlus(TorchPass):
    """A wrong pass: the last residual is subtracted."""

    name: ClassVar[str] = "minus for plus"

    def call(self, edit: Editor) -> int:
        last = [node for node in edit.graph.nodes if node.target is aten.add.Tensor][-1]
        last.target = aten.sub.Tensor
        return 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "out"
    answer = tokexport(*("compile", PLAIN, "--target", "ort", "--output", folder, "--json"))
    assert answer.code == 0, answer
    check_bundle(folder)
    return folder


def failed_gate(answer: Answer) -> dict[str, Any]:
    """Returns the report of a compile that failed its gate."""
    assert answer.code == 1, answer
    found = answer.json
    assert {*found} == {"exit_code", "error", "schema_version", *Report.__dataclass_fields__}
    assert found["status"] == "FAILED"
    assert found["first_failure"] == "rewritten"
    return found


def test_a_compile_within_a_command_prints_its_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "REWRITE", (*pipelines.REWRITE, MinusForPlus()))
    check("verify", failed_gate(tokexport("verify", bundle, "--against", PLAIN, "--json")))
    options = ("--reduce", "tome", "--values", "4", "--target", "ort", "--output", tmp_path / "out")
    found = failed_gate(tokexport("sweep", PLAIN, *options, "--json"))
    check("sweep", found)
    for key, value in (("exit_code", 0), ("status", "DONE"), ("undeclared", 1), ("error", None)):
        assert fault("sweep", {**found, key: value}), key


def test_a_wrong_key_deep_in_a_report_is_found(bundle: Path) -> None:
    found = tokexport("verify", bundle, "--against", PLAIN, "--json").json
    assert not fault("verify", found)
    found["stages"][0]["comparisons"]["logits"]["max_abs"] = "0"
    assert "max_abs" in fault("verify", found)


def test_a_manifest_says_what_its_artifact_needs(bundle: Path) -> None:
    requires = json.loads((bundle / "manifest.json").read_text())["requires"]
    assert (requires["runtime"], requires["at_least"]) == ("onnxruntime", "1.22")
    assert requires["why"] == "it has IR version 10 and opset 20"
    assert requires["architectures"] == requires["systems"] == requires["instruction_sets"] == []


def test_doctor_says_whether_a_bundle_runs_here(tmp_path: Path) -> None:
    answer = tokexport("doctor", BUNDLES / "kernels_ort", "--json")
    assert answer.code == 0, answer
    found = answer.json["bundle"]
    assert (found["runs"], [need["name"] for need in found["needs"]]) == (True, ["runtime"])
    assert "can run" in tokexport("doctor", BUNDLES / "kernels_ort").stdout
    bundle = shutil.copytree(BUNDLES / "kernels_ort", tmp_path / "a [red]bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    why = "[bold]why"
    manifest["requires"] = {"runtime": "onnxruntime", "at_least": "99.0", "why": why}
    manifest["requires"] |= {"systems": ["plan9"]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "model.onnx").unlink()  # it is not asked
    answer = tokexport("doctor", bundle, "--json")
    assert answer.code == 1, answer
    assert answer.json["error"]["what"] == "This machine cannot run the bundle: system, runtime."
    assert [need["met"] for need in answer.json["bundle"]["needs"]] == [False, False]
    answer = tokexport("doctor", bundle)
    assert answer.code == 1, answer
    assert why in answer.stdout
    for said in ("plan9", "pip install 'onnxruntime>=99.0'"):
        assert said in answer.said
    manifest["runtime"]["flavour"] = "tensorflow"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    answer = tokexport("doctor", bundle, "--json")
    assert (answer.code, "'tensorflow'" in answer.said) == (5, True), answer
    assert tokexport("doctor", tmp_path / "nowhere", "--json").code == 5
