"""Builds the example programs in C++ and JavaScript, and runs them as a person does."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
_EXAMPLES, _BUILD = ROOT / "examples", ROOT / "build"
_HEADERS = (_BUILD / "ort-headers", Path("/usr/include/onnxruntime"))


@dataclass(frozen=True)
class Classifier:
    """A program that prints the classes of pictures.

    Attributes:
        command: What starts it.
    """

    command: tuple[str, ...]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs it."""
        return subprocess.run(
            [*self.command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def pictures(self, *arguments: object) -> list[dict[str, Any]]:
        """Returns the pictures that it prints with ``--json``, as ``run --json`` has them."""
        done = self.run("--json", *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert list(found) == ["pictures"]
        pictures: list[dict[str, Any]] = found["pictures"]
        return pictures

    def refusal(self, *arguments: object) -> str:
        """Returns the one line by which it refuses arguments."""
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (1, ""), done
        (line,) = done.stderr.splitlines()
        assert line.startswith("classify: ")
        return line


def cpp_classifier(folder: Path) -> Classifier:
    """Builds examples/cpp in a folder with the libonnxruntime of this Python.

    The test fails where a part of it is missing, and says what fetches it.
    """
    headers = [place for place in _HEADERS if (place / "onnxruntime_c_api.h").is_file()]
    _need(bool(headers), "header of ONNX Runtime", "ci/ort_headers.sh")
    cmake = _program("cmake", "pip install cmake")
    _program("c++", "apt install g++")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*"))
    given = {
        "ORT_HEADERS": headers[0],
        "ORT_LIBRARY": library,
        "CMAKE_PREFIX_PATH": _BUILD / "cpp-packages" / "usr",
    }
    options = [f"-D{name}={value}" for name, value in given.items()]
    configure: list[str | Path] = ["-S", _EXAMPLES / "cpp", "-B", folder, *options]
    for arguments in (configure, ["--build", folder]):
        done = subprocess.run([cmake, *arguments], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        missing = any(name in said for name in ("JSON_INCLUDE ", "find PNG ", "find OpenSSL,"))
        _need(not missing, "header of nlohmann-json, libpng or OpenSSL", "ci/cpp_packages.sh")
        assert done.returncode == 0, said
        assert "warning" not in said.lower(), said
    return Classifier((str(folder / "classify"),))


def node_classifier(folder: Path) -> Classifier:
    """Copies examples/javascript into a folder, beside the packages that npm fetched.

    The test fails where Node.js or a package is missing, and says what fetches it.
    """
    packages = _BUILD / "javascript" / "node_modules"
    node = _program("node", "apt install nodejs npm")
    _need(packages.is_dir(), "package of examples/javascript", "ci/node_packages.sh")
    shutil.copytree(_EXAMPLES / "javascript", folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(packages)
    return Classifier((node, str(folder / "classify.js")))


def _program(name: str, fix: str) -> str:
    found = shutil.which(name)
    _need(found is not None, name, fix)
    return str(found)


def _need(there: bool, what: str, fix: str) -> None:
    if not there:
        pytest.fail(f"no {what} here: {fix} fetches it, or `make test`", pytrace=False)
