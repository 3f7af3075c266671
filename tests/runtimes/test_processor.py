from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tokexport.runtimes.processor import instruction_set, sums_saturate


@pytest.mark.parametrize(
    ("flags", "machine", "saturate"),
    [
        ("fpu avx2 avx512f avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "x86_64", False),
        ("fpu avx2 avx512f", "x86_64", True),
        ("fp asimd", "aarch64", False),
    ],
)
def test_sums_of_products_saturate_on_x86_without_vnni(
    flags: str, machine: str, saturate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert sums_saturate(tmp_path / "cpuinfo") == saturate
    assert not sums_saturate(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "machine", "name"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", "x86_64", "avx512_vnni"),
        ("flags : fpu", "x86_64", "x86_64"),
        ("Features : fp asimd", "aarch64", "neon"),
        ("Features : fp asimd asimddp", "aarch64", "dotprod"),
        ("Features : fp asimd asimddp i8mm", "aarch64", "i8mm"),
        # As under an emulator that shows the file of the processor below it.
        ("flags : fpu avx2 avx512f avx512_vnni", "aarch64", "aarch64"),
    ],
)
def test_a_processor_is_called_by_its_widest_instruction_set(
    line: str, machine: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    assert instruction_set(tmp_path / "cpuinfo") == name
