from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.thorough import thorough_but

from tokexport.exporter.bundle import bundle_folder as bundle_module
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.errors import InternalError, OutputExistsError, WriteError
from tokexport.exporter.system.scratch import HeldFolder
from tokexport.runtimes.bundle.bundle_files import check_files
from tokexport.runtimes.bundle.manifest import (
    PASSED,
    SCHEMA_VERSION,
    Manifest,
    RuntimeInfo,
    TensorSpec,
)
from tokexport.runtimes.bundle.manifest_reader import read_manifest

MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    tokexport_version="0.1.0",
    created="2025-01-01T00:00:00+00:00",
    target="ort",
    status=PASSED,
    artifact="model.onnx",
    runtime=RuntimeInfo("ort", "onnxruntime-cpu", "1.22.0"),
    precision="fp32",
    inputs=(TensorSpec("x", (1, 3), "float32"),),
    outputs=(TensorSpec("logits", (1, 2), "float32"),),
    constant_outputs={},
    token_schedule=(197, 184),
    gates={"logits": {"relative_tolerance": 1e-5, "scale": 1.0}},
    source={"kind": "factory", "location": "models:build"},
    preprocessing=None,
    files={},
)


def write_bundle(output: Path, artifact: bytes = b"an artifact", force: bool = False) -> Path:
    with BundleWriter(output, force) as bundle:
        (bundle.path / "model.onnx").write_bytes(artifact)
        (bundle.path / "stages").mkdir()
        (bundle.path / "stages" / "rewritten.txt").write_bytes(b"a stage")
        return bundle.commit(MANIFEST)


def write_and_raise(output: Path, error: BaseException, force: bool = False) -> None:
    with BundleWriter(output, force) as bundle:
        (bundle.path / "model.onnx").write_bytes(b"half")
        assert bundle.path.name in names(output.parent)
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_holds_what_was_written_and_its_hashes(tmp_path: Path) -> None:
    output = write_bundle(tmp_path / "out")
    assert output == tmp_path / "out"
    assert names(tmp_path) == ["out"]
    assert names(output) == ["manifest.json", "model.onnx", "stages"]
    manifest = read_manifest(output)
    assert manifest.files == {
        "model.onnx": hashlib.sha256(b"an artifact").hexdigest(),
        "stages/rewritten.txt": hashlib.sha256(b"a stage").hexdigest(),
    }
    check_files(output, manifest)


