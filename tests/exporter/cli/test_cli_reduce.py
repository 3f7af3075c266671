"""What ``tokexport reduce`` writes, what it says, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import MODELS, Answer, compile_model, refusal, tokexport
from models.cli_models import plain_vit

import tokexport as package
from tokexport.runtimes.bundle.manifest_reader import read_manifest

SOURCE = f"{MODELS}:plain_vit"
#: Runs a program in a process that cannot import the package or any library but torch.
ALONE = """
import sys

for name in ("tokexport", "timm", "torchvision", "transformers", "onnx", "onnxscript"):
    sys.modules[name] = None  # its import fails

try:
    import tokexport
except ImportError:
    pass
else:
    raise SystemExit("tokexport could be imported")
import torch
program = torch.export.load(sys.argv[1])
x = torch.load(sys.argv[2])
found = [{k: v.detach() for k, v in program.module()(x[:n]).items()} for n in (1, 3, 5)]
names = {node.target.namespace for node in program.graph.nodes
         if isinstance(node.target, torch._ops.OpOverload)}
torch.save({"found": found, "names": sorted(names), "keys": sorted(program.state_dict)},
           sys.argv[3])
"""


def reduce(recipe: str, output: Path, *arguments: object, source: str = SOURCE) -> Answer:
    return tokexport("reduce", source, "--reduce", recipe, "--output", output, *arguments)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A reduced model with its answer, judged on five labelled samples."""
    folder = tmp_path_factory.mktemp("reduced")
    random = np.random.default_rng(0)
    x = random.standard_normal((5, 3, 24, 24)) + 2 * random.standard_normal((5, 3, 1, 1))
    np.savez(folder / "data.npz", x=x.astype(np.float32), labels=np.array([0, 1, 2, 3, 4]))
    answer = reduce("tome:r=4", folder / "model.pt2", "--inputs", folder / "data.npz", "--json")
    assert answer.code == 0, answer
    return folder / "model.pt2", answer


