"""Bundles are held to a lock: what was planted is named, and an honest bundle is unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.cli import MODELS, TESTS, Answer, compile_model, refusal, tokexport
from helpers.near_ties import CHANNELS, TOKENS, KeepsTheBest, Nudge, samples
from models.cli_models import plain_vit
from onnx import numpy_helper

import tokexport as package
from tokexport.graph_passes import pipelines
from tokexport.runtimes.bundle.bundle_files import hash_file

SOURCE = f"{MODELS}:plain_vit"
REDUCED = ("--reduce", "tome:r=4")
Plant = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one model with their lock, and samples whose labels it meets."""
    folder = tmp_path_factory.mktemp("made")
    for target, precision, options in (
        ("ort", "fp32", (*REDUCED, "--batch", "8")),
        ("openvino", "fp32", REDUCED),
        ("openvino", "bf16", REDUCED),
        ("ort", "int8", ()),  # random weights make near-ties of its steps
    ):
        output = folder / f"{target}-{precision}"
        answer = compile_model(SOURCE, output, "--precision", precision, *options, target=target)
        assert answer.code == 0, answer
    x = np.random.default_rng(3).standard_normal((24, 3, 24, 24)).astype(np.float32)
    with torch.no_grad():
        labels = plain_vit()[0](torch.from_numpy(x))["logits"].argmax(-1).numpy()
    np.savez(folder / "labelled.npz", x=x, labels=labels)
    answer = lock(folder, "--inputs", folder / "labelled.npz", *sorted(folder.glob("*-*")))
    assert answer.code == 0, answer
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def lock(folder: Path, *arguments: object) -> Answer:
    return tokexport("lock", *arguments, "--file", folder / "parity.lock.json", "--json")


def check(folder: Path, *arguments: object) -> dict[str, Any]:
    """What check finds, with its exit code held to the outcome."""
    answer = tokexport("check", "--lock", folder / "parity.lock.json", *arguments, "--json")
    found = answer.json
    fails = found["outcome"] == "break" or ("--strict" in arguments and found["outcome"] == "drift")
    assert answer.code == found["exit_code"] == int(fails), answer
    return found


