from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokexport.runtimes.bundle.bundle_files import check_files
from tokexport.runtimes.bundle.class_scores import (
    FORMS,
    MOST_CHARACTERS,
    MOST_LABELS,
    ClassScores,
)
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Manifest,
    RuntimeInfo,
    TensorSpec,
)
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError

BundleMaker = Callable[..., Path]


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def put(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


texts = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=8)
specs = st.builds(
    TensorSpec,
    texts,
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.sampled_from(["float32", "float16", "int64", "bool"]),
)
spec_tuples = st.lists(specs, max_size=3, unique_by=lambda spec: spec.name).map(tuple)
manifests = st.builds(
    Manifest,
    schema_version=st.just(SCHEMA_VERSION),
    tokexport_version=texts,
    created=texts,
    target=texts,
    status=st.sampled_from(["PASSED", "BUILT, NOT RUN"]),
    artifact=texts,
    runtime=st.builds(
        RuntimeInfo,
        texts,
        texts,
        texts,
        st.dictionaries(texts, texts | st.integers(-9, 9) | st.lists(texts)),
    ),
    precision=texts,
    inputs=spec_tuples,
    outputs=spec_tuples,
    constant_outputs=st.dictionaries(
        texts,
        st.text(max_size=8)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.booleans()
        | st.none(),
    ),
    token_schedule=st.lists(st.integers(0, 300), max_size=4).map(tuple),
    gates=st.dictionaries(texts, st.dictionaries(texts, st.floats(0, 1e9))),
    source=st.dictionaries(texts, texts | st.none()),
    preprocessing=st.none() | st.dictionaries(texts, st.lists(st.integers())),
    reduction=st.none() | st.dictionaries(texts, st.lists(st.integers())),
    forms=st.none()
    | st.dictionaries(
        texts, st.dictionaries(texts, texts | st.integers(0, 99) | st.floats(0.01, 1e3))
    ),
    classes=st.none() | st.dictionaries(texts, st.integers(0, 999)),
    scores=st.none() | st.builds(ClassScores, texts, st.sampled_from(FORMS)),
    labels=st.none() | st.lists(texts, max_size=4).map(tuple),
    files=st.dictionaries(texts, st.text("0123456789abcdef", min_size=64, max_size=64)),
    constant_inputs=st.sampled_from(
        [
            (),
            (ConstantInput.of("grid", np.array([[1, 4, 4]])), ConstantInput.of("", np.array(True))),
            (ConstantInput.of("mask", np.float32([[0, -np.inf], [0.1, -0.0]])),),
        ]
    ),
)


@given(manifest=manifests)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    manifest.write(folder)
    assert read_manifest(folder) == manifest


