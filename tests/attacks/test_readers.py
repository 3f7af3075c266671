"""What reads files of others gives an answer or a refusal of its own, whatever they hold.

These readers cost little a file, so Hypothesis looks for the smallest one that they fail on.
"""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attacks.wire import damage_message, fields, written
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.array_archive import Archive, ArchiveError, read_npy
from tokexport.runtimes.files.ir_contents import check_ir
from tokexport.runtimes.files.onnx_contents import ContentsError, onnx_contents
from tokexport.runtimes.printable import printable

BUNDLE = Path(__file__).parents[1] / "bundles" / "least_cosine"
FIELDS = json.loads((BUNDLE / "manifest.json").read_text())
MODEL = (BUNDLE / "model.onnx").read_bytes()
FEW = settings(max_examples=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
TAGS = st.sampled_from(("layer", "input", "port", "edge", "data", "x"))
NAMES = st.sampled_from(("id", "type", "to-layer", "to-port", "offset", "size"))
ELEMENTS = st.tuples(
    TAGS, st.dictionaries(NAMES, st.sampled_from(("0", "1", "-1", "Const", "x", "9" * 30)))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


@FEW
@given(st.sampled_from(sorted(FIELDS)), JSON)
def test_any_json_in_any_field_of_a_manifest(folder: Path, field: str, value: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(FIELDS | {field: value}))
    said = ""
    try:
        read_manifest(folder)
    except BundleError as error:
        said = str(error)
    assert printable(said) == said


@FEW
@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda end: b"PK\x05\x06" + end))
def test_any_bytes_as_a_manifest_an_archive_and_an_array(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        read_manifest(folder)
    with suppress(ArchiveError):
        assert Archive(io.BytesIO(content)).names == ()
    with pytest.raises(ArchiveError):
        read_npy(io.BytesIO(content))


@FEW
@given(st.text(max_size=80) | st.from_regex(r"\{'descr': '[<|>][a-zA-Z][0-9]{0,3}', .{0,40}\}"))
def test_any_header_of_an_array(header: str) -> None:
    said = header.encode()
    content = b"\x93NUMPY\x02\x00" + len(said).to_bytes(4, "little") + said + bytes(8)
    with suppress(ArchiveError):
        assert read_npy(io.BytesIO(content)).nbytes == 8


@FEW
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_any_damage_to_a_message_of_onnx(folder: Path, seed: int, times: int) -> None:
    content, random = MODEL, Random(seed)
    for _ in range(times):
        content = damage_message(content, random)[0]
    path = folder / "model.onnx"
    path.write_bytes(content)
    with suppress(ContentsError):
        onnx_contents(path)


@FEW
@given(st.lists(ELEMENTS, max_size=8), st.integers(0, 8))
def test_any_elements_of_an_ir(folder: Path, elements: list[Any], open_ones: int) -> None:
    parts = [
        f"<{tag} {' '.join(f'{name}={value!r}' for name, value in given.items())}>"
        for tag, given in elements
    ]
    ends = [f"</{tag}>" for tag, _ in reversed(elements)]
    (folder / "model.xml").write_text(f"<net>{''.join(parts)}{''.join(ends[open_ones:])}</net>")
    with suppress(ContentsError):
        check_ir(folder / "model.xml")


def test_a_message_is_written_as_it_was_read() -> None:
    found = fields(MODEL)
    assert found is not None
    assert written(found) == MODEL
    assert [number for number, _, _ in found].count(7) == 1
