"""Files of arrays that others wrote: read as they are, or refused in words, and never for long."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from random import Random

import numpy as np
import pytest

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.files.array_archive import Archive, ArchiveError, read_npy

ARRAYS: dict[str, Array] = {
    "x": np.arange(12, dtype=np.float32).reshape(3, 4),
    "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "none": np.empty((0, 7), np.float16),
    "one": np.array(3.5),
    "names": np.array(["cat", "dog"]),
    "a/b": np.array([True, False]),
}


def saved(*, packed: bool = False, **arrays: Array) -> io.BytesIO:
    """Returns an ``.npz`` as NumPy writes it."""
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)  # type: ignore[arg-type]
    file.seek(0)
    return file


def of_member(content: bytes, name: str = "x.npy", kind: int = zipfile.ZIP_STORED) -> io.BytesIO:
    """Returns an archive of one member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr(name, content)
    file.seek(0)
    return file


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """Returns the head of an ``.npy`` that says a text."""
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


@pytest.mark.parametrize("packed", [False, True])
def test_it_reads_what_numpy_writes(packed: bool) -> None:
    archive = Archive(saved(packed=packed, **ARRAYS))
    assert archive.names == tuple(ARRAYS)
    for name, array in ARRAYS.items():
        found = archive.read(name)
        np.testing.assert_array_equal(found, array, strict=True)
    with io.BytesIO() as file:
        np.save(file, ARRAYS["turned"])
        np.testing.assert_array_equal(read_npy(file), ARRAYS["turned"], strict=True)


def _flagged(file: io.BytesIO, at: int, value: int) -> io.BytesIO:
    """Returns an archive with a field of all its central headers changed."""
    content = bytearray(file.getvalue())
    place = content.find(b"PK\x01\x02")
    content[place + at : place + at + 2] = struct.pack("<H", value)
    return io.BytesIO(bytes(content))


def _twice() -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", b"")
    return file


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}"
REFUSED = {
    "encrypted": (lambda: _flagged(saved(x=ARRAYS["x"]), 8, 1), "encrypted"),
    "another compression": (lambda: _flagged(saved(x=ARRAYS["x"]), 10, 12), "compressed in a way"),
    "a name twice": (_twice, "two arrays named 'x'"),
    "no array": (lambda: of_member(b"text", "notes.txt"), "not an .npz"),
    "no archive": (lambda: io.BytesIO(b"PK\x03\x04 and no more"), "not a zip file"),
    "no magic": (lambda: of_member(b"text"), "magic"),
    "an endless shape": (lambda: of_member(header(FLOATS % "2**60,")), "header"),
    "a huge shape": (lambda: of_member(header(FLOATS % "1000000000000,")), "bytes are there"),
    "a shape that wraps": (
        lambda: of_member(header(FLOATS % "4294967296, 4294967296")),
        "bytes are there",
    ),
    "less than nothing": (lambda: of_member(header(FLOATS % "-1,")), "its shape is"),
    "true": (lambda: of_member(header(FLOATS % "True,") + b"0000"), "its shape is"),
    "parentheses": (lambda: of_member(header("(" * 9_000)), "header"),
    "an endless header": (lambda: of_member(header(FLOATS % ("1," * 20_000))), "header"),
    "a version to come": (lambda: of_member(header("{}", (9, 0))), "not known"),
    "python objects": (lambda: saved(x=np.array([{}], dtype=object)), "python objects"),
    "structures": (lambda: saved(x=np.zeros(2, "f4,f4")), "not one of numbers"),
    "dates": (lambda: saved(x=np.zeros(2, "M8[s]")), "not one of numbers"),
    "more bytes than numbers": (lambda: of_member(header(FLOATS % "1,") + b"00000"), "are there"),
}


def read_all(file: io.BytesIO) -> dict[str, Array]:
    """Reads all arrays of an archive."""
    archive = Archive(file)
    return {name: archive.read(name) for name in archive.names}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_is_refused(kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ArchiveError, match=said):
        read_all(make())


def test_what_is_packed_is_refused_where_it_should_not_be() -> None:
    with pytest.raises(ArchiveError, match="compressed"):
        Archive(saved(packed=True, x=ARRAYS["x"]), packed=False)


def test_what_nobody_asks_for_takes_no_memory() -> None:
    file = saved(packed=True, small=ARRAYS["x"], large=np.zeros(40_000_000, np.uint8))
    assert len(file.getvalue()) < 100_000
    tracemalloc.start()
    Archive(file).read("small")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


def test_damaged_files_are_refused_or_read_as_they_were() -> None:
    random, refused = Random(0), 0
    whole = saved(**ARRAYS).getvalue()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(random.choice((1, 1, 2, 8))):
            content[random.randrange(len(content))] = random.randrange(256)
        if random.random() < 0.2:
            del content[random.randrange(len(content)) :]
        try:
            for name, found in read_all(io.BytesIO(bytes(content))).items():
                if name in ARRAYS:  # else the name is what was damaged
                    np.testing.assert_array_equal(found, ARRAYS[name])
        except ArchiveError:
            refused += 1
    assert 100 < refused < 400


def test_an_archive_that_unpacks_without_end_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", bytes(70 << 20))
    with pytest.raises(ArchiveError, match="bytes unpack to 73,400,320"):
        Archive(file)
