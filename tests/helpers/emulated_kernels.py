"""Runs the operators of the native kernels on an emulated processor of another architecture.

The program is operator_server.cpp, linked with the kernels as they are built for that architecture;
an emulator runs it, or nothing where the processor at hand can.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pytest
from helpers.function_models import Call
from helpers.token_cases import Array

from tokexport.graph_passes.ops import onnx_functions as functions
from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import RunError

#: Names the command that answers requests: an emulator with its options, and the program.
VARIABLE: Final = "TOKEXPORT_EMULATED"
#: What the build calls the compiler and the emulator of Debian.
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

_ROOT = Path(__file__).parents[2]
_UNPACKED = _ROOT / "build" / "aarch64" / "bin"
_LETTERS = {"float32": "f", "int64": "i", "int8": "b"}
_TYPES = {letter: np.dtype(name) for name, letter in _LETTERS.items()}


def tool(name: str) -> str:
    """Returns a compiler or emulator; the test is skipped only where ``make`` fetched none."""
    found = shutil.which(name) or shutil.which(name, path=str(_UNPACKED))
    if found is None:
        pytest.skip(f"no {name} here: ci/aarch64.sh fetches it, and make test runs that")
    return found


def emulated_command() -> list[str]:
    """Returns the command that the environment names; nothing where it names none."""
    return shlex.split(os.environ.get(VARIABLE, ""))


def build_server(folder: Path) -> Path:
    """Builds the kernels and the program for aarch64 in a folder, and returns the program."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake, compiler = shutil.which("cmake", path=places), tool(COMPILER)
    assert cmake is not None, "pip install cmake"
    native = _ROOT / "runtimes" / "native"
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    _done(cmake, "-S", native, "-B", folder, *system, f"-DCMAKE_CXX_COMPILER={compiler}")
    _done(cmake, "--build", folder, "--parallel", "2")
    return link_server(folder, compiler)


def link_server(folder: Path, compiler: str) -> Path:
    """Links the program with the objects of the library that was built in a folder."""
    built = folder / "CMakeFiles"
    objects = [
        path
        for place in built.glob("*.dir")
        if place.name != "tokexport_openvino.dir"
        for path in place.rglob("*.o")
        if "/ort/" not in path.as_posix()
    ]
    program = folder / "operator_server"
    source = _ROOT / "tests" / "runtimes" / "operator_server.cpp"
    include = f"-I{_ROOT / 'runtimes' / 'native'}"
    options = ("-std=c++20", "-O1", "-Wall", "-Wextra", "-static", include)
    _done(compiler, *options, source, *objects, "-o", program)
    return program


def _done(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kernels_on(command: Sequence[str]) -> str:
    """Returns the instruction set whose kernels the program chose."""
    done = subprocess.run(command, input=b"", capture_output=True, check=True)
    return done.stdout.decode().strip()


class EmulatedRunner(Runner):
    """Runs calls on the emulated processor, one after another.

    Args:
        command: The emulator and the program.
        calls: What the model is made of.
    """

    def __init__(self, command: Sequence[str], calls: Sequence[Call]) -> None:
        self._calls = list(calls)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        details: dict[str, str | int | list[str]] = {
            "kernels": self._reply().readline().decode().strip()
        }
        arrays = [array for call in calls for array in call.inputs]
        inputs = tuple(
            TensorSpec(f"in{i}", array.shape, str(array.dtype)) for i, array in enumerate(arrays)
        )
        super().__init__(inputs, (), RuntimeInfo("ort", "emulated", "0", details))

    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        given = iter(arrays.values())
        found: dict[str, Array] = {}
        for position, call in enumerate(self._calls):
            results = self._answer(call, [next(given) for _ in call.inputs])
            names = [name for name, _ in functions.signatures()[call.name].outputs]
            for i in call.read or range(len(names)):
                found[f"{names[i]}_{position}"] = results[i]
        return found

    def _answer(self, call: Call, inputs: Sequence[Array]) -> list[Array]:
        assert self._process.stdin is not None
        self._process.stdin.write(_request(call.name, call.attributes, inputs))
        self._process.stdin.flush()
        reply = self._reply()
        verdict, _, text = reply.readline().decode().strip().partition(" ")
        if verdict != "ok":
            raise RunError(text or "The emulated program ended.", where=call.name)
        return [_array(reply) for _ in functions.signatures()[call.name].outputs]

    def _reply(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def _close_impl(self) -> None:
        self._process.communicate()


def _request(name: str, attributes: Mapping[str, object], inputs: Sequence[Array]) -> bytes:
    lines = [f"operator {name}\n".encode()]
    for key, value in attributes.items():
        if isinstance(value, float):
            lines.append(f"real {key} {value!r}\n".encode())
        else:
            assert isinstance(value, Sequence)
            lines.append(f"counts {key} {' '.join(map(str, value))}\n".encode())
    for array in inputs:
        sizes = " ".join(map(str, array.shape))
        lines += [f"input {_LETTERS[str(array.dtype)]} {sizes}\n".encode(), array.tobytes()]
    return b"".join([*lines, b"run\n"])


def _array(reply: BinaryIO) -> Array:
    letter, *sizes = reply.readline().decode().split()
    shape = tuple(map(int, sizes))
    raw = reply.read(prod(shape) * _TYPES[letter].itemsize)
    return np.frombuffer(raw, _TYPES[letter]).reshape(shape)
