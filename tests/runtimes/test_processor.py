from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tokexport.runtimes.processor import sums_saturate


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
