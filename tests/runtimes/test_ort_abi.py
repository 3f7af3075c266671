"""The declared slice of ONNX Runtime's C interface against the real header."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "runtimes" / "native"
PLACES = (ROOT / "build" / "ort-headers", Path("/usr/include/onnxruntime"))


def compiled(header: Path, abi: Path) -> subprocess.CompletedProcess[str]:
    """Compiles the check with a declaration of the interface."""
    check = Path(__file__).with_name("ort_abi_check.cpp")
    command = ["c++", "-std=c++20", "-fsyntax-only", f"-I{header}", f"-I{abi}", str(check)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def header() -> Path:
    found = [place for place in PLACES if (place / "onnxruntime_c_api.h").is_file()]
    if not found or shutil.which("c++") is None:
        pytest.skip("no header or compiler here: ci/ort_headers.sh fetches the header")
    return found[0]


def test_every_entry_has_its_place_and_signature(header: Path) -> None:
    done = compiled(header, NATIVE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Entry<90, ", "Entry<89, "),
        ("(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)", "(OrtValue*, int64_t*, size_t)"),
        ("  int (*GetInputMemoryType)(const CustomOp*, size_t);\n", ""),
        ("kInt64 = 7", "kInt64 = 6"),
    ],
)
def test_a_wrong_declaration_is_found(header: Path, tmp_path: Path, right: str, wrong: str) -> None:
    text = (NATIVE / "ort" / "abi.h").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "ort").mkdir()
    (tmp_path / "ort" / "abi.h").write_text(text.replace(right, wrong), encoding="utf-8")
    done = compiled(header, tmp_path)
    assert done.returncode != 0
    assert "ort/abi.h" in done.stderr or "static assertion" in done.stderr
