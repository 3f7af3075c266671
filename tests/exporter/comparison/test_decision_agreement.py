"""Each decision of a bundle's own artifact is compared with eager's, and what rounding explains."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.cli import MODELS, tokexport
from helpers.near_ties import CHANNELS, TOKENS, KeepsTheBest, Nudge, samples
from models.cli_models import plain_vit

import tokexport as package
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.comparison.against import AgainstSource, verify_against
from tokexport.exporter.comparison.own_replay import CannotReplayError
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.graph_passes import pipelines

ZEROS = torch.zeros(1, TOKENS, CHANNELS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reduced ViT for ONNX Runtime in fp32 and int8, and for OpenVINO in bf16."""
    folder = tmp_path_factory.mktemp("made")
    x = np.random.default_rng(0).standard_normal((3, 3, 24, 24)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    for target, precision in (("ort", "fp32"), ("ort", "int8"), ("openvino", "bf16")):
        package.compile(
            *(*plain_vit(), target),
            **{"output": folder / f"{target}-{precision}", "precision": precision},
            **{"reduce": "tome:r=4", "inputs": folder / "x.npz", "timed": False},
        )
    return folder


def against(bundle: Path) -> AgainstSource:
    return verify_against(bundle, source_in_memory(*plain_vit()))


@pytest.mark.parametrize("name", ["ort-fp32", "ort-int8", "openvino-bf16"])
def test_every_decision_of_the_own_artifact_is_shown(made: Path, name: str) -> None:
    found = against(made / name)
    assert found.replayed_anew == ""
    assert [one.operator for one in found.decisions] == ["tokexport.bipartite_match"] * 3
    assert {one.line.partition(":")[0].rpartition("/")[2] for one in found.decisions} == {
        "cli_models.py"
    }
    assert all(one.positions for one in found.decisions)
    assert all(one.explained for one in found.decisions)
    share = found.decision_agreement
    assert share is not None
    assert found.to_json()["decision_agreement"] == share
    if name == "ort-fp32":
        assert share == 1.0
        assert max(one.score_error for one in found.decisions) < 1e-5
    else:  # what a reduced precision decides otherwise is counted
        assert 0.5 < share <= 1.0
        assert max(one.score_error for one in found.decisions) > 1e-3


def test_compare_says_how_far_a_bundle_decides_as_its_source(made: Path) -> None:
    options = ("--reduce", "tome:r=4", "--json")
    found = tokexport("compare", f"{MODELS}:plain_vit", made / "ort-fp32", *options).json
    assert found["decision_agreement"] == 1.0
    narrow = tokexport("compare", made / "ort-int8", f"{MODELS}:plain_vit", *options).json
    assert 0.5 < narrow["decision_agreement"] <= 1.0
    alike = tokexport("compare", made / "ort-int8", made / "ort-fp32", "--json").json
    assert alike["decision_agreement"] is None


def test_a_match_on_other_channels_is_not_explained(made: Path, tmp_path: Path) -> None:
    """The kernel that matches, merges and normalises in one is taken apart to show it."""
    bundle = tmp_path / "bundle"
    (made / "ort-fp32").rename(bundle)
    try:
        before = (bundle / "model.onnx").read_bytes(), (bundle / "manifest.json").read_text()
        model = ir.load(bundle / "model.onnx")
        node = [one for one in model.graph if one.op_type == "cosine_merge_norm"][1]
        node.attributes["start"] = ir.AttrInt64s("start", [20])
        save_onnx(model, bundle / "model.onnx")
        _hash_anew(bundle, "model.onnx")
        found = against(bundle)
        (bundle / "model.onnx").write_bytes(before[0])
        (bundle / "manifest.json").write_text(before[1])
    finally:
        bundle.rename(made / "ort-fp32")
    first, second, third = found.decisions
    assert (first.explained, first.agreeing, first.flips) == (True, 1.0, 0)
    assert not second.explained
    assert second.flips > 0
    assert second.margin > 1e-2
    assert (third.explained, third.flips) == (True, 0)  # with eager's decisions before it
    assert third.agreeing < 1.0
    assert found.verdict == "wrong"


def _hash_anew(bundle: Path, name: str) -> None:
    """Writes the hash of a changed file into the manifest, as if it had been compiled so."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


class InBf16(ir.passes.InPlacePass):
    """Rounds the scores of a top-k to bf16."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Puts a cast there and back in front of it."""
        (top_k,) = (node for node in model.graph if node.op_type == "TopK")
        scores = top_k.inputs[0]
        for name, dtype in (("narrow", ir.DataType.BFLOAT16), ("rounded", ir.DataType.FLOAT)):
            cast = ir.node("Cast", [scores], attributes={"to": dtype})
            scores = cast.outputs[0]
            scores.name = name
            model.graph.insert_before(top_k, [cast])
        top_k.replace_input_with(0, scores)
        return ir.passes.PassResult(model, modified=True)


@pytest.fixture(scope="module")
def nudged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose build alone adds to the scores; the source is lowered without that."""
    folder = tmp_path_factory.mktemp("nudged")
    for name, gaps in (("wide", [0.5]), ("close", [2e-7])):
        np.savez(folder / f"{name}.npz", x=samples(*gaps))
    with pytest.MonkeyPatch.context() as patch:
        passes = (*pipelines.LOWER["openvino"], Nudge(1e-6))
        patch.setattr(pipelines, "LOWER", {**pipelines.LOWER, "openvino": passes})
        options = {"inputs": folder / "wide.npz", "timed": False}
        package.compile(KeepsTheBest(), ZEROS, "openvino", output=folder / "out", **options)
    return folder


def test_a_tie_that_the_build_of_the_bundle_alone_turns_is_excused(nudged: Path) -> None:
    source = source_in_memory(KeepsTheBest(), ZEROS)
    found = verify_against(nudged / "out", source, inputs=nudged / "close.npz")
    (decision,) = found.decisions
    assert (found.verdict, found.ties, found.replayed_anew) == ("ties only", 1, "")
    assert (decision.flips, decision.positions) == (1, 3)
    assert decision.explained
    assert 0 < decision.margin < 1e-5
    assert decision.agreeing == pytest.approx(2 / 3)
    assert found.decision_agreement == decision.agreeing


def test_a_product_in_bf16_before_the_choice_is_not_excused(tmp_path: Path) -> None:
    """Scores that are a thousandth apart are the same in bf16, and no rounding of fp32 is that."""
    for name, gaps in (("wide", [0.5]), ("close", [1e-3])):
        np.savez(tmp_path / f"{name}.npz", x=samples(*gaps))
    with pytest.MonkeyPatch.context() as patch:
        passes = (*pipelines.LOWER["openvino"], InBf16())
        patch.setattr(pipelines, "LOWER", {**pipelines.LOWER, "openvino": passes})
        options = {"inputs": tmp_path / "wide.npz", "timed": False}
        package.compile(KeepsTheBest(), ZEROS, "openvino", output=tmp_path / "out", **options)
    source = source_in_memory(KeepsTheBest(), ZEROS)
    found = verify_against(tmp_path / "out", source, inputs=tmp_path / "close.npz")
    (decision,) = found.decisions
    assert found.verdict == "wrong"
    assert (decision.flips, decision.explained) == (1, False)
    assert decision.score_error > 1e-4


def test_an_artifact_that_shows_no_decision_is_replayed_anew(
    nudged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise CannotReplayError("it does not show 'getitem_1', a decision")

    monkeypatch.setattr("tokexport.exporter.comparison.bundle_replay.own_replay", refuse)
    source = source_in_memory(KeepsTheBest(), ZEROS)
    found = verify_against(nudged / "out", source, inputs=nudged / "close.npz")
    assert (found.decisions, found.decision_agreement) == ((), None)
    assert found.replayed_anew == "it does not show 'getitem_1', a decision"
    assert found.verdict == "wrong"  # the one that is built anew turns no tie