def test_the_folder_has_the_rights_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    output = write_bundle(tmp_path / "out")
    assert output.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_takes_the_partial_folder_away(tmp_path: Path) -> None:
    for error in (ValueError("of the body"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_and_raise(tmp_path / "out", error)
        assert names(tmp_path) == []


def test_a_block_that_ends_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as bundle:
        (bundle.path / "model.onnx").write_bytes(b"half")
    assert names(tmp_path) == []
    with pytest.raises(InternalError, match="outside its with block"):
        _ = bundle.path


def test_an_existing_folder_needs_force(tmp_path: Path) -> None:
    output = write_bundle(tmp_path / "out", b"old")
    with pytest.raises(OutputExistsError, match="--force"), BundleWriter(output):
        pytest.fail("the block must not be entered")
    write_bundle(output, b"new", force=True)
    assert (output / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_bundle(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_force_never_replaces_anything_else(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    extension = tmp_path / "extension"  # a browser extension has a manifest.json too
    extension.mkdir()
    (extension / "manifest.json").write_text('{"manifest_version": 3, "name": "x"}')
    nested = tmp_path / "nested"
    (nested / "empty").mkdir(parents=True)
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "notes.txt").write_text("by hand")
    linking = write_bundle(tmp_path / "linking")
    (linking / "photos").symlink_to(thesis)
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(write_bundle(tmp_path / "linked"))
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")

    before = sorted(tmp_path.rglob("*"))
    for output, said in [
        (thesis, "is no bundle"),
        (extension, "is no bundle"),
        (nested, "is no bundle"),
        (bundle, "notes.txt"),
        (linking, "photos"),
        (file, "a file"),
        (link, "a link"),
        (dangling, "a link"),
    ]:
        with pytest.raises(OutputExistsError, match=said), BundleWriter(output, force=True):
            pytest.fail("the block must not be entered")
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_an_altered_bundle(tmp_path: Path) -> None:
    output = write_bundle(tmp_path / "out")
    (output / "model.onnx").write_bytes(b"altered")
    write_bundle(output, b"new", force=True)
    check_files(output, read_manifest(output))


def test_a_missing_parent_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught, BundleWriter(tmp_path / "a" / "b" / "out"):
        pytest.fail("the block must not be entered")
    assert f"mkdir -p {tmp_path / 'a' / 'b'}" in caught.value.fix


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path: Path) -> None:
    output = write_bundle(tmp_path / "out", b"old")
    with pytest.raises(ValueError, match="of the body"):
        write_and_raise(output, ValueError("of the body"), force=True)
    assert (output / "model.onnx").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_rename_that_fails_midway_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_bundle(tmp_path / "out", b"old")
    monkeypatch.setattr(bundle_module, "exchange", lambda one, other: False)
    rename = Path.rename

    def rename_but_not_the_new_one(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_but_not_the_new_one)
    with pytest.raises(WriteError, match="Input/output error"):
        write_bundle(output, b"new", force=True)
    assert (output / "model.onnx").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("can", [True, False])
def test_both_names_are_there_while_a_bundle_is_replaced(
    tmp_path: Path, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can:
        monkeypatch.setattr(bundle_module, "exchange", lambda one, other: False)
    output = write_bundle(tmp_path / "out", b"old")
    sync, seen = bundle_module._sync, []

    def look(path: Path) -> None:
        if path == tmp_path:  # behind the renames
            seen.extend(names(tmp_path))
        sync(path)

    monkeypatch.setattr(bundle_module, "_sync", look)
    write_bundle(output, b"new", force=True)
    assert (output / "model.onnx").read_bytes() == b"new"
    assert any(".partial-" in name for name in seen) is can
    assert any(".old-" in name for name in seen) is not can
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("new", [True, False])
def test_what_a_killed_process_set_aside_is_put_back(tmp_path: Path, new: bool) -> None:
    output, aside = tmp_path / "out", tmp_path / ".out.old-0123456789abcdef"
    write_bundle(output, b"old").rename(aside)
    os.utime(aside, (1, 1))
    if new:
        write_bundle(tmp_path / "out2", b"new").rename(tmp_path / ".out.old-1123456789abcdef")
    with pytest.raises(OutputExistsError):  # what is there again needs force
        write_bundle(output, b"newer")
    assert (output / "model.onnx").read_bytes() == (b"new" if new else b"old")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["_put_in_place", "_clean_up"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_behind_the_commit_says_that_the_bundle_is_whole(
    tmp_path: Path, moment: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)  # as the command line does
    output = write_bundle(tmp_path / "out", b"old")
    step = getattr(BundleWriter, moment)

    def with_a_signal(self: BundleWriter) -> None:
        signal.raise_signal(number)
        step(self)

    monkeypatch.setattr(BundleWriter, moment, with_a_signal)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"The bundle is whole, at .*out\."):
            write_bundle(output, b"new", force=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (output / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with BundleWriter(output) as bundle:
        (bundle.path / "model.onnx").write_bytes(b"ours")
        output.mkdir()
        (output / "theirs.txt").write_text("theirs")
        with pytest.raises(OutputExistsError, match="there already"):
            bundle.commit(MANIFEST)
    assert names(tmp_path) == ["out"]
    assert names(output) == ["theirs.txt"]


def test_commit_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as bundle:
        with pytest.raises(InternalError, match="without its artifact"):
            bundle.commit(MANIFEST)
        (bundle.path / "model.onnx").write_bytes(b"x")
        (bundle.path / "weights").symlink_to("/etc/hostname")
        with pytest.raises(InternalError, match="no plain file"):
            bundle.commit(MANIFEST)
        (bundle.path / "weights").unlink()
        (bundle.path / "manifest.json").write_text("{}")
        with pytest.raises(InternalError, match="a manifest already in it"):
            bundle.commit(MANIFEST)
        (bundle.path / "manifest.json").unlink()
        bundle.commit(MANIFEST)
        with pytest.raises(InternalError, match="committed twice"):
            bundle.commit(MANIFEST)
    check_files(tmp_path / "out", read_manifest(tmp_path / "out"))


def test_a_relative_output_stays_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with BundleWriter(Path("out")) as bundle:
        (bundle.path / "model.onnx").write_bytes(b"x")
        (tmp_path / "elsewhere" / "out").mkdir(parents=True)
        (tmp_path / "elsewhere" / "out" / "mine").write_text("mine")
        monkeypatch.chdir(tmp_path / "elsewhere")
        bundle.commit(MANIFEST)
    assert names(tmp_path) == ["elsewhere", "out"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = os.environ["TESTS"].split(os.pathsep)
from test_bundle_folder import MANIFEST
from tokexport.exporter.bundle import bundle_folder as module
output, moment = Path(sys.argv[1]), sys.argv[2]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

with module.BundleWriter(output, force=True) as bundle:
    (bundle.path / "model.onnx").write_bytes(b"new" * 1000)
    if moment == "writing":
        die()
    if moment == "hashing":
        module.hash_file = die
    if moment == "renaming":
        module.BundleWriter._put_in_place = die
    if moment == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    bundle.commit(MANIFEST)
"""


def run_killed(output: Path, moment: str) -> int:
    """Compiles in a process of its own that is ended at the moment named."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(output), moment],
        env={
            **os.environ,
            "TESTS": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}",
        },
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode


#: When a process is killed.
MOMENTS = ("writing", "hashing", "renaming")


@pytest.mark.parametrize("moment", thorough_but(["renaming"], MOMENTS))
def test_a_killed_process_leaves_no_half_bundle(tmp_path: Path, moment: str) -> None:
    assert run_killed(tmp_path / "out", moment) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    write_bundle(tmp_path / "out")  # what was left is not in the way
    check_files(tmp_path / "out", read_manifest(tmp_path / "out"))


@pytest.mark.parametrize("moment", thorough_but(["writing"], MOMENTS))
def test_a_killed_replacement_keeps_the_old_bundle(tmp_path: Path, moment: str) -> None:
    output = write_bundle(tmp_path / "out", b"old")
    assert run_killed(output, moment) == -signal.SIGKILL
    check_files(output, read_manifest(output))
    assert (output / "model.onnx").read_bytes() == b"old"


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    assert run_killed(tmp_path / "out", "interrupt") == -signal.SIGINT
    assert names(tmp_path) == []


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    def fill(bundle: BundleWriter) -> None:
        (bundle.path / "weights.bin").symlink_to("/dev/full")
        (bundle.path / "weights.bin").write_bytes(bytes(1 << 20))

    with pytest.raises(WriteError) as caught, BundleWriter(tmp_path / "out") as bundle:
        fill(bundle)
    assert "The disk is full" in caught.value.what
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert "--output on another disk" in caught.value.fix
    assert names(tmp_path) == []


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
import numpy as np
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.errors import WriteError
from tokexport.runtimes.errors import BuildError
disk, how = Path(sys.argv[1]), sys.argv[2]
values = {"x": np.zeros((4, 1 << 18), np.float32)}
try:
    with BundleWriter(disk / "out") as bundle:
        if how == "reference":
            save_reference(bundle.path / "reference.npz", values, values)
        elif how == "array":  # numpy's own writer says how many items went, and no errno
            values["x"].tofile(bundle.path / "x.bin")
        elif how == "library":  # a library in C++ says so in an error of its own
            try:
                (bundle.path / "engine").write_bytes(bytes(4 << 20))
            except OSError:
                raise RuntimeError("serialisation failed") from None
        elif how == "build":
            (bundle.path / "left").write_bytes(bytes(1 << 20))
            raise BuildError("The engine cannot be serialised.")
        elif how == "asked":
            bundle.require_space(4 << 20)
except WriteError as error:
    print(error)
    print("left:", *disk.iterdir())
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """A command prefix that runs the rest with a disk of 1 MB at ``tmp_path/disk``."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m,"$MODE" none "{disk}" && exec "$@"'
    for namespace in (["unshare", "-m"], ["unshare", "-rm"]):
        prefix = [*namespace, "sh", "-c", mount, "sh"]
        tried = subprocess.run(
            [*prefix, "true"], env={**os.environ, "MODE": "rw"}, capture_output=True, check=False
        )
        if tried.returncode == 0:
            return prefix
    pytest.skip("this user may not mount a file system of its own")


def run_on_small_disk(prefix: list[str], disk: Path, how: str, mode: str = "rw") -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", ON_A_SMALL_DISK, str(disk), how],
        env={**os.environ, "MODE": mode},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "how", thorough_but(["library", "build"], ["reference", "array", "library", "build"])
)
def test_a_disk_that_fills_up_is_said_so(tmp_path: Path, small_disk: list[str], how: str) -> None:
    said = run_on_small_disk(small_disk, tmp_path / "disk", how)
    assert "The disk is full: 0 B are free." in said
    assert said.endswith("left:\n")


def test_a_disk_too_small_is_refused_before_writing(tmp_path: Path, small_disk: list[str]) -> None:
    said = run_on_small_disk(small_disk, tmp_path / "disk", "asked")
    assert "needs 4.2 MB, and only 1.0 MB are free" in said


def test_a_read_only_disk_is_said_so(tmp_path: Path, small_disk: list[str]) -> None:
    said = run_on_small_disk(small_disk, tmp_path / "disk", "reference", mode="ro")
    assert "Read-only file system" in said


AS_NOBODY = """
import os, sys
from pathlib import Path
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.errors import WriteError
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    with BundleWriter(Path(sys.argv[1])):
        print("entered")
except WriteError as error:
    print(error)
"""


@pytest.mark.parametrize("parent", ["mine", "/"])
def test_a_parent_that_may_not_be_written_is_said_so(tmp_path: Path, parent: str) -> None:
    (tmp_path / "mine").mkdir(mode=0o000)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(tmp_path / parent / "tokexport-out")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "cannot be written: Permission denied" in done.stdout, done.stderr
    assert "Check the permissions" in done.stdout


def test_a_signal_while_a_folder_is_made_leaves_none(tmp_path: Path) -> None:
    def make() -> Path:
        path = tmp_path / "made"
        path.mkdir()
        signal.raise_signal(signal.SIGINT)
        return path

    with pytest.raises(KeyboardInterrupt):
        HeldFolder(make)
    assert names(tmp_path) == []
