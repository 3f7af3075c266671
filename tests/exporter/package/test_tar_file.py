"""A tar of a bundle has the same bytes each time, and unpacks to the bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.cli import refusal, tokexport
from helpers.plain_runtime import hold_to_reference

from tokexport.exporter.package.content import read_content
from tokexport.exporter.package.package import package_bundle
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.verification import verify_bundle


def test_it_unpacks_to_the_bundle(ort_bundle: Path, tmp_path: Path) -> None:
    answer = tokexport(*("package", ort_bundle, "--format", "tar"), "--output", tmp_path / "b.tar")
    assert answer.code == 0, answer
    assert f"tar -xf {tmp_path / 'b.tar'}" in answer.said
    subprocess.run(["tar", "-xf", tmp_path / "b.tar"], cwd=tmp_path, check=True)
    bundle = tmp_path / ort_bundle.name
    assert {path.name for path in bundle.iterdir()} == {path.name for path in ort_bundle.iterdir()}
    assert verify_bundle(bundle).passed
    hold_to_reference(bundle / "model.onnx", bundle, tmp_path)


def test_the_same_bundle_gives_the_same_bytes(ort_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "vit-ort"
    shutil.copytree(ort_bundle, copy)
    for path in copy.iterdir():  # in another order, of another time and owner's rights
        os.utime(path, (1, 1))
        path.chmod(0o600)
    one = package_bundle(ort_bundle, "tar", tmp_path / "one.tar")
    other = package_bundle(copy, "tar", tmp_path / "other.tar")
    assert one.digest == other.digest == f"sha256:{hash_file(tmp_path / 'other.tar')}"
    with tarfile.open(tmp_path / "one.tar") as archive:
        entries = archive.getmembers()
    assert [one.name for one in entries] == sorted(f"vit-ort/{p.name}" for p in copy.iterdir())
    assert {(e.uid, e.gid, e.uname, e.mtime, e.mode) for e in entries} == {(0, 0, "", 0, 0o644)}
    assert {f"vit-ort/{p.name}": hash_file(p) for p in copy.iterdir()} == {
        file.name: file.sha256 for file in one.contents
    }


@pytest.mark.parametrize("output", ["host:b.tar", "-b.tar", "a b.tar"])
def test_the_command_that_is_printed_unpacks_it(
    ort_bundle: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = tokexport("package", ort_bundle, "--format", "tar", f"--output={output}", "--json")
    assert answer.code == 0, answer
    subprocess.run(answer.json["next"], shell=True, check=True)
    assert (tmp_path / ort_bundle.name / "manifest.json").exists()


def test_a_package_that_is_interrupted_is_not_there(
    ort_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> str:
        if path.parent == tmp_path:  # what is written
            raise KeyboardInterrupt
        return hash_file(path)

    monkeypatch.setattr("tokexport.exporter.package.package.hash_file", interrupted)
    answer = tokexport("package", ort_bundle, "--format", "tar", "--output", tmp_path / "b.tar")
    assert answer.code == 130, answer
    assert "Nothing was left behind" in answer.said
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_bundle_is_not_packaged(ort_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    with (bundle / "model.onnx").open("r+b") as file:
        file.write(b"\0")
    output = tmp_path / "b.tar"
    answer = tokexport("package", bundle, "--format", "tar", "--output", output)
    refusal(answer, 5, tmp_path, "'model.onnx' is not the one that was written")
    assert not output.exists()


def test_a_link_in_a_bundle_is_not_followed(ort_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    (bundle / "report.json").rename(bundle / "kept")
    (bundle / "report.json").symlink_to("kept")
    answer = tokexport("package", bundle, "--format", "tar", "--output", tmp_path / "b.tar")
    refusal(answer, 5, tmp_path, "'report.json' of the bundle is a link or no file")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda place: place.symlink_to("x")])
def test_a_signature_that_is_no_file_is_not_waited_for(
    ort_bundle: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    make(bundle / "model.sig")
    for command in (("package", "--format", "tar"), ("bom",)):
        answer = tokexport(*command, bundle, "--output", tmp_path / "out")
        refusal(answer, 5, tmp_path, "'model.sig' of the bundle is a link or no file")


def test_what_lies_beside_the_bundles_files_is_left_out(ort_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    (bundle / "id_rsa").write_text("mine")
    assert "id_rsa" not in read_content(bundle).files
    done = package_bundle(bundle, "tar", tmp_path / "b.tar")
    assert not [one for one in done.contents if "id_rsa" in one.name]


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "ü", "a" * 200, "a\nb"])
def test_names_that_are_none_are_refused(ort_bundle: Path, tmp_path: Path, name: str) -> None:
    given = ("--format", "tar", f"--name={name}", "--output", tmp_path / "b.tar")
    refusal(tokexport("package", ort_bundle, *given), 2, tmp_path, "no name for a package")


def test_outputs_that_are_there_or_in_the_bundle(ort_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.tar"
    output.write_text("mine")
    given = ("package", ort_bundle, "--format", "tar")
    refusal(tokexport(*given, "--output", output), 2, tmp_path, "there already", "--force")
    assert output.read_text() == "mine"
    assert tokexport(*given, "--output", output, "--force").code == 0
    inside = ort_bundle / "b.tar"
    refusal(tokexport(*given, "--output", inside), 2, tmp_path, "into the bundle")
    no_folder = tokexport(*given, "--output", tmp_path / "no such" / "b.tar")
    refusal(no_folder, 4, tmp_path, f"mkdir -p '{tmp_path / 'no such'}'")
    unknown = ("package", ort_bundle, "--format", "zip", "--output", tmp_path / "b.zip")
    refusal(tokexport(*unknown), 2, tmp_path, "no format 'zip'", "tar, triton")
    batched = ("--batching", "--output", tmp_path / "c.tar")
    refusal(tokexport(*given, *batched), 2, tmp_path, "takes no --batching")
