"""Locks and parity are items of pytest: run by a pytest of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.cli import MODELS, compile_model, tokexport
from helpers.torchvision_ops import child_environment

from tokexport.runtimes.signatures import KEY_VARIABLE

TEST = f"""
import pytest
from {MODELS} import plain_vit

@pytest.mark.tokexport(
    target=("ort", "openvino"), reduce="tome:r=4", lock="models.lock.json"
)
def test_vit(parity):
    model, example = plain_vit()
    result = parity(model, example)
    assert result.report.token_schedule == (37, 33, 29)
"""


DRIFT = "tokexport.exporter.pytest_plugin.outcomes.ParityDriftWarning"
#: Of an editable install pytest finds the finder imported before it could look at its asserts.
EDITABLE = ("-W", "ignore:Module already imported so cannot be rewritten")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its lock, and JSON that is none."""
    folder = tmp_path_factory.mktemp("made")
    answer = compile_model(f"{MODELS}:plain_vit", folder / "vit", "--reduce", "tome:r=4")
    assert answer.code == 0, answer
    assert tokexport("lock", folder / "vit", "--file", folder / "parity.lock.json").code == 0
    (folder / "package.lock.json").write_text('{"packages": {}}')
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def run(folder: Path, *options: object, code: int = 0) -> str:
    """Runs pytest in a folder; returns what it prints."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, "--rootdir", ".", *EDITABLE, *map(str, options)],
        env=child_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def locked_elsewhere(folder: Path) -> None:
    """Makes the lock one of another runtime, in which the error was smaller."""
    path = folder / "parity.lock.json"
    data = json.loads(path.read_text())
    for one in data["bundles"]["vit"]["measured"][0]["outputs"].values():
        one["share_of_allowed"], one["rms"] = 1e-4, 1e-9
    data["bundles"]["vit"]["measured"][0]["environment"]["version"] = "1.31.0"
    path.write_text(json.dumps(data))


def test_a_bundle_of_a_lock_is_an_item(made: Path) -> None:
    printed = run(made, "-v", "--junit-xml", "junit.xml")
    assert "parity.lock.json::vit[ort-fp32] PASSED" in printed
    assert "1 passed" in printed
    (case,) = ElementTree.parse(made / "junit.xml").iter("testcase")
    assert case.get("name") == "vit[ort-fp32]"
    assert case.find("properties/property[@name='tokexport_outcome']") is not None
    assert "1 deselected" in run(made, "-k", "other", code=5)


def test_a_drift_warns_and_fails_under_strict(copy: Path) -> None:
    locked_elsewhere(copy)
    assert "ParityDriftWarning" in run(copy)
    assert "drift: environment" in run(copy, "--tokexport-strict", code=1)
    run(copy, "--tokexport-update")
    assert "1 passed" in run(copy, "--tokexport-strict")


def test_a_break_fails_without_a_traceback(copy: Path) -> None:
    path = copy / "vit" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["precision"] = "bf16"
    path.write_text(json.dumps(manifest))
    printed = run(copy, code=1)
    assert "break: precision fp32 → bf16" in printed
    assert "Traceback" not in printed
    assert ".py:" not in printed


def test_a_damaged_lock_is_an_error_not_silence(copy: Path) -> None:
    (copy / "parity.lock.json").write_text("<<<<<<< HEAD\n{")
    assert "The lock cannot be read" in run(copy, code=2)


def test_a_lock_is_not_written_by_several_processes(copy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--tokexport-update"],
        env=child_environment(),
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "without -n" in done.stderr


def test_the_fixture_compiles_for_each_target_and_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "nowhere.pem")  # which is not asked of bundles of its own
    (tmp_path / "test_vit.py").write_text(TEST)
    assert "The lock does not exist." in run(tmp_path, "-k", "ort-fp32", code=1)
    run(tmp_path, "--tokexport-update", "--strict-markers")
    locked = json.loads((tmp_path / "models.lock.json").read_text())["bundles"]
    names = {f"test_vit.py::test_vit[{target}-fp32]" for target in ("ort", "openvino")}
    assert {*locked} == names
    assert "1 passed" in run(tmp_path, "-k", "openvino", "-W", f"error::{DRIFT}")
    (tmp_path / "test_vit.py").write_text(TEST.replace("r=4", "r=2").replace("33, 29", "35, 33"))
    assert "break: token reduction tome:r=4 → tome:r=2" in run(
        tmp_path, "test_vit.py", "-k", "ort-fp32", code=1
    )


OTHERS = """
import pytest

@pytest.mark.parametrize("parity", [0, 1])
def test_a_parameter_of_that_name(parity):
    assert parity in (0, 1)

class TestOwn:
    @pytest.fixture
    def parity(self):
        return "even"

    def test_a_fixture_of_that_name(self, parity):
        assert parity == "even"

def test_asked_for_later(request):
    assert request.getfixturevalue("parity").options == {"target": "ort", "precision": "fp32"}

@pytest.mark.tokexport("openvino")
def test_options_without_a_name(parity):
    pass
"""


def test_suites_that_use_the_name_for_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "test_others.py").write_text(OTHERS)
    printed = run(tmp_path, "--deselect", "test_others.py::test_options_without_a_name", code=2)
    assert "takes options by name" in printed
    (tmp_path / "test_others.py").write_text(OTHERS.partition("@pytest.mark.tokexport")[0])
    assert "4 passed" in run(tmp_path)


def test_the_plugin_loads_neither_torch_nor_a_runtime() -> None:
    program = (
        "import sys, tokexport.exporter.pytest_plugin.plugin\n"
        "loaded = {'torch', 'onnx', 'onnxruntime', 'openvino', 'numpy', 'rich'} & {*sys.modules}\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], env=child_environment(), check=True)
