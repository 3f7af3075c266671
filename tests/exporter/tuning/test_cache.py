"""The file that remembers which form was fastest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokexport.exporter.errors import UsageError
from tokexport.exporter.tuning.cache import FILE_NAME, FormCache, cache_folder
from tokexport.exporter.tuning.choices import TunedForm

HERE: dict[str, str | int] = {"processor": "P", "threads": 2, "runtime": "onnxruntime 1.0"}
FORM = TunedForm("scatter", "one-hot", 1.5, 1.4, 1.6, 1.55, {"one-hot": 30.0, "scatter": 20.0})
FORMS = ("one-hot", "scatter")
CALL = "merge_tokens_sum(1×4×3, …)"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's file, in a folder that is not there yet, holding one form once it is filled."""
    monkeypatch.setenv("TOKEXPORT_CACHE", str(tmp_path / "made" / "cache"))
    return tmp_path / "made" / "cache" / FILE_NAME


def fill() -> None:
    cache = FormCache(HERE)
    cache.put(CALL, FORM)
    cache.save()
    assert cache.warnings == []


def test_what_was_measured_is_found_again(file: Path) -> None:
    assert FormCache(HERE).get(CALL, FORMS) is None
    fill()
    cache = FormCache(HERE)
    assert cache.path == file
    assert cache.get(CALL, FORMS) == FORM
    assert cache.get("another call", FORMS) is None
    assert {path.name for path in file.parent.iterdir()} == {FILE_NAME, f"{FILE_NAME}.lock"}


@pytest.mark.parametrize(
    "other", [{"processor": "Q"}, {"threads": 3}, {"runtime": "onnxruntime 1.1"}, {"kernels": "x"}]
)
def test_another_environment_sees_nothing_of_it(file: Path, other: dict[str, str | int]) -> None:
    fill()
    cache = FormCache(HERE | other)
    assert cache.get(CALL, FORMS) is None
    cache.put(CALL, FORM)
    cache.save()
    assert FormCache(HERE).get(CALL, FORMS) == FORM
    assert len(json.loads(file.read_text())) == 2


def test_two_that_write_at_once_keep_both(file: Path) -> None:
    first, second = FormCache(HERE), FormCache(HERE)
    first.put("a", FORM)
    second.put("b", FORM)
    first.save()
    second.save()
    assert FormCache(HERE).get("a", FORMS) == FormCache(HERE).get("b", FORMS) == FORM


SAVES = """
import sys
from tokexport.exporter.tuning.choices import TunedForm
from tokexport.exporter.tuning.cache import FormCache
form = TunedForm("scatter", "one-hot", 1.5, 1.4, 1.6, 1.55, {"one-hot": 30.0, "scatter": 20.0})
for i in range(40):
    cache = FormCache({"processor": "P"})
    cache.put(f"{sys.argv[1]} {i}", form)
    cache.save()
    assert cache.warnings == []
"""


def test_processes_that_write_at_once_keep_all(file: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", SAVES, str(i)]) for i in range(6)]
    assert [process.wait(timeout=300) for process in processes] == [0] * 6
    (saved,) = json.loads(file.read_text()).values()
    assert len(saved) == 240


@pytest.mark.parametrize(
    "content", [b"", b'{"a": ', b"[1]", b'{"a": 1}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_file_is_left_aside_with_a_warning_and_written_anew(
    file: Path, content: bytes
) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    cache = FormCache(HERE)
    assert cache.get(CALL, FORMS) is None
    cache.put(CALL, FORM)
    cache.save()
    (warning,) = cache.warnings
    assert str(file) in warning
    assert "left aside" in warning
    assert FormCache(HERE).get(CALL, FORMS) == FORM


@pytest.mark.parametrize(
    "change",
    [
        {"form": "no-such-form"},
        {"form": 3},
        {"standard": "scatter"},
        {"speedup": "fast"},
        {"speedup": -1.0},
        {"low": None},
        {"of_minima": True},
        {"of_minima": 0},
        {"high": float("inf")},
        {"times_us": {"one-hot": 30.0, "gone": 1.0}},
        {"times_us": []},
    ],
)
def test_a_damaged_entry_is_measured_anew(file: Path, change: dict[str, Any]) -> None:
    fill()
    data = json.loads(file.read_text())
    next(iter(data.values()))[CALL].update(change)
    file.write_text(json.dumps(data))
    cache = FormCache(HERE)
    assert cache.get(CALL, FORMS) is None
    (warning,) = cache.warnings
    assert CALL in warning


def test_an_entry_that_is_no_object(file: Path) -> None:
    fill()
    data = json.loads(file.read_text())
    next(iter(data.values()))[CALL] = "scatter"
    file.write_text(json.dumps(data))
    assert FormCache(HERE).get(CALL, FORMS) is None


def test_a_folder_that_cannot_be_written_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOKEXPORT_CACHE", str(tmp_path / "file" / "cache"))
    cache = FormCache(HERE)
    cache.put(CALL, FORM)
    cache.save()
    assert any("cannot be written" in warning for warning in cache.warnings)


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOKEXPORT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "tokexport"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "tokexport"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "tokexport"
    monkeypatch.setenv("TOKEXPORT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_without_a_home_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TOKEXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="no home folder") as caught:
        FormCache(HERE)
    assert "TOKEXPORT_CACHE" in caught.value.fix