def test_a_whole_bundle_is_accepted(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    assert set(manifest.files) == {"model.onnx", "reference.npz"}


def test_unknown_keys_are_tolerated_at_every_level(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    before = read_manifest(bundle)
    for keys in [("new",), ("runtime", "new"), ("inputs", 0, "new")]:
        edit(bundle, put(*keys, value={"a": 1}))
    assert read_manifest(bundle) == before


def test_a_newer_schema_asks_for_an_update(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    edit(bundle, put("schema_version", value=SCHEMA_VERSION + 1))
    with pytest.raises(BundleError, match="schema version 2, and this tokexport reads 1") as caught:
        read_manifest(bundle)
    assert "pip install --upgrade" in caught.value.fix
    assert MANIFEST_NAME in caught.value.where


@pytest.mark.parametrize("version", [0, None, "1", True, 1.5])
def test_no_schema_version_is_refused(make_bundle: BundleMaker, version: object) -> None:
    bundle = make_bundle()
    edit(bundle, put("schema_version", value=version))
    with pytest.raises(BundleError, match="schema_version"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("artifact",), 3, "artifact should be a text"),
        (("status",), "FINE", "status should be"),
        (("inputs",), {}, "inputs should be a list"),
        (("inputs", 0), "x", r"inputs\[0\] should be an object"),
        (("inputs", 0, "shape"), [1, "N"], r"inputs\[0\]\.shape should be a list of whole"),
        (("inputs", 0, "shape"), [-1, 3], r"inputs\[0\]\.shape should be a list of whole"),
        (("inputs", 0, "shape"), [True], r"inputs\[0\]\.shape should be a list of whole"),
        (("outputs", 1, "dtype"), "float33", r"outputs\[1\]\.dtype should be a numpy dtype"),
        (("outputs", 1, "name"), "logits", "outputs has a name twice"),
        (("runtime", "flavour"), None, r"runtime\.flavour should be a text"),
        (("runtime", "details"), [], r"runtime\.details should be an object"),
        (("constant_outputs", "flops"), [1], r"constant_outputs\.flops should be"),
        (("token_schedule",), [1.5], "token_schedule should be"),
        (("gates", "logits"), 1e-5, r"gates\.logits should be an object"),
        (("gates", "logits", "scale"), -1, r"gates\.logits\.scale should be"),
        (("input_ranges",), {"no": [0, 1]}, "input_ranges should be of its inputs"),
        (("preprocessing",), "crop", "preprocessing should be"),
        (("reduction",), "tome:r=8", "reduction should be"),
        (("forms",), ["one-hot"], "forms should be"),
        (("classes",), {"cat": -1}, r"classes\.cat should be a whole number"),
        (("classes",), ["cat"], "classes should be"),
        (("scores",), ["logits"], "scores should be"),
        (("scores",), {"form": "logits"}, r"scores\.output should be"),
        (("scores",), {"output": "logits", "form": "softmax"}, r"scores\.form should be one of"),
        (("labels",), "cat", "labels should be"),
        (("labels",), ["cat", 3], "labels should be"),
        (("labels",), ["c" * (MOST_CHARACTERS + 1)], "labels should have at most"),
        (("labels",), ["cat"] * (MOST_LABELS + 1), "labels should be at most"),
        (("files", "model.onnx"), "abc", r"files\.model\.onnx should be a SHA-256"),
    ],
)
def test_a_wrong_type_names_the_field(
    make_bundle: BundleMaker, keys: tuple[str | int, ...], value: object, named: str
) -> None:
    bundle = make_bundle()
    edit(bundle, put(*keys, value=value))
    with pytest.raises(BundleError, match=named):
        read_manifest(bundle)


#: What a bundle may lack, as one of an earlier version does.
OPTIONAL = {
    *("preprocessing", "reduction", "forms", "fingerprint", "options", "checks", "classes"),
    *("requires", "kept_onnx", "rebuilt", "scores", "labels"),
}
WITHOUT = {
    **dict.fromkeys(OPTIONAL),
    "input_ranges": {},
    "constant_inputs": (),
    "reference": "reference.npz",
    "samples_independent": None,
    "latency_ms": None,
    "rungs": (),
}


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_a_bundle_without_an_optional_field_still_loads(
    make_bundle: BundleMaker, name: str
) -> None:
    bundle = make_bundle()
    edit(bundle, lambda data: data.pop(name))
    assert getattr(read_manifest(bundle), name) == WITHOUT[name]


def test_names_of_classes_are_shown_in_a_line(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    edit(bundle, put("labels", value=["a\nb", "\x1b[2J", "crane", "crane"]))
    assert read_manifest(bundle).labels == ("a b", r"\x1b[2J", "crane", "crane")


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(Manifest) if f.name not in WITHOUT]
)
def test_a_missing_field_is_named(make_bundle: BundleMaker, name: str) -> None:
    bundle = make_bundle()
    edit(bundle, lambda data: data.pop(name))
    with pytest.raises(BundleError, match=name):
        read_manifest(bundle)


def test_no_folder_a_file_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no bundle"):
        read_manifest(tmp_path / "absent")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(BundleError, match="a file, not a folder"):
        read_manifest(tmp_path / "file")
    with pytest.raises(BundleError, match="has no manifest.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b'{"schema_version": 1', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b'{"files": {}, "files": {}}', "the key 'files' stands twice"),
        (b'{"gates": [NaN]}', "NaN is no finite number"),
        (b'{"gates": [-Infinity, 1e999]}', "-Infinity is no finite number"),
        (b'{"gates": [1e999]}', "1e999 is no finite number"),
        (b"[" * 100_000, "not JSON"),
        (b'{"source": ' + b"[" * 400 + b"]" * 400 + b"}", "deeper than 64 levels"),
    ],
)
def test_a_manifest_that_is_no_json_object(
    make_bundle: BundleMaker, content: bytes, why: str
) -> None:
    bundle = make_bundle()
    (bundle / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=why):
        read_manifest(bundle)


