"""OCI layouts, plain and of ModelPack: skopeo and a registry take them, and their artifact runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.cli import refusal, tokexport
from helpers.debian_programs import run_program
from helpers.plain_runtime import hold_to_reference
from helpers.registry import registry
from helpers.small_bundles import product_bundle

from tokexport.exporter.package.content import read_content
from tokexport.exporter.package.modelpack import modelpack_files
from tokexport.exporter.package.oci import oci_files
from tokexport.exporter.package.options import PackageOptions
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.verification import verify_bundle

SCHEMA = Path(__file__).parent / "modelpack" / "config-schema.json"
#: The annotation that names a layer's file.
NAMES = {"oci": "org.opencontainers.image.title", "modelpack": "org.cncf.model.filepath"}
FORMATS = tuple(NAMES)


skopeo = partial(run_program, "skopeo")


def packaged(bundle: Path, output: Path, format: str) -> dict[str, Any]:
    given = ("package", bundle, "--format", format, "--output", output, "--json")
    answer = tokexport(*given)
    assert answer.code == 0, answer
    return answer.json


def copied_by_skopeo(output: Path, place: Path, name: str) -> tuple[dict[str, Any], Path]:
    """Returns the manifest, and a folder with the layers under the names that they say."""
    skopeo("copy", "--quiet", "--insecure-policy", f"oci:{output}:latest", f"dir:{place / 'copy'}")
    manifest = json.loads((place / "copy" / "manifest.json").read_text())
    (place / "files").mkdir()
    for layer in manifest["layers"]:
        blob = place / "copy" / layer["digest"].removeprefix("sha256:")
        assert f"sha256:{hash_file(blob)}" == layer["digest"]
        assert blob.stat().st_size == layer["size"]
        shutil.copy(blob, place / "files" / layer["annotations"][name])
    return manifest, place / "files"


@pytest.mark.parametrize("format", FORMATS)
def test_skopeo_copies_the_bundle(ort_bundle: Path, tmp_path: Path, format: str) -> None:
    output = tmp_path / "layout"
    done = packaged(ort_bundle, output, format)
    raw = skopeo("inspect", "--raw", f"oci:{output}:latest")
    assert json.loads(raw)["layers"]
    (named,) = json.loads((output / "index.json").read_text())["manifests"]
    assert named["digest"] == done["digest"]
    assert hash_file(output / "blobs" / "sha256" / done["digest"][7:]) == done["digest"][7:]
    manifest, files = copied_by_skopeo(output, tmp_path, NAMES[format])
    assert manifest == json.loads(raw)
    assert {one.name: hash_file(one) for one in files.iterdir()} == {
        one.name: hash_file(one) for one in ort_bundle.iterdir()
    }
    assert verify_bundle(files).passed
    hold_to_reference(files / "model.onnx", files, tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_a_registry_takes_the_bundle_and_gives_it_back(
    ort_bundle: Path, tmp_path: Path, format: str
) -> None:
    done = packaged(ort_bundle, tmp_path / "layout", format)
    with registry(tmp_path) as address:
        repository = f"{address}/models/vit:1"
        source = f"oci:{tmp_path / 'layout'}:latest"
        given = ("--quiet", "--insecure-policy", "--dest-tls-verify=false")
        skopeo("copy", *given, source, f"docker://{repository}")
        raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{repository}")
        assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == done["digest"]
        run_program("oras", "pull", "--plain-http", repository, "--output", tmp_path / "pulled")
    pulled = {one.name: hash_file(one) for one in (tmp_path / "pulled").iterdir()}
    assert pulled == {one.name: hash_file(one) for one in ort_bundle.iterdir()}


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bundle_gives_the_same_layout(
    openvino_bundle: Path, tmp_path: Path, format: str
) -> None:
    shutil.copytree(openvino_bundle, tmp_path / "again" / openvino_bundle.name)
    one = packaged(openvino_bundle, tmp_path / "one", format)
    other = packaged(tmp_path / "again" / openvino_bundle.name, tmp_path / "other", format)
    assert one["digest"] == other["digest"]
    assert one["contents"] == other["contents"]
    assert {file["name"] for file in one["contents"]} == {
        path.relative_to(tmp_path / "one").as_posix()
        for path in (tmp_path / "one").rglob("*")
        if path.is_file()
    }


def test_modelpack_as_its_schema_says(openvino_bundle: Path, tmp_path: Path) -> None:
    packaged(openvino_bundle, tmp_path / "layout", "modelpack")
    manifest, _ = copied_by_skopeo(tmp_path / "layout", tmp_path, NAMES["modelpack"])
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {
        layer["annotations"][NAMES["modelpack"]]: layer["mediaType"].split(".model.")[1]
        for layer in manifest["layers"]
    }
    assert kinds == {
        "manifest.json": "weight.config.v1.raw",
        "model.bin": "weight.v1.raw",
        "model.xml": "weight.v1.raw",
        "reference.npz": "dataset.v1.raw",
        "report.json": "doc.v1.raw",
    }
    digest = manifest["config"]["digest"].removeprefix("sha256:")
    config = json.loads((tmp_path / "copy" / digest).read_text())
    validator = jsonschema.Draft4Validator(json.loads(SCHEMA.read_text()))
    validator.validate(config)
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    found = read_manifest(openvino_bundle)
    assert config["config"]["precision"] == found.precision
    assert config["config"]["format"] == "openvino"
    assert config["descriptor"]["createdAt"] == found.created
    for key in ("descriptor", "modelfs"):
        assert [*validator.iter_errors({**config, key: {"unknown": 1}})]


def test_what_kind_every_file_of_a_ladder_is(tmp_path: Path) -> None:
    bundle = product_bundle(tmp_path / "product", 8, 2)
    manifest = read_manifest(bundle)
    more = ("reference-b2.npz", "report.batch2.json", "report.html", "model.onnx.data")
    hashes = {}
    for name in more:
        (bundle / name).write_text(name)
        hashes[name] = hash_file(bundle / name)
    dataclasses.replace(manifest, files={**manifest.files, **hashes}).write(bundle)
    (bundle / "model.sig").write_text("{}")
    made = modelpack_files(read_content(bundle), PackageOptions())
    manifest_blob = made.files[f"blobs/sha256/{made.digest.removeprefix('sha256:')}"]
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"]
        for layer in json.loads(manifest_blob)["layers"]
    }
    assert {
        name: kind.split(".model.")[1].removesuffix(".v1.raw") for name, kind in kinds.items()
    } == {
        "manifest.json": "weight.config",
        "model.batch2.onnx": "weight",
        "model.onnx": "weight",
        "model.onnx.data": "weight",
        "model.sig": "doc",
        "reference-b2.npz": "dataset",
        "report.batch2.json": "doc",
        "report.html": "doc",
    }


@pytest.mark.parametrize("created", ["yesterday", "2026-01-02T03:04:05"])
def test_a_time_that_is_none_is_left_out(tmp_path: Path, created: str) -> None:
    bundle = product_bundle(tmp_path / "product", 2)
    dataclasses.replace(read_manifest(bundle), created=created).write(bundle)
    for written in (oci_files, modelpack_files):
        files = written(read_content(bundle), PackageOptions()).files
        texts = [one for one in files.values() if isinstance(one, bytes)]
        assert texts
        assert not [one for one in texts if created.encode() in one]


def test_no_attention_is_called_no_transformer(tmp_path: Path) -> None:
    content = read_content(product_bundle(tmp_path / "product", 2))
    files = modelpack_files(content, PackageOptions()).files
    (config,) = [
        json.loads(one) for one in files.values() if isinstance(one, bytes) and b"modelfs" in one
    ]
    assert config["config"] == {"format": "onnx", "precision": "fp32"}


@pytest.mark.parametrize("output", ["lay out", "a:b", "-x", "a:b/-y"])
def test_the_command_that_is_printed_reads_the_layout(
    ort_bundle: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ("--format", "oci", f"--output={output}", "--name", "My.-_Model..v2-", "--json")
    answer = tokexport("package", ort_bundle, *given)
    assert answer.code == 0, answer
    before, command = answer.json["next"].split("skopeo copy ")
    source, target = shlex.split(command)
    assert target == "docker://REGISTRY/my-model-v2"
    folder = tmp_path / shlex.split(before)[1] if before else tmp_path
    monkeypatch.chdir(folder)
    manifest = skopeo("inspect", "--raw", source)
    assert f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}" == answer.json["digest"]


def test_force_replaces_layouts_alone(
    ort_bundle: Path, openvino_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "layout"
    packaged(ort_bundle, output, "oci")
    given = ("package", openvino_bundle, "--format", "oci", "--output", output)
    refusal(tokexport(*given), 2, tmp_path, "there already")
    assert tokexport(*given, "--force").code == 0  # the blobs of the other bundle are gone
    assert len([*(output / "blobs" / "sha256").iterdir()]) == 7
    (output / "blobs" / "sha256" / "notes.txt").write_text("mine")
    refusal(tokexport(*given, "--force"), 2, tmp_path, "blobs/sha256/notes.txt")
