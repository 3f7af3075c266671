"""Files that others wrote: regular ones are read, and nothing else is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokexport.runtimes.files.regular_files import open_regular, read_at_most


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_at_most(tmp_path / name, 4) == b"1234"
        with open_regular(tmp_path / name) as file:
            assert file.read(2) == b"12"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_at_most(tmp_path / "file", 3)


def test_nothing_else_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "itself").symlink_to("itself")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="a pipe, a socket or a device"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(tmp_path / "itself")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before
