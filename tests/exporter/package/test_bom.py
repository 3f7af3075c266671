"""The bill of materials: strictly valid CycloneDX, the same each time, and only what is so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from helpers.cli import MODELS, compile_model, refusal, tokexport
from helpers.small_bundles import product_bundle

from tokexport.exporter.package.bom import bom_of, write_bom
from tokexport.exporter.package.content import read_content
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest_reader import read_manifest

#: A report whose figures no float holds.
TOO_LARGE = json.dumps(
    {
        "samples": 1,
        "stages": [{"name": "artifact", "comparisons": {"x": {"max_abs": 10**400, "cosine": 1}}}],
    }
)
VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)


def valid(text: str) -> dict[str, Any]:
    """Returns the JSON of a bill that is strictly valid."""
    assert VALIDATOR.validate_str(text) is None, VALIDATOR.validate_str(text)
    found: dict[str, Any] = json.loads(text)
    return found


def written(bundle: Path, output: Path) -> dict[str, Any]:
    write_bom(bundle, output, force=True)
    return valid(output.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the report of this version."""
    bundle = tmp_path_factory.mktemp("bom") / "vit"
    answer = compile_model(f"{MODELS}:merging_vit", bundle, "--input-shape", "2,3,12,12", "--json")
    assert answer.code == 0, answer
    return bundle


def test_a_compiled_bundle(compiled: Path, tmp_path: Path) -> None:
    output = tmp_path / "bom.json"
    answer = tokexport("bom", compiled, "--output", output, "--json")
    assert answer.code == 0, answer
    bom, manifest = valid(output.read_text(encoding="utf-8")), read_manifest(compiled)
    model = bom["metadata"]["component"]
    assert answer.json["serial_number"] == bom["serialNumber"]
    assert bom["metadata"]["timestamp"] == manifest.created
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == hash_file(compiled / "manifest.json")
    assert {one["name"]: one["hashes"][0]["content"] for one in model["components"]} == {
        one.name: hash_file(one) for one in compiled.iterdir()
    }
    (source,) = model["pedigree"]["ancestors"]
    assert source["name"] == manifest.source["location"]
    assert source["hashes"][0]["content"] == manifest.source["sha256"]
    runtime, maker = bom["components"]
    assert runtime["purl"] == f"pkg:pypi/onnxruntime@{manifest.runtime.version}"
    assert maker["version"] == manifest.tokexport_version
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["inputs"] == [{"format": "x float32 (2, 3, 12, 12)"}]


def test_figures_are_those_of_the_report(compiled: Path, tmp_path: Path) -> None:
    card = written(compiled, tmp_path / "bom.json")["metadata"]["component"]["modelCard"]
    found = {one["type"]: one for one in card["quantitativeAnalysis"]["performanceMetrics"]}
    report = json.loads((compiled / "report.json").read_text(encoding="utf-8"))
    (artifact,) = (stage for stage in report["stages"] if stage["name"] == "artifact")
    share = float(found["largest error as a share of what is allowed"]["value"])
    (worst,) = artifact["worst"].values()
    assert share == pytest.approx(worst["share"], rel=1e-5)
    assert 0 <= share <= 1
    name, timing = [*report["speed"]["timings"].items()][-1]
    latency = found["median latency in milliseconds"]
    assert float(latency["value"]) == pytest.approx(timing["median_ms"], rel=1e-5)
    assert latency["slice"].startswith(f"{name}, batch 2, ")
    (faster,) = (one for kind, one in found.items() if kind.startswith("speed-up over eager"))
    ends = faster["confidenceInterval"]
    assert float(ends["lowerBound"]) <= float(faster["value"]) <= float(ends["upperBound"])
    assert not [kind for kind in found if "accuracy" in kind]  # no labels were given


