"""Every example runs as its reader would run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from digits_vit import DigitsViT, build, merge_alike
from helpers.torchvision_ops import child_environment
from PIL import Image
from safetensors.torch import load_file, save_file

import tokexport
from tokexport.runtimes.pictures import classify

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(*arguments: str | Path, cwd: Path) -> str:
    """Runs a program with this Python, warnings being errors; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo that was trained for a moment only, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(EXAMPLES / "digits_demo.py", "--epochs", "4", cwd=folder)


def test_the_demo_trains_and_compiles(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    output = folder / "demo-output"
    assert {path.name for path in output.iterdir()} == {
        "model.pt",
        "weights.pt",
        "test.npz",
        "model-ort",
    }
    report = json.loads((output / "model-ort" / "report.json").read_text())
    accuracy = report["accuracy"]
    assert report["status"] == "PASSED"
    assert accuracy["samples"] == 360
    assert accuracy["after"] == accuracy["before"] > 0.3
    assert f"Test accuracy in PyTorch: {accuracy['before']:.2%}" in printed
    assert "$ tokexport compile demo-output/model.pt --trust-pickle --code-path" in printed
    assert "demo-output/model-ort" in printed.splitlines()[-1]
    # every merge was found, and none was left to element-wise gathers
    assert report["recognised"] == {
        "bipartite_match": 3,
        "merge_tokens": 6,
        "sized_attention": 5,
    }
    assert report["token_schedule"] == [17, 17, 14, 11, 8]


@pytest.mark.thorough
def test_the_demo_can_be_run_for_another_target(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    arguments = ("--epochs", "4", "--target", "openvino", "--output", folder / "another")
    printed = run(EXAMPLES / "digits_demo.py", *arguments, cwd=folder)
    report = json.loads((folder / "another" / "model-openvino" / "report.json").read_text())
    assert report["status"] == "PASSED"
    assert " --force" in printed  # so that the demo can be run again and again


def test_run_bundle(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    output = folder / "demo-output"
    printed = run(EXAMPLES / "run_bundle.py", output / "model-ort", output / "test.npz", cwd=folder)
    right = json.loads((output / "model-ort" / "report.json").read_text())["accuracy"]["after"]
    assert printed == f"360 samples on onnxruntime-cpu: {right:.2%} right\n"


def test_classify_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    (tmp_path / "names.txt").write_text("crane\nibis\ncrane\nheron\n")
    for name, colour in {"red.png": (250, 9, 9), "blue.png": (9, 9, 250)}.items():
        Image.new("RGB", (12, 9), colour).save(tmp_path / name)
    tokexport.compile(
        *(model, torch.rand(1, 3, 8, 8), "ort"),
        output=tmp_path / "bundle",
        labels=tmp_path / "names.txt",
        preprocess="size=8,mean=half",
        timed=False,
    )
    wanted = ""
    with tokexport.runtimes.load(tmp_path / "bundle") as runner:
        for name in ("red.png", "blue.png"):
            (one,) = classify(runner, [tmp_path / name], top=3)
            wanted += f"{name} \n"
            wanted += "".join(f"  {found.score:.1%}  {found.label}\n" for found in one.classes)
    arguments = ("bundle", "red.png", "blue.png")
    assert run(EXAMPLES / "classify_pictures.py", *arguments, cwd=tmp_path) == wanted


@pytest.mark.thorough
def test_the_weights_compile_through_the_builder(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    output = folder / "demo-output"
    command = Path(sys.executable).with_name("tokexport")
    arguments = ("compile", "demo-output/weights.pt", "--builder", "digits_vit:build")
    options = ("--code-path", EXAMPLES, "--inputs", output / "test.npz", "--target", "ort")
    run(command, *arguments, *options, "--output", "weights-ort", cwd=folder)
    found = json.loads((folder / "weights-ort" / "report.json").read_text())
    of_the_module = json.loads((output / "model-ort" / "report.json").read_text())
    assert found["accuracy"] == of_the_module["accuracy"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the example that is a repository of its own, its model compiled."""
    folder = tmp_path_factory.mktemp("repository")
    origin = shutil.copytree(
        EXAMPLES / "parity_in_ci",
        folder / "origin",
        ignore=shutil.ignore_patterns("bundles", "__pycache__"),
    )
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    for arguments in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "A model")):
        subprocess.run(["git", *arguments], cwd=origin, check=True)
    subprocess.run(["git", "clone", "-q", "origin", "clone"], cwd=folder, check=True)
    shell("./compile.sh", folder / "clone", TOKEXPORT_TIMING_SECONDS="0")
    return folder / "clone"


def shell(step: str, folder: Path, code: int = 0, **variables: str) -> str:
    """Runs a step of a pipeline, with the command on its path; returns what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step],
        cwd=folder,
        env={**child_environment(), "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_pipelines_of_the_repository_pass(repository: Path) -> None:
    """Their steps but the installation: what is tested is this checkout."""
    workflow = yaml.safe_load((repository / ".github/workflows/parity.yml").read_text())
    steps = [one["run"] for one in workflow["jobs"]["parity"]["steps"] if "run" in one]
    job = yaml.safe_load((repository / ".gitlab-ci.yml").read_text())["parity"]
    assert steps == job["script"]
    assert steps[0].endswith("&& ./compile.sh")
    summary = repository / "summary.md"
    for step in steps[1:]:
        shell(step, repository, GITHUB_STEP_SUMMARY=str(summary), PYTEST_ADDOPTS="-q")
    assert "### Accuracy" in summary.read_text()
    assert ElementTree.parse(repository / job["artifacts"]["reports"]["junit"]) is not None


def test_the_lock_of_the_repository_is_collected(repository: Path) -> None:
    printed = shell("pytest -v parity.lock.json", repository)
    assert "bundles/vit-ort[ort-fp32] PASSED" in printed
    assert "bundles/vit-openvino[openvino-fp32] PASSED" in printed


def test_other_weights_break_the_lock_of_the_repository(repository: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(repository, tmp_path / "changed")
    weights = load_file(changed / "weights.safetensors")
    weights["head.weight"][0, 0] += 1e-3
    save_file(weights, changed / "weights.safetensors")
    shell(
        "tokexport compile weights.safetensors --builder model:build --code-path . --target ort "
        "--reduce tome:r=3 --inputs digits.npz --samples 64 --batch 8 --output bundles/vit-ort "
        "--force",
        changed,
        TOKEXPORT_TIMING_SECONDS="0",
    )
    assert "other weights" in shell("tokexport check bundles/vit-ort", changed, code=1)


@pytest.mark.thorough
def test_fewer_features_for_a_language_model(tmp_path: Path) -> None:
    printed = run(EXAMPLES / "llava_encoder.py", "--output", tmp_path / "bundle", cwd=tmp_path)
    counts = dict(line.rsplit(": ", 1) for line in printed.splitlines())
    assert counts["vtc-cls:tokens=16"] == "16"
    assert counts["divprune:keep=0.098"] == "19"
    assert counts["aim-merge:rounds=2"] == "49"
    assert printed.splitlines()[-1].endswith("PASSED")


def test_merging_keeps_the_weighted_mean_of_all_patches() -> None:
    torch.manual_seed(0)
    x, size, keys = torch.randn(2, 17, 8), torch.ones(2, 17, 1), torch.randn(2, 17, 4)
    merged, sizes = merge_alike(x, size, keys, 3)
    assert merged.shape == (2, 14, 8)
    torch.testing.assert_close(sizes.sum(1), size.sum(1))
    torch.testing.assert_close((merged * sizes).sum(1), x.sum(1))
    torch.testing.assert_close(merged[:, 0], x[:, 0])


def test_without_merging_the_model_is_a_plain_vit() -> None:
    torch.manual_seed(0)
    model = DigitsViT(merge=(0, 0))
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert [block.merge for block in build().blocks] == [0, 3, 3, 3, 0]
