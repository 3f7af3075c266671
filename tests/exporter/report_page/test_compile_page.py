"""The page of a compile: what a stranger reads on it, and how a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.browser import opened
from helpers.html_words import Words
from helpers.near_ties import CHANNELS, TOKENS, KeepsTheBest, Nudge, samples
from models.cli_models import plain_vit
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import GateError, InputError, OutputExistsError, UsageError
from tokexport.exporter.report_page.bundle_page import page_of, write_bundle_page
from tokexport.graph_passes import pipelines
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.verification import verify_bundle

LARGEST_BYTES = 3_000_000


class Takes(nn.Module):
    """The plain ViT with an unusual line in it: single numbers are taken from the whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = plain_vit()[0]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.vit(x)["logits"]
        best = logits.argmax(dim=-1, keepdim=True)
        return logits + torch.take(logits * 0.5, best)


class OtherHead(ir.passes.InPlacePass):
    """A wrong pass: the weights of the head become a tenth larger."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        (name,) = (name for name in model.graph.initializers if name.endswith("head.weight"))
        weights = model.graph.initializers[name]
        assert weights.const_value is not None
        weights.const_value = ir.tensor(weights.const_value.numpy() * np.float32(1.1), name=name)
        return ir.passes.PassResult(model, modified=True)


@dataclass(frozen=True)
class Pages:
    """The pages of compiles that ended in several ways, by how they ended.

    Attributes:
        folder: The folder that holds them.
        error: The error of the one that failed.
    """

    folder: Path
    error: GateError

    def path(self, name: str) -> Path:
        return self.folder / (f"{name}.failed" if name == "failed" else name) / "report.html"

    def text(self, name: str) -> str:
        return Words.of(self.path(name))


def pictures(count: int) -> np.ndarray:
    """Noise with a bright square, which differs from the rest."""
    found = np.random.default_rng(0).standard_normal((count, 3, 24, 24)).astype(np.float32)
    found[:, :, :8, :8] += 3
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """One compile that passed, one with a near-tie, one that failed, and one of unusual code."""
    folder = tmp_path_factory.mktemp("pages")
    np.savez(folder / "x.npz", x=pictures(5))
    model, example = plain_vit()[0], torch.zeros(1, 3, 24, 24)
    given = {"inputs": folder / "x.npz", "reduce": "tome:r=4"}
    tokexport.compile(model, example, "ort", output=folder / "passed", **given)
    tokexport.compile(Takes().eval(), example, "ort", output=folder / "unusual", timed=False)
    with pytest.MonkeyPatch.context() as patch:
        wrong = (OtherHead(), *pipelines.LOWER["ort"])
        patch.setattr(pipelines, "LOWER", {**pipelines.LOWER, "ort": wrong})
        with pytest.raises(GateError) as caught:
            tokexport.compile(model, example, "ort", output=folder / "failed", timed=False, **given)
    np.savez(folder / "tie.npz", x=samples(2e-7, 0.5, 0.25))
    with pytest.MonkeyPatch.context() as patch:
        nudged = (*pipelines.LOWER["openvino"], Nudge(1e-6))
        patch.setattr(pipelines, "LOWER", {**pipelines.LOWER, "openvino": nudged})
        tokexport.compile(
            *(KeepsTheBest(), torch.zeros(1, TOKENS, CHANNELS), "openvino"),
            **{"output": folder / "ties", "inputs": folder / "tie.npz", "timed": False},
        )
    return Pages(folder, caught.value)


def test_a_page_says_first_that_it_passed(pages: Pages) -> None:
    text = pages.text("passed")
    assert "PASSED The compiled model gives the same answers as your PyTorch model with its" in text
    assert "token reduction on 5 samples" in text
    assert re.search(r"(runs|takes) \d+\.\d\d times as (fast|long) as it on this machine", text)
    first = text.index("PASSED The compiled model")
    assert all(text.index(title) > first for title in ("How fast is it?", "What was used"))


def test_a_page_shows_tokens_cost_errors_speed_and_environment(pages: Pages) -> None:
    text = pages.text("passed")
    report = json.loads((pages.folder / "passed" / "report.json").read_text())
    for block, tokens in zip(("blocks.0", "blocks.1", "blocks.2"), (37, 33, 29), strict=True):
        assert f"{block} {tokens}" in text.replace("% ", "%")
    assert "The model cuts a picture into 6 × 6 patches." in text
    assert "sample 1, into blocks.1: 32 tokens + 1 without a patch" in text
    assert "3 more of the samples" in text
    for name, timing in report["speed"]["timings"].items():
        assert f"candidate: {name} median ms: {timing['median_ms']:.2f}" in text
    for ratio in report["speed"]["ratios"].values():
        assert f"{ratio['low']:.2f} to {ratio['high']:.2f}" in text
    assert re.search(r"blocks\.0 [\d.]+ k MACs\s*\d\.\d{3} ms", text)
    assert "logits at artifact: how far its 25 values are off" in text
    assert "matching of tokens (bipartite_match) 3 times" in text
    assert report["fingerprint"]["weights_sha256"] in text
    assert report["machine"]["packages"]["onnxruntime"] in text


def test_near_ties_are_explained(pages: Pages) -> None:
    text = pages.text("ties")
    assert "PASSED The compiled model gives the same answers as your PyTorch model" in text
    assert "On 1 batch two choices were equally good, and it took the other one" in text
    assert "lowered, without kernels, artifact: near-ties, which are no error" in text
    assert "1 choice in 1 of 3 batches fell differently" in text
    assert "topk(KEPT, dim=1)" in text
    assert "passed, but for ties" in text


def test_a_failure_says_where_and_what_to_do(pages: Pages) -> None:
    text = pages.text("failed")
    assert (
        "FAILED No bundle was written: the finished artifact does not give the answers of your "
        "PyTorch model with its token reduction."
    ) in text
    assert "Up to there it did: captured (the traced graph), rewritten" in text
    assert "Parity failed at 'artifact': output 'logits' is off by" in text
    assert "What to do:" in text
    assert "tokexport bisect finds the node where it comes in" in text
    rows = text[text.index("stage: artifact: the finished artifact") :]
    assert re.search(r"output: logits [^:]*: .* same best class: \S+ verdict: FAILED", rows)
    assert re.search(r"output: tokens [^:]*: .* same best class: \S+ verdict: passed", rows)
    assert not (pages.folder / "failed").exists()
    assert str(pages.path("failed")) in pages.error.fix
    report = json.loads(pages.path("failed").with_name("report.json").read_text())
    assert report["first_failure"] == "artifact"
    assert report == pages.error.report.to_json()


def test_the_next_failure_replaces_the_page(tmp_path: Path) -> None:
    left = tmp_path / "out.failed"
    for speedup in (1000.0, 2000.0):
        with pytest.raises(GateError):
            tokexport.compile(
                nn.Linear(4, 4), torch.zeros(1, 4), output=tmp_path / "out", min_speedup=speedup
            )
        assert f"at least {speedup:g} was asked for" in Words.of(left / "report.html")
    assert sorted(one.name for one in left.iterdir()) == ["page.json", "report.html", "report.json"]


def test_a_compile_without_a_page_leaves_none(tmp_path: Path) -> None:
    given = {"timed": False, "page": False}
    x = torch.zeros(1, 4)
    bundle = tokexport.compile(nn.Linear(4, 4), x, output=tmp_path / "out", **given).bundle
    assert not {"page.json", "report.html"} & {one.name for one in bundle.iterdir()}
    with pytest.raises(GateError):
        tokexport.compile(
            nn.Linear(4, 4), x, output=tmp_path / "bad", min_speedup=1000.0, page=False
        )
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_was_not_recognised_has_its_line_and_a_remedy(pages: Pages) -> None:
    text = pages.text("unusual")
    assert "Not recognised: gather by aten.take" in text
    assert "its index counts single numbers of the whole tensor, not rows" in text
    assert "return logits + torch.take(logits * 0.5, best)" in text
    assert "What to do: Move whole tokens: x.gather(1, index[..., None]" in text
    assert "Every patch keeps a token of its own through all blocks" in text


def test_without_pictures_it_says_why_none_are_drawn(pages: Pages) -> None:
    said = "This cannot be drawn: the model's first input is no picture"
    assert said in pages.text("ties")


NAMES = ("passed", "ties", "unusual", "failed")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_one_small_file_that_loads_nothing(pages: Pages, name: str) -> None:
    path = pages.path(name)
    assert path.stat().st_size < LARGEST_BYTES
    text, found = path.read_text(encoding="utf-8"), Words.read(path)
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert "url(" not in text.replace("url(#", "")
    assert all(one.startswith(("#", "data:")) for one in found.references)
    targets = {one[1:] for one in found.references if one.startswith("#")}
    assert targets <= {*found.ids}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_a_browser_shows_it_without_a_fault(
    pages: Pages, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    found = opened(pages.path(name), tmp_path, width, dark)
    assert found.console == []
    measured = found.measured
    assert measured["requests"] == []
    assert (measured["width"], measured["scrollWidth"], measured["wide"]) == (width, width, [])
    assert measured["folded"] == 0
    ground, ink = (_brightness(measured[one]) for one in ("background", "colour"))
    assert (ground < 80 and ink > 180) if dark else (ground > 180 and ink < 80)
    assert measured["svgText"] or name in ("ties", "unusual")
    assert all((_brightness(one) > 120) == dark for one in measured["svgText"])
    assert "Words on this page" in measured["text"]


def _brightness(colour: str) -> float:
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)]
    return sum(numbers[:3]) / 3


def test_a_page_is_made_anew_without_torch(pages: Pages, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tokexport.exporter.cli.app import main\n"
        "main()\n"
    )
    output = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", pages.folder / "passed", "--output", output],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PASSED  The compiled model gives the same answers")
    anew, before = Words.of(output), pages.text("passed")
    assert "SHA-256 of every file of the bundle" in anew
    hashes = anew[anew.index("SHA-256 of every file") : anew.index("Time of the compile")]
    assert anew.replace(hashes, "") == before


def test_the_bundle_verifies_and_lists_its_page(pages: Pages) -> None:
    files = read_manifest(pages.folder / "passed").files
    assert {"page.json", "report.html", "report.json"} <= files.keys()
    assert verify_bundle(pages.folder / "passed").passed


def test_an_altered_report_makes_no_page(pages: Pages, tmp_path: Path) -> None:
    shutil.copytree(pages.folder / "passed", tmp_path / "bundle")
    report = tmp_path / "bundle" / "report.json"
    report.write_text(report.read_text().replace("PASSED", "passed"))
    with pytest.raises(BundleError, match=r"report\.json is not the one that the compile wrote"):
        page_of(tmp_path / "bundle")


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"status": 1, "target": []}', "[" * 100_000, '{"pictures": ["x"]}']
)
def test_what_no_compile_wrote_is_refused(pages: Pages, tmp_path: Path, text: str) -> None:
    shutil.copytree(pages.path("failed").parent, tmp_path / "left")
    broken = "page.json" if "pictures" in text else "report.json"
    (tmp_path / "left" / broken).write_text(text)
    with pytest.raises(InputError):
        write_bundle_page(tmp_path / "left", tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_names_cannot_bring_html_or_scripts(pages: Pages, tmp_path: Path) -> None:
    shutil.copytree(pages.path("failed").parent, tmp_path / "left")
    for name in ("report.json", "page.json"):
        path = tmp_path / "left" / name
        evil = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
        text = path.read_text().replace("blocks.1", evil).replace("logits", f"{evil}$x$")
        path.write_text(text.replace("PlainVit", evil))
    write_bundle_page(tmp_path / "left", tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_a_page_replaces_nothing_and_goes_into_no_bundle(pages: Pages, tmp_path: Path) -> None:
    there = tmp_path / "report.html"
    there.write_text("mine")
    with pytest.raises(OutputExistsError):
        write_bundle_page(pages.folder / "passed", there)
    assert there.read_text() == "mine"
    write_bundle_page(pages.folder / "passed", there, force=True)
    with pytest.raises(UsageError, match="The output would go into the bundle"):
        write_bundle_page(pages.folder / "passed", pages.path("passed"), force=True)
    assert verify_bundle(pages.folder / "passed").passed


def test_a_bundle_of_before_has_a_page_too(pages: Pages, tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    shutil.copy(pages.folder / "passed" / "report.json", folder)
    write_bundle_page(folder, tmp_path / "out.html")
    text = Words.of(tmp_path / "out.html")
    assert "attention 0 37" in text
    assert "Which patches became one token?" not in text