def test_figures_of_another_artifact_are_left_out(compiled: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(compiled, tmp_path / "rebuilt")
    manifest = read_manifest(bundle)
    dataclasses.replace(manifest, rebuilt={"flavour": manifest.runtime.flavour}).write(bundle)
    card = written(bundle, tmp_path / "bom.json")["metadata"]["component"]["modelCard"]
    assert "quantitativeAnalysis" not in card


def test_accuracy_where_it_was_measured(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, bundle := tmp_path / "bundle")
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    report["accuracy"] = {"before": 0.75, "after": 0.5, "samples": 8, "lost": 2, "won": 0}
    rewrite(bundle, "report.json", json.dumps(report))
    card = written(bundle, tmp_path / "bom.json")["metadata"]["component"]["modelCard"]
    found = {one["type"]: one for one in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert found["top-1 accuracy"]["value"] == "0.5"
    assert found["top-1 accuracy"]["slice"] == "batch 2, 8 labelled samples"
    assert found["top-1 accuracy of the source in eager PyTorch"]["value"] == "0.75"


def test_every_artifact_of_a_ladder_has_its_figures(compiled: Path, tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 8, 2)
    report = (compiled / "report.json").read_text(encoding="utf-8")
    rewrite(bundle, "report.batch2.json", report.replace('"samples": ', '"samples": 9'))
    rewrite(bundle, "report.json", report)
    model = written(bundle, tmp_path / "bom.json")["metadata"]["component"]
    figures = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    slices = [one["slice"] for one in figures if one["type"].startswith("cosine")]
    samples = json.loads(report)["samples"]
    wanted = [f"batch 8, {samples} samples", f"batch 2, 9{samples} samples"]
    assert [one.partition(", ")[2] for one in slices] == wanted


def rewrite(bundle: Path, name: str, text: str) -> None:
    """Replaces a file of a bundle, with its hash."""
    (bundle / name).write_text(text, encoding="utf-8")
    manifest = read_manifest(bundle)
    files = {**manifest.files, name: hash_file(bundle / name)}
    dataclasses.replace(manifest, files=files).write(bundle)


def test_the_same_bundle_gives_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, copy := tmp_path / "elsewhere" / "vit")
    write_bom(compiled, tmp_path / "one.json")
    write_bom(copy, tmp_path / "other.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()
    dataclasses.replace(read_manifest(copy), created="2026-02-03T04:05:06+00:00").write(copy)
    one, other = bom_of(read_content(compiled)), bom_of(read_content(copy))
    assert one["serialNumber"] != other["serialNumber"]


@pytest.mark.parametrize("name", ["kernels_ort", "kernels_openvino", "least_cosine"])
def test_bundles_of_earlier_versions(name: str, tmp_path: Path) -> None:
    bom = written(Path(__file__).parents[2] / "bundles" / name, tmp_path / "bom.json")
    assert bom["metadata"]["component"]["components"]


def test_limits_and_odd_values(tmp_path: Path) -> None:
    """A bundle without report and reference, with a source without hash and a time without zone."""
    bundle = product_bundle(tmp_path / "prödukt", 2)
    manifest = read_manifest(bundle)
    odd = {"kind": "module", "location": 'a "path"\n\u2028 🐝', "sha256": "unknown"}
    dataclasses.replace(manifest, created="yesterday", source=odd).write(bundle)
    bom = written(bundle, tmp_path / "bom.json")
    model = bom["metadata"]["component"]
    assert "timestamp" not in bom["metadata"]
    assert "hashes" not in model["pedigree"]["ancestors"][0]
    assert model["modelCard"]["considerations"]["technicalLimitations"] == [
        "Input shift takes whole numbers from 0 to 9.",
        "Refused where an input breaks this: x is too large, at model.py:1.",
    ]
    assert "quantitativeAnalysis" not in model["modelCard"]
    assert "architectureFamily" not in model["modelCard"]["modelParameters"]


@pytest.mark.parametrize(
    "report", ["[]", '{"stages": 1}', '{"stages": [{}], "speed": {}}', TOO_LARGE]
)
def test_a_report_of_another_kind_gives_no_figures(
    compiled: Path, tmp_path: Path, report: str
) -> None:
    shutil.copytree(compiled, bundle := tmp_path / "bundle")
    rewrite(bundle, "report.json", report)
    model = written(bundle, tmp_path / "bom.json")["metadata"]["component"]
    assert "quantitativeAnalysis" not in model["modelCard"]


def test_refusals(compiled: Path, tmp_path: Path) -> None:
    inside = ("bom", compiled, "--output", compiled / "bom.json")
    refusal(tokexport(*inside), 2, tmp_path, "into the bundle")
    (tmp_path / "bom.json").write_text("mine")
    there = ("bom", compiled, "--output", tmp_path / "bom.json")
    refusal(tokexport(*there), 2, tmp_path, "there already")
    assert (tmp_path / "bom.json").read_text() == "mine"
    shutil.copytree(compiled, bundle := tmp_path / "bundle")
    rewrite(bundle, "report.json", "{" * 9)
    broken = ("bom", bundle, "--output", tmp_path / "other.json")
    refusal(tokexport(*broken), 5, tmp_path, "report.json of the bundle cannot be read")
    assert not (tmp_path / "other.json").exists()
