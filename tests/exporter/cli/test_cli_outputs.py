"""No command writes into a bundle, and keys are asked for before anything of a bundle is read."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import MODELS, refusal, tokexport

from tokexport.exporter.lock.lock_file import Lock
from tokexport.runtimes.signatures import KEY_VARIABLE
from tokexport.runtimes.verification import reference_inputs

STORED = Path(__file__).parents[2] / "bundles" / "kernels_ort"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    copied = tmp_path / "bundle"
    shutil.copytree(STORED, copied)
    return copied


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "BUNDLE", "--inputs", "in.npz", "--output", "BUNDLE/y.npz"),
        ("run", "BUNDLE", "some.png", "--csv", "BUNDLE/y.csv"),
        ("bench", "BUNDLE", "--rounds", "5", "--output", "BUNDLE/y.json"),
        ("bom", "BUNDLE", "--output", "BUNDLE/y.json"),
        ("package", "BUNDLE", "--format", "tar", "--output", "BUNDLE/y.tar"),
        ("report", "BUNDLE", "--output", "BUNDLE/y.html"),
        ("lock", "BUNDLE", "--file", "BUNDLE/y.json"),
        ("check", "BUNDLE", "--against", str(STORED), "--junit", "BUNDLE/y.xml"),
        ("check", "BUNDLE", "--against", str(STORED), "--html", "BUNDLE/y.html"),
        ("bisect", f"{MODELS}:plain_vit", "BUNDLE", "--output", "BUNDLE/y"),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]}",
)
def test_an_output_in_a_bundle_is_refused(
    bundle: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    batch = {name: array[0] for name, array in reference_inputs(bundle).items()}
    np.savez("in.npz", **batch)
    before = sorted(bundle.iterdir())
    answer = tokexport(*(one.replace("BUNDLE", "bundle") for one in arguments))
    refusal(answer, 2, bundle.parent, "would go into the bundle")
    assert sorted(bundle.iterdir()) == before


def test_a_folder_that_is_no_bundle_is_called_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(tokexport("lock", "."), 5, tmp_path, "so it is no bundle")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "BUNDLE"),
        ("bench", "BUNDLE", "--on", "localhost"),
        ("bench", str(STORED), "BUNDLE"),
        ("bisect", f"{MODELS}:plain_vit", "BUNDLE"),
        ("bom", "BUNDLE", "--output", "bom.json"),
        ("check", "BUNDLE", "--against", str(STORED)),
        ("compare", "BUNDLE", str(STORED)),
        ("compare", f"{MODELS}:plain_vit", "BUNDLE"),
        ("doctor", "BUNDLE"),
        ("lock", "BUNDLE"),
        ("package", "BUNDLE", "--format", "tar", "--output", "x.tar"),
        ("rebuild", "BUNDLE"),
        ("report", "BUNDLE", "--output", "page.html"),
        ("run", "BUNDLE", "--inputs", "in.npz", "--output", "y.npz"),
        ("run", "BUNDLE", "some.png"),
        ("verify", "BUNDLE"),
        ("verify", "BUNDLE", "--against", f"{MODELS}:plain_vit"),
    ],
    ids=" ".join,
)
def test_a_key_of_the_environment_is_asked_for_first(
    bundle: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    monkeypatch.setenv(KEY_VARIABLE, "nowhere.pem")
    (bundle / "manifest.json").write_text("{")  # what a check behind it would complain of
    answer = tokexport(*(one.replace("BUNDLE", "bundle") for one in arguments))
    refusal(answer, 5, bundle.parent, "public key cannot be read")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bom", "BUNDLE"),
        ("package", "BUNDLE", "--format", "tar"),
        ("package", "BUNDLE", "--format", "oci"),
        ("report", "BUNDLE"),
        ("run", "BUNDLE", "--inputs", "in.npz"),
    ],
    ids=" ".join,
)
def test_an_output_that_nothing_may_replace(
    bundle: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tuple(one.replace("BUNDLE", str(bundle)) for one in arguments)
    (folder := bundle.parent / "folder" / "inner").mkdir(parents=True)
    monkeypatch.chdir(folder)
    os.mkfifo("pipe")
    (folder / "null").symlink_to(os.devnull)
    for output, said in (
        ("-", "'-' is no name"),
        ("pipe", "a device, a pipe or a socket"),
        ("null", "a device, a pipe or a socket"),
        (".", "the folder that the command runs in|is a folder"),
        ("..", "the folder that the command runs in|is a folder"),
    ):
        message = refusal(tokexport(*given, "--force", "--output", output), 2, folder)
        assert re.search(said, message), message
    assert sorted(os.listdir()) == ["null", "pipe"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("lock", "BUNDLE", "--file"),
        ("check", "BUNDLE", "--against", str(STORED), "--junit"),
        ("check", "BUNDLE", "--against", str(STORED), "--html"),
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    bundle: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tuple(one.replace("BUNDLE", str(bundle)) for one in arguments)
    (bundle / "manifest.json").write_text("{")  # what a check behind it would complain of
    (bundle.parent / "loop").symlink_to("loop")
    monkeypatch.chdir(bundle.parent)
    for place, code, said in (
        ("-", 2, "'-' is no name"),
        (os.devnull, 2, "a device, a pipe or a socket"),
        ("loop/x", 4, "does not exist"),
    ):
        refusal(tokexport(*given, place), code, bundle.parent, said)


def test_an_update_of_a_lock_in_a_bundle_is_refused(bundle: Path) -> None:
    lock = bundle / "parity.lock.json"
    Lock().write(lock)
    answer = tokexport("check", bundle, "--lock", lock, "--update")
    refusal(answer, 2, bundle.parent, "would go into the bundle")


def test_libraries_below_an_output_are_no_reproduction(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "lib").mkdir(parents=True)
    (tmp_path / "out" / "lib" / "mine.so").write_text("mine")
    given = ("bisect", f"{MODELS}:plain_vit", bundle, "--force", "--output", tmp_path / "out")
    refusal(tokexport(*given), 2, tmp_path, "holds other things", "mine.so")


def test_numbers_of_threads_are_checked_before_the_first_is_timed(bundle: Path) -> None:
    refusal(tokexport("bench", bundle, "--threads", "1,9999"), 2, bundle.parent, "1 to 1024")


def test_a_link_that_leads_nowhere_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "bom.json"
    link.symlink_to(tmp_path / "nowhere")
    refusal(tokexport("bom", bundle, "--output", link), 2, tmp_path, "there already")
    assert link.is_symlink()


@pytest.mark.parametrize("option", ["--force", "--trust-pickle", "--html=x.html", "--code-path=."])
def test_a_bundle_alone_takes_no_option_of_a_source(bundle: Path, option: str) -> None:
    answer = tokexport("verify", bundle, option)
    refusal(answer, 2, bundle.parent, option.partition("=")[0], "--against")