def test_torch_alone_loads_it_and_runs_any_batch(
    written: tuple[Path, Answer], tmp_path: Path
) -> None:
    x = torch.from_numpy(np.load(written[0].parent / "data.npz")["x"])
    torch.save(x, tmp_path / "x.pt")
    arguments = [str(written[0]), str(tmp_path / "x.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = torch.load(tmp_path / "found.pt")
    assert answer["names"] == ["aten"]
    assert "blocks.0.qkv.weight" in answer["keys"]
    model, example = plain_vit()
    reduced = package.reduce(model, "tome:r=4", example)
    for count, found in zip((1, 3, 5), answer["found"], strict=True):
        with torch.no_grad():
            wanted = reduced(x[:count])
        for name in ("logits", "tokens"):
            torch.testing.assert_close(found[name], wanted[name], rtol=0.0, atol=1e-5)
        assert found["tokens"].shape == (count, 25, 16)


def test_json_says_what_was_done_and_what_it_costs(written: tuple[Path, Answer]) -> None:
    found = written[1].json
    assert (found["exit_code"], found["error"]) == (0, None)
    assert found["output"] == str(written[0])
    assert found["samples"] == 5
    reduction = found["reduction"]
    assert reduction["recipe"] == "tome:r=4"
    assert reduction["tokens"] == [37, 33, 29, 25]
    assert reduction["special_tokens"] == 1
    assert reduction["blocks"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert reduction["surgery_error"] < 1e-5
    assert reduction["agreement"]["tokens"] is None  # fewer of them
    x = torch.from_numpy(np.load(written[0].parent / "data.npz")["x"])
    model, example = plain_vit()
    with torch.no_grad():
        before = model(x)["logits"]
        after = package.reduce(model, "tome:r=4", example)(x)["logits"]
    agreement = reduction["agreement"]["logits"]
    share = float((before.argmax(1) == after.argmax(1)).double().mean())
    assert agreement["top1"] == pytest.approx(share)
    cosine = torch.nn.functional.cosine_similarity(before, after).mean()
    assert agreement["cosine"] == pytest.approx(float(cosine), abs=1e-5)
    p, q = before.log_softmax(1), after.log_softmax(1)
    assert agreement["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-2)
    labels = torch.arange(5)
    for name, logits in (("accuracy_unreduced", before), ("accuracy_reduced", after)):
        share = float((logits.argmax(1) == labels).double().mean())
        assert reduction[name] == pytest.approx(share)
    assert len(set(before.argmax(1).tolist())) > 1


def test_what_was_written_compiles(written: tuple[Path, Answer], tmp_path: Path) -> None:
    answer = compile_model(written[0], tmp_path / "out", "--json")
    assert answer.code == 0, answer
    assert answer.json["recognised"]["bipartite_match"] == 3
    assert [spec.name for spec in read_manifest(tmp_path / "out").inputs] == ["x"]
    assert read_manifest(tmp_path / "out").inputs[0].shape == (1, 3, 24, 24)


def test_restored_tokens_stand_where_they_stood(tmp_path: Path) -> None:
    answer = reduce("tome:r=4,layers=[1]", tmp_path / "model.pt2", "--restore")
    assert answer.code == 0, answer
    assert "tome:r=4,layers=[1],restore=true in the 3 blocks of 'blocks'" in answer.said
    assert "37 → 37 33 33 tokens behind each block" in answer.said
    assert "tokens: top-1" in answer.said
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = torch.export.load(tmp_path / "model.pt2").module()(x)["tokens"]
    assert tokens.shape == (2, 37, 16)
    distinct = [len({tuple(row.tolist()) for row in image}) for image in tokens]
    assert distinct == [33, 33]


def test_an_earlier_file_stays_without_force(tmp_path: Path) -> None:
    output = tmp_path / "model.pt2"
    output.write_bytes(b"mine")
    refusal(reduce("tome", output), 2, tmp_path, "is there already", "--force")
    assert output.read_bytes() == b"mine"
    assert reduce("tome", output, "--force").code == 0
    assert output.read_bytes() != b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize(
    ("factory", "recipe", "code", "parts"),
    [
        ("plain_vit", "tomato:r=4", 2, ("no method 'tomato'", "tome, ")),
        ("plain_vit", "tome:rr=4", 2, ("has no option 'rr'", "It has layers, r, inflection")),
        ("plain_vit", "tome:r=many", 2, ("Option 'r' of the recipe is", "a whole number")),
        ("plain_vit", "nowhere.toml", 2, ("The recipe does not exist",)),
        ("plain_vit", "tome:blocks=layers", 2, ("no module 'layers'",)),
        ("with_inputs", "tome", 3, ("no repeated blocks",)),
        ("plain_without_class_token", "evit", 3, ("reads the attention of a class token",)),
        ("plain_of_one_batch", "tome", 3, ("cannot be exported for any batch",)),
        ("plain_of_two_faces", "tome", 1, ("with nothing reduced, give other outputs",)),
    ],
)
def test_what_cannot_be_reduced(
    factory: str, recipe: str, code: int, parts: tuple[str, ...], tmp_path: Path
) -> None:
    answer = reduce(recipe, tmp_path / "model.pt2", source=f"{MODELS}:{factory}")
    refusal(answer, code, tmp_path, *parts)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    answer = reduce("tome", tmp_path / "model.pt")
    refusal(answer, 2, tmp_path, "--output model.pt2")


def test_methods_are_listed_with_options_and_papers() -> None:
    from tokexport.graph_passes.reduction.methods.known import METHODS

    found = tokexport("methods", "--json").json
    assert (found["exit_code"], found["error"]) == (0, None)
    assert [method["name"] for method in found["methods"]] == [kind.name for kind in METHODS]
    for method in found["methods"]:
        names = [option["name"] for option in method["options"]]
        assert method["strength"] in names, method
        assert method["source"], method
        assert method["summary"], method
        assert all(option["help"] for option in method["options"]), method
    assert set(found["placement"]) == {"protect", "blocks", "restore", "weights"}
    shown = tokexport("methods")
    assert shown.code == 0
    assert "Bolya et al. 2023" in shown.stdout
    assert "Every recipe also takes" in shown.stdout