def said(found: dict[str, Any], kind: str = "break") -> dict[str, str]:
    """The sentences of all findings of a kind, by what differs."""
    return {
        one["what"]: one["sentence"]
        for bundle in found["bundles"]
        for one in bundle["findings"]
        if one["kind"] == kind
    }


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest of a bundle."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def plant(bundle: Path, change: Plant) -> None:
    """Changes the artifact of a bundle, as a wrong compiler would have written it."""
    model = onnx.load(bundle / "model.onnx")
    change(model)
    onnx.save(model, bundle / "model.onnx")
    digest = hash_file(bundle / "model.onnx")
    edit(bundle, lambda manifest: manifest["files"].update({"model.onnx": digest}))


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (one for one in model.graph.initializer if one.name == name)
    return found


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = constant(model, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def test_bundles_are_what_was_locked(made: Path) -> None:
    for threads in ("1", "2"):
        found = check(made, "--threads", threads)
        assert found["outcome"] == "unchanged", found
        assert [one["name"] for one in found["bundles"]] == [
            *("openvino-bf16", "openvino-fp32", "ort-fp32", "ort-int8")
        ]
    ran = found["bundles"][2]["measured"]
    assert ran["outputs"]["logits"]["verdict"] in ("identical", "arithmetic")
    assert ran["labelled"]["accuracy"] > 0.9
    assert ran["kernel_calls"] > 10


def test_findings_say_which_artifact_of_several_they_are_of(tmp_path: Path) -> None:
    bundle = tmp_path / "ladder"
    options = {"batch": (1, 3), "timed": False, "page": False}
    package.compile(torch.nn.Linear(8, 5), torch.randn(1, 8), "ort", output=bundle, **options)
    assert lock(tmp_path, bundle).code == 0
    assert check(tmp_path)["outcome"] == "unchanged"

    with np.load(bundle / "reference.batch3.npz") as found:
        arrays = {name: found[name] for name in found.files}
    arrays["outputs/output"] += 1
    np.savez(bundle / "reference.batch3.npz", **arrays)
    digest = hash_file(bundle / "reference.batch3.npz")
    edit(bundle, lambda manifest: manifest["files"].update({"reference.batch3.npz": digest}))
    edit(bundle, lambda manifest: manifest["gates"]["output"].update(local_tolerance=1.0))
    breaks = said(check(tmp_path))
    assert [*breaks] == ["tolerance of 'output at 1 sample'", "output 'output at 3 samples'"]


def test_locking_again_writes_the_same_file(copy: Path) -> None:
    before = (copy / "parity.lock.json").read_bytes()
    for given in ((), ("--inputs", copy / "labelled.npz")):  # those of the lock without any
        answer = lock(copy, *given, copy / "ort-fp32")
        assert (answer.code, answer.json["changes"]) == (0, [])
    assert (copy / "parity.lock.json").read_bytes() == before


def shuffle(model: onnx.ModelProto) -> None:
    """The class token of another place is read."""
    (node,) = (one for one in model.graph.node if one.op_type == "Gather")
    changed(model, node.input[1], lambda index: index + 1)


def drop_bias(model: onnx.ModelProto) -> None:
    changed(model, "model.blocks.1.mlp.2.bias", np.zeros_like)


def move_mean(model: onnx.ModelProto) -> None:
    changed(model, "model.patches.bias", lambda bias: bias + 0.01)


def swap_classes(model: onnx.ModelProto) -> None:
    changed(model, "model.head.weight", lambda weight: weight[[1, 0, 2, 3, 4]])


def forget_sizes(model: onnx.ModelProto) -> None:
    """The last attention takes every token for one patch."""
    (node,) = (one for one in model.graph.node if one.name == "node_view_6/0/0")
    ones = np.ones((8, 29, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ones, "ones"))
    node.input[3] = "ones"


def round_product(model: onnx.ModelProto) -> None:
    """The keys that tokens are matched by are rounded to bf16 first, in every block."""
    types = (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT)
    for node in [one for one in model.graph.node if one.op_type == "cosine_merge_norm"]:
        for name, kind in zip(("half", "rounded"), types, strict=True):
            made = f"{node.name}.{name}"
            cast = onnx.helper.make_node("Cast", [node.input[0]], [made], to=kind)
            model.graph.node.insert([*model.graph.node].index(node), cast)
            node.input[0] = made


@pytest.mark.parametrize(
    ("fault", "output"),
    [
        (shuffle, "logits"),
        (drop_bias, "tokens"),
        (move_mean, "tokens"),
        (swap_classes, "logits"),
        (forget_sizes, "tokens"),
        (round_product, "tokens"),
    ],
)
def test_a_fault_in_an_artifact_breaks(copy: Path, fault: Plant, output: str) -> None:
    plant(copy / "ort-fp32", fault)
    found = check(copy, copy / "ort-fp32", "--inputs", copy / "labelled.npz")
    breaks = said(found)
    assert f"output '{output}'" in breaks, found
    assert "is allowed there" in breaks[f"output '{output}'"]
    assert "artifact" in said(found, "drift")


def test_an_artifact_that_is_altered_by_hand_breaks(copy: Path) -> None:
    with (copy / "ort-fp32" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "truncated or altered" in said(check(copy, copy / "ort-fp32"))["bundle"]


def test_a_bundle_that_is_gone_breaks_and_leaves_the_lock_with_update(copy: Path) -> None:
    shutil.rmtree(copy / "ort-int8")
    assert said(check(copy))["bundle"].startswith("There is no bundle.")
    update = ("check", "--lock", copy / "parity.lock.json", "--update")
    refused = tokexport(*update)
    assert refused.code == 1
    assert "--update --remove" in refused.stderr
    answer = tokexport(*update, "--remove", "--json")
    assert answer.code == 0, answer
    assert all(line.startswith("- ort-int8") for line in answer.json["changes"])
    assert check(copy)["outcome"] == "unchanged"


def test_a_stale_bundle_breaks(made: Path, tmp_path: Path) -> None:
    """One weight of the source moved by a thousandth."""
    model = plain_vit()[0]
    weights = model.state_dict()
    weights["blocks.1.proj.weight"].view(-1)[0] += 1e-3
    torch.save(weights, tmp_path / "moved.pt")
    bundle = tmp_path / "openvino-fp32"
    answer = compile_model(
        *(tmp_path / "moved.pt", bundle, "--builder", SOURCE, *REDUCED), target="openvino"
    )
    assert answer.code == 0, answer
    shutil.copy(made / "parity.lock.json", tmp_path)
    shutil.copy(made / "labelled.npz", tmp_path)
    assert said(check(tmp_path, bundle))["weights"] == (
        "The bundle was compiled from other weights."
    )
    refused = tokexport("lock", bundle, "--file", tmp_path / "parity.lock.json")
    refusal(refused, 2, tmp_path, "The lock has another bundle openvino-fp32: weights differ")


def test_a_bundle_is_held_to_its_source_too(made: Path, tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(
        "from models.cli_models import PlainVit, plain_vit\n"
        "class GivesMore(PlainVit):\n"
        "    def forward(self, x):\n"
        "        found = super().forward(x)\n"
        "        return {**found, 'twice': found['logits'] * 2}\n"
        "def build():\n"
        "    return GivesMore().eval(), plain_vit()[1]\n"
    )
    for source, outcome in ((SOURCE, "unchanged"), ("more:build", "break")):
        folders = ("--code-path", TESTS, "--code-path", tmp_path)
        found = check(made, made / "openvino-bf16", "--source", source, *folders)
        assert found["outcome"] == outcome, found
    assert "gives something else than the bundle" in said(found)["source"]


def mean(manifest: dict[str, Any]) -> None:
    manifest["preprocessing"] = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def precision(manifest: dict[str, Any]) -> None:
    manifest["precision"] = "bf16"


def tolerance(manifest: dict[str, Any]) -> None:
    manifest["gates"]["logits"]["local_tolerance"] = 5e-2


def spread(manifest: dict[str, Any]) -> None:
    for gate in manifest["gates"].values():
        gate["spread"] *= 10


def recipe(manifest: dict[str, Any]) -> None:
    manifest["reduction"]["recipe"] = "tome:r=5"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (mean, "preprocessing"),
        (precision, "precision"),
        (tolerance, "tolerance of 'logits'"),
        (recipe, "token reduction"),
    ],
)
def test_another_bundle_breaks(
    copy: Path, change: Callable[[dict[str, Any]], None], what: str
) -> None:
    edit(copy / "openvino-fp32", change)
    assert what in said(check(copy, copy / "openvino-fp32"))


def test_two_outputs_that_changed_places_break(copy: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        manifest["outputs"].reverse()

    edit(copy / "ort-int8", swap)
    breaks = said(check(copy, copy / "ort-int8"))
    assert "outputs" in breaks or "does not describe the artifact" in breaks["bundle"]


def test_labels_shifted_by_one_break(copy: Path) -> None:
    with np.load(copy / "labelled.npz") as arrays:
        np.savez(copy / "labelled.npz", x=arrays["x"], labels=(arrays["labels"] + 1) % 5)
    breaks = said(check(copy, copy / "ort-fp32"))
    assert {*breaks} == {"labels"}
    assert "of them 0.00% are met" in breaks["labels"]


def test_other_samples_than_the_locked_ones_break(copy: Path) -> None:
    with np.load(copy / "labelled.npz") as arrays:
        np.savez(copy / "labelled.npz", x=arrays["x"] * 1.01, labels=arrays["labels"])
    assert {*said(check(copy, copy / "ort-fp32"))} == {"labelled samples"}


def test_another_runtime_drifts_and_is_locked_beside(copy: Path) -> None:
    """The lock was made with an older runtime, in which the error was smaller."""
    path = copy / "parity.lock.json"
    data = json.loads(path.read_text())
    (ran,) = data["bundles"]["ort-fp32"]["measured"]
    ran["environment"]["version"] = "1.31.0"
    for one in ran["outputs"].values():
        one["share_of_allowed"], one["rms"] = 1e-4, 1e-9
    path.write_text(json.dumps(data))
    found = check(copy, copy / "ort-fp32")
    drifts = said(found, "drift")
    assert (found["outcome"], said(found)) == ("drift", {})
    assert "nearest" in drifts["environment"]
    assert check(copy, copy / "ort-fp32", "--strict")["exit_code"] == 1
    answer = tokexport("check", "--lock", path, copy / "ort-fp32", "--update")
    assert answer.code == 0, answer
    assert "+ ort-fp32.measured[onnxruntime-cpu 1.32.0" in answer.stdout.replace("\n", "")
    assert check(copy, copy / "ort-fp32")["outcome"] == "unchanged"
    versions = json.loads(path.read_text())["bundles"]["ort-fp32"]["measured"]
    assert [one["environment"]["version"] for one in versions] == ["1.31.0", "1.32.0"]


def test_native_kernels_that_are_off_drift(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEXPORT_NATIVE", "off")
    drifts = said(check(copy, copy / "ort-fp32"), "drift")
    assert {"environment", "native kernels"} <= {*drifts}


def test_a_wrong_bundle_cannot_be_locked(copy: Path) -> None:
    plant(copy / "ort-fp32", drop_bias)
    for arguments in (
        ("lock", copy / "ort-fp32", "--file", copy / "new.lock.json"),
        ("check", copy / "ort-fp32", "--lock", copy / "parity.lock.json", "--update"),
    ):
        answer = tokexport(*arguments)
        assert answer.code == 1, answer
        assert "A bundle that is wrong cannot be locked" in answer.stderr
    assert not (copy / "new.lock.json").exists()
    assert check(copy, copy / "openvino-fp32")["outcome"] == "unchanged"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "The lock does not exist."),
        ("{", "The lock cannot be read"),
        ("{}", "its kind is not 'tokexport parity lock'"),
        ('{"kind": "tokexport parity lock", "schema_version": 2}', "has schema version 2"),
        (
            '{"kind": "tokexport parity lock", "schema_version": 1, "bundles": {"a": {}}}',
            "bundles.a.facts is missing",
        ),
    ],
)
def test_a_file_that_is_no_lock_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "parity.lock.json"
    if text is not None:
        path.write_text(text)
    refusal(tokexport("check", "--lock", path), 2, tmp_path, message)