@pytest.mark.parametrize("kind", ["link", "link to itself", "pipe", "device", "endless"])
def test_a_manifest_that_is_no_file_of_the_folder(make_bundle: BundleMaker, kind: str) -> None:
    bundle = make_bundle()
    path = bundle / MANIFEST_NAME
    elsewhere = bundle.parent / "elsewhere.json"
    path.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(2**34)
    else:
        path.symlink_to({"link": elsewhere, "device": "/dev/zero"}.get(kind, path))
    with pytest.raises(BundleError, match="a link|cannot be read"):
        read_manifest(bundle)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_would_be_waited_for(make_bundle: BundleMaker, kind: str) -> None:
    bundle = make_bundle()
    (bundle / "model.onnx").unlink()
    if kind == "pipe":
        os.mkfifo(bundle / "model.onnx")
    else:
        (bundle / "model.onnx").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="cannot be read|outside the bundle"):
        check_files(bundle, read_manifest(bundle))


@pytest.mark.parametrize(
    "dtype", ["f4,f4", "(2,)f4", "O", "S10", "(1000000000,)f4", "{'names':[]}", "float32 ", "V8"]
)
def test_a_dtype_that_is_no_name_of_one(make_bundle: BundleMaker, dtype: str) -> None:
    bundle = make_bundle()
    edit(bundle, lambda data: data["inputs"][0].update(dtype=dtype))
    with pytest.raises(BundleError, match="a numpy dtype of numbers"):
        read_manifest(bundle)


@pytest.mark.parametrize("shape", [[2**62, 4], [10**30], [2**22] * 4, [0, 2**45]])
def test_a_shape_that_no_memory_holds(make_bundle: BundleMaker, shape: list[int]) -> None:
    bundle = make_bundle()
    edit(bundle, lambda data: data["inputs"][0].update(shape=shape))
    with pytest.raises(BundleError, match="shape should be of at most"):
        read_manifest(bundle)


def test_a_text_holds_nothing_that_a_terminal_obeys(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["created"] = "half \udc80, red \x1b[31m, \x9b2J, \u202eback"
    data["source"] = {"\x07": ["\x1b]0;title\x07"], "constant_outputs": {"a": "\x1b"}}
    path.write_text(json.dumps(data))
    manifest = read_manifest(bundle)
    assert manifest.created == "half \\udc80, red \\x1b[31m, \\x9b2J, \\u202eback"
    assert manifest.source["\\x07"] == ["\\x1b]0;title\\x07"]
    assert manifest.source["constant_outputs"] == {"a": "\\x1b"}


def test_one_altered_byte_is_found_and_both_hashes_shown(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    path = bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    manifest = read_manifest(bundle)
    with pytest.raises(BundleError, match="'model.onnx' is not the one that was written") as caught:
        check_files(bundle, manifest)
    assert manifest.files["model.onnx"][:12] in caught.value.where
    assert manifest.files["model.onnx"] not in caught.value.where


def test_a_truncated_file_is_found(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    path = bundle / "reference.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="'reference.npz' is not the one that was written"):
        check_files(bundle, read_manifest(bundle))


def test_a_missing_file_is_named(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match="model.onnx is missing"):
        check_files(bundle, read_manifest(bundle))


def test_a_folder_in_the_place_of_a_file(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(BundleError, match="'model.onnx' of the bundle cannot be read"):
        check_files(bundle, read_manifest(bundle))


def test_an_artifact_without_a_hash_is_refused(make_bundle: BundleMaker) -> None:
    bundle = make_bundle()
    edit(bundle, lambda data: data["files"].pop("model.onnx"))
    with pytest.raises(BundleError, match="'model.onnx' has no hash"):
        check_files(bundle, read_manifest(bundle))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "", "..\\secret", "a\0b", "./secret"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(
    make_bundle: BundleMaker, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    bundle = make_bundle()
    edit(bundle, put("files", name, value="0" * 64))
    with pytest.raises(BundleError, match="a file outside the bundle"):
        check_files(bundle, read_manifest(bundle))


def test_a_link_that_leads_out_of_the_folder_is_refused(
    make_bundle: BundleMaker, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    bundle = make_bundle()
    (bundle / "link").symlink_to(tmp_path / "secret")
    edit(bundle, put("files", "link", value="0" * 64))
    with pytest.raises(BundleError, match="a file outside the bundle"):
        check_files(bundle, read_manifest(bundle))
