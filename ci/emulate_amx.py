"""Runs a Python program whose OpenVINO meets a processor with AMX, on one without: slow, and exact.

    python ci/emulate_amx.py my_program.py its arguments
    python ci/emulate_amx.py -m pytest -p no:faulthandler tests/exporter/openvino_graph

The processor has AVX-512, and gcc and objdump are there. OpenVINO asks the processor what it has by
the instruction ``cpuid``: a copy of it, in a folder that goes away, asks ``ci/emulate_amx.c``
instead, which also computes the products of tiles, one at a time. The numbers are those of a
processor with AMX in float32, bf16 and int8; its instructions for fp16 are not there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = ("libopenvino.so.*", "libopenvino_intel_cpu_plugin.so")
#: The instructions that report a processor's features, and their replacements of the same length.
ASKING = {
    "cpuid": (b"\x0f\xa2", b"\x0f\x0b"),
    "xgetbv": (b"\x0f\x01\xd0", b"\x0f\x0b\x90"),
}
_QUESTION = re.compile(r"^\s*([0-9a-f]+):\s+(cpuid|xgetbv)\b", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Runs Python with these arguments; returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="amx-") as name:
        folder = Path(name)
        emulator = folder / "emulate_amx.so"
        source = Path(__file__).with_suffix(".c")
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-fno-strict-aliasing"]
        subprocess.run(["gcc", *flags, "-o", emulator, source], check=True)
        copy_openvino(folder / "packages")
        paths = [str(folder / "packages"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "LD_PRELOAD": str(emulator),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        return subprocess.run([sys.executable, *arguments], env=environment).returncode


def copy_openvino(packages: Path) -> None:
    """Copies the installed OpenVINO, its questions to the processor replaced."""
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None:
        sys.exit("There is no openvino to run.")
    shutil.copytree(Path(found.origin).parent, packages / "openvino")
    metadata = importlib.metadata.distribution("openvino").locate_file("")
    for folder in Path(str(metadata)).glob("openvino-*.dist-info"):
        shutil.copytree(folder, packages / folder.name)
    for pattern in LIBRARIES:
        for library in (packages / "openvino" / "libs").glob(pattern):
            replace_questions(library)


def replace_questions(library: Path) -> None:
    """Replaces the asking instructions of a library, in place."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    code = bytearray(library.read_bytes())
    for place, kind in _QUESTION.findall(listed):
        at, (before, after) = int(place, 16), ASKING[kind]
        if code[at : at + len(before)] != before:  # the code does not lie where it is loaded
            sys.exit(f"{library.name} has no {kind} at {place}.")
        if kind == "cpuid" and code[at + 2] == 0x90:  # the two would look the same
            sys.exit(f"{library.name} goes on with a nop behind the cpuid at {place}.")
        code[at : at + len(after)] = after
    library.write_bytes(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
