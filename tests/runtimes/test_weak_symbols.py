"""Code of one instruction set stays in its namespace, so that the linker mixes it with no other.

An inline function that two files compile is a weak symbol in both, of which the linker keeps one:
a processor without AVX-512 could be handed the copy with AVX-512. So whatever a kernel calls out of
line has the namespace of its instruction set in its name. Without optimisation every inline
function that is called becomes a symbol, so that no choice of the compiler hides one.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.emulated_kernels import COMPILER, tool

NATIVE = Path(__file__).parents[2] / "runtimes" / "native"


@dataclass(frozen=True)
class Build:
    """How the kernels of one instruction set are compiled."""

    isa: str
    lanes: int
    flags: tuple[str, ...]
    compiler: str = "c++"


AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
X86 = Build("avx512vnni", 16, ("-mavx2", "-mfma", *AVX512))
ARM = Build("neon_i8mm", 4, ("-march=armv8.2-a+dotprod+i8mm",), COMPILER)
#: Tells nm's letters of symbols that the linker may take from another file: weak and unique ones.
WEAK = set("WwVvu")


def weak_symbols(source: Path, folder: Path, build: Build) -> list[str]:
    """Returns the weak symbols that a file defines, compiled without optimisation."""
    if shutil.which("c++") is None or shutil.which("nm") is None:
        pytest.skip("no compiler here")
    compiled = folder / "kernels.o"
    defined = (f"-DTOKEXPORT_ISA={build.isa}", f"-DTOKEXPORT_WIDTH={build.lanes}")
    options = ("-std=c++20", "-O0", "-w", *defined, *build.flags)
    compiler = "c++" if build.compiler == "c++" else tool(build.compiler)
    built = subprocess.run(
        [compiler, *options, f"-I{NATIVE}", "-c", source, "-o", compiled],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized" in built.stderr or "unknown argument" in built.stderr:
        pytest.skip(f"the compiler does not know {build.isa}")
    assert built.returncode == 0, built.stderr
    listed = subprocess.run(
        ["nm", "--defined-only", "--demangle", compiled], capture_output=True, text=True, check=True
    )
    found = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [name for _, kind, name in found if kind in WEAK]


def leaving(symbols: list[str], isa: str) -> list[str]:
    """Returns those that have no instruction set in their name."""
    return [name for name in symbols if f"tokexport::{isa}::" not in name]


@pytest.mark.parametrize("build", [X86, ARM], ids=["x86", "arm"])
def test_no_weak_symbol_leaves_its_instruction_set(build: Build, tmp_path: Path) -> None:
    symbols = weak_symbols(NATIVE / "kernels" / "kernels.cpp", tmp_path, build)
    assert any("attention_task" in name for name in symbols)
    assert leaving(symbols, build.isa) == []


def test_a_function_of_the_standard_library_is_found(tmp_path: Path) -> None:
    source = tmp_path / "planted.cpp"
    source.write_text(
        '#include <algorithm>\n#include "kernels/simd.h"\n'
        f"namespace tokexport::{X86.isa} {{\n"
        "float planted(float* numbers) {\n"
        "  std::sort(numbers, numbers + 8);\n"
        "  return reduce_add(load(numbers));\n"
        "}\n}\n",
        encoding="utf-8",
    )
    symbols = weak_symbols(source, tmp_path, X86)
    assert any("reduce_add" in name for name in symbols)
    assert any("std::sort" in name or "std::__sort" in name for name in leaving(symbols, X86.isa))