def test_a_wider_spread_is_a_wider_tolerance(copy: Path) -> None:
    edit(copy / "ort-int8", spread)
    assert "tolerance of 'logits'" in said(check(copy, copy / "ort-int8"))


def test_a_lock_without_bundles_is_no_pass(tmp_path: Path) -> None:
    path = tmp_path / "parity.lock.json"
    path.write_text('{"kind": "tokexport parity lock", "schema_version": 1, "bundles": {}}')
    refusal(tokexport("check", "--lock", path), 2, tmp_path, "there is nothing to check")


def damaged_projection(locked: dict[str, Any]) -> None:
    locked["facts"]["reference"]["projections"]["logits"][0] = "x 1"


def damaged_figure(locked: dict[str, Any]) -> None:
    locked["measured"][0]["outputs"]["logits"]["max_abs"] = 10**400


def damaged_predictions(locked: dict[str, Any]) -> None:
    locked["measured"][0]["labelled"]["predictions"] = "1 2"


@pytest.mark.parametrize("damage", [damaged_projection, damaged_figure, damaged_predictions])
def test_a_damaged_lock_is_a_message(copy: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    facts(copy, "ort-fp32", damage)
    answer = tokexport("check", "--lock", copy / "parity.lock.json")
    assert answer.code == 2
    assert "The lock cannot be read" in answer.stderr


def far_off(locked: dict[str, Any]) -> None:
    for one in locked["measured"][0]["outputs"].values():
        one["rms"] /= 1e4


def test_an_error_that_grew_is_named_also_where_the_cosine_decides(copy: Path) -> None:
    facts(copy, "ort-int8", far_off)
    assert "error of 'logits'" in said(check(copy, copy / "ort-int8"), "drift")


def test_a_lock_is_not_written_while_speeds_are_compared(copy: Path) -> None:
    given = ("--lock", copy / "parity.lock.json", "--update", "--against", copy / "ort-fp32")
    assert tokexport("check", copy / "ort-fp32", *given).code == 2


def test_a_bundle_that_the_lock_lacks_is_refused(made: Path, tmp_path: Path) -> None:
    answer = tokexport("check", tmp_path / "else", "--lock", made / "parity.lock.json")
    refusal(answer, 2, tmp_path, "The lock has no bundle of the name 'else'", "tokexport lock")


def facts(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what the lock says that a bundle is."""
    path = folder / "parity.lock.json"
    data = json.loads(path.read_text())
    change(data["bundles"][name])
    path.write_text(json.dumps(data))


def moved_inputs(locked: dict[str, Any]) -> None:
    locked["facts"]["reference"]["inputs_sha256"] = "0" * 64


def older_torch(locked: dict[str, Any]) -> None:
    locked["facts"]["model"].update(torch="2.9.0", structure_sha256="0" * 64)


def moved_answers(locked: dict[str, Any]) -> None:
    rows = locked["facts"]["reference"]["projections"]["logits"]
    rows[:] = [" ".join(str(float(one) + 1) for one in row.split()) for row in rows]


def one_moved(locked: dict[str, Any]) -> None:
    rows = locked["facts"]["reference"]["projections"]["logits"]
    rows[0] = " ".join(str(float(one) + 1) for one in rows[0].split())


def no_model(locked: dict[str, Any]) -> None:
    locked["facts"]["model"] = None


def wide_layers(locked: dict[str, Any]) -> None:
    (ran,) = locked["measured"]
    ran["layer_precisions"] = ["u8"]


@pytest.mark.parametrize(
    ("changes", "outcome", "sentence"),
    [
        ((moved_inputs,), "drift", "it is the same model by its hashes"),
        ((moved_inputs, older_torch), "break", "nothing says that it is the same model"),
        ((moved_inputs, no_model), "break", "nothing says that it is the same model"),
        ((older_torch,), "drift", "its answers are the locked ones"),
        ((older_torch, moved_answers), "break", "and answers otherwise"),
        ((no_model,), "unchanged", ""),
        ((no_model, moved_answers), "break", "Eager answered otherwise on the same inputs"),
        ((one_moved,), "drift", "on some of the same inputs"),
        ((wide_layers,), "break", "computes some layers in another precision"),
    ],
)
def test_what_is_not_known_to_be_the_same_model_breaks(
    copy: Path,
    changes: tuple[Callable[[dict[str, Any]], None], ...],
    outcome: str,
    sentence: str,
) -> None:
    for change in changes:
        facts(copy, "openvino-fp32", change)
    found = check(copy, copy / "openvino-fp32")
    assert found["outcome"] == outcome, found
    sentences = " ".join([*said(found).values(), *said(found, "drift").values()])
    assert sentence in sentences


def test_a_lock_prints_no_line_of_its_own(copy: Path) -> None:
    """Texts of a lock come from whoever proposes a change, and a pipeline reads what is printed."""
    facts(copy, "openvino-fp32", lambda one: one["facts"].update(precision="x\n::error::\x1b[2J"))
    answer = tokexport("check", copy / "openvino-fp32", "--lock", copy / "parity.lock.json")
    assert answer.code == 1
    assert "\n::" not in answer.stdout + answer.stderr
    assert "\x1b[2J" not in answer.stdout + answer.stderr
    path = copy / "parity.lock.json"
    path.write_text(path.read_text().replace('"openvino-fp32"', '"a\\nb"'))
    assert "has blanks or characters" in tokexport("check", "--lock", path).stderr


def test_a_page_says_to_a_stranger_what_broke_and_what_to_do(copy: Path) -> None:
    plant(copy / "ort-fp32", drop_bias)
    edit(copy / "openvino-fp32", mean)
    page = copy / "check.html"
    check(copy, "--html", page)
    text = page.read_text()
    for said_there in (
        "BREAK",
        "Of 4 bundles, openvino-fp32, ort-fp32 are no longer what the team locked.",
        "What broke, and what to do",
        "ort-fp32: output &#39;tokens&#39;",
        "is allowed there.",
        "Do not ship it. Find the node that does it: tokexport bisect SOURCE BUNDLE.",
        "openvino-fp32: preprocessing",
        "Give the model the preprocessing that it was trained with.",
        "How accurate?",
    ):
        assert said_there in text, said_there
    assert "http" not in text
    check(copy, copy / "ort-int8", "--html", page)
    assert "1 bundle checked, and each is what the team locked." in page.read_text()


@pytest.mark.thorough
def test_an_engine_without_its_device_is_locked_by_what_it_is(tmp_path: Path) -> None:
    answer = compile_model(SOURCE, tmp_path / "engine", *REDUCED, target="trt")
    assert answer.code == 0, answer
    locked = lock(tmp_path, tmp_path / "engine").json["lock"]["bundles"]["engine"]
    assert locked["measured"] == []
    assert check(tmp_path)["outcome"] == "unchanged"
    edit(tmp_path / "engine", precision)
    assert {*said(check(tmp_path))} == {"precision"}


def test_a_tie_that_another_build_turns_breaks_until_the_source_excuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keeps.py").write_text(
        "import torch\n"
        "from helpers.near_ties import CHANNELS, TOKENS, KeepsTheBest\n"
        "def build():\n"
        "    return KeepsTheBest().eval(), torch.zeros(1, TOKENS, CHANNELS)\n"
    )
    zeros = torch.zeros(1, TOKENS, CHANNELS)
    nudged = {**pipelines.LOWER, "openvino": (*pipelines.LOWER["openvino"], Nudge(1e-6))}
    for name, apart, passes in (("keeps", 2e-7, pipelines.LOWER), ("nudged", 0.5, nudged)):
        np.savez(tmp_path / f"{name}.npz", x=samples(apart))
        with monkeypatch.context() as patch:
            patch.setattr(pipelines, "LOWER", passes)
            package.compile(
                *(KeepsTheBest(), zeros, "openvino"),
                **{"output": tmp_path / name, "inputs": tmp_path / f"{name}.npz", "timed": False},
            )
    bundle = tmp_path / "keeps"
    assert lock(tmp_path, bundle).code == 0
    for name in ("model.xml", "model.bin"):
        if (tmp_path / "nudged" / name).exists():
            shutil.copy(tmp_path / "nudged" / name, bundle / name)
            digest = hash_file(bundle / name)
            edit(bundle, lambda one, name=name, digest=digest: one["files"].update({name: digest}))
    assert "output 'output'" in said(check(tmp_path))
    places = ("--code-path", tmp_path, "--code-path", TESTS)
    found = check(tmp_path, "--source", "keeps:build", *places)
    assert (found["outcome"], said(found)) == ("drift", {})
    assert "verdict of 'output'" in said(found, "drift")
    ran = found["bundles"][0]["measured"]
    assert (ran["source"]["verdict"], ran["source"]["ties"]) == ("ties only", 1)
