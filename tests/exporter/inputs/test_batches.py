from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokexport.exporter.errors import InputError, UsageError
from tokexport.exporter.inputs.batches import parse_shape, read_inputs, synthetic_inputs
from tokexport.exporter.parity.hits import accuracy
from tokexport.runtimes.bundle.manifest import TensorSpec

IMAGE = TensorSpec("x", (4, 3, 2, 2), "float32")
MASK = TensorSpec("mask", (4, 5), "int64")


def images(samples: int, dtype: Any = np.float32) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((samples, 3, 2, 2))
    return values.astype(dtype)


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def refusal(path: Path, *specs: TensorSpec, batch: int = 4) -> str:
    with pytest.raises(InputError) as caught:
        read_inputs(path, specs or (IMAGE,), batch)
    assert caught.value.fix
    return str(caught.value)


def test_cuts_samples_into_batches_and_repeats_the_last(tmp_path: Path) -> None:
    x = images(6)
    labels = np.arange(6, dtype=np.int32)
    batches = read_inputs(saved(tmp_path, x=x, labels=labels), [IMAGE], 4)
    assert len(batches) == 2
    assert batches.samples == 6
    first, second = [batch["x"] for batch in batches]
    np.testing.assert_array_equal(first, x[:4])
    np.testing.assert_array_equal(second, x[[4, 5, 5, 5]])
    np.testing.assert_array_equal(batches.labels, labels)
    assert batches.origin == "6 samples of data.npz"


@pytest.mark.parametrize(
    ("wanted", "rows", "origin"),
    [
        (3, [0, 3, 6], "3 of 10 samples of data.npz"),
        (4, [0, 2, 5, 7], "4 of 10 samples of data.npz"),
        (1, [0], "1 of 10 samples of data.npz"),
        (10, [*range(10)], "10 samples of data.npz"),
        (99, [*range(10)], "10 samples of data.npz"),
    ],
)
def test_takes_some_samples_evenly_spaced_with_their_labels(
    wanted: int, rows: list[int], origin: str, tmp_path: Path
) -> None:
    x, labels = images(10), np.arange(10)
    mask = np.ones((2, 5), np.int64)
    table = TensorSpec("mask", (2, 5), "int64")
    path = saved(tmp_path, x=x, labels=labels, mask=mask)
    batches = read_inputs(path, [IMAGE, table], 4, wanted)
    assert (batches.samples, batches.origin) == (len(rows), origin)
    padded = [*rows, *[rows[-1]] * (-len(rows) % 4)]
    np.testing.assert_array_equal(batches.arrays["x"].reshape(-1, 3, 2, 2), x[padded])
    np.testing.assert_array_equal(batches.arrays["mask"], [mask] * (len(padded) // 4))
    np.testing.assert_array_equal(batches.labels, labels[rows])


def test_whoever_watches_sees_every_batch_pass(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def watch(many: Iterable[int], count: int) -> Iterator[int]:
        for one in many:
            seen.append((one, count))
            yield one

    batches = replace(read_inputs(saved(tmp_path, x=images(10)), [IMAGE], 4), watch=watch)
    assert len(list(batches)) == 3
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_reads_several_inputs_by_name_in_the_models_order(tmp_path: Path) -> None:
    mask = np.ones((4, 5), np.int64)
    batches = read_inputs(saved(tmp_path, mask=mask, x=images(4)), [IMAGE, MASK], 4)
    assert batches.names == ("x", "mask")
    assert [list(batch) for batch in batches] == [["x", "mask"]]


def test_an_only_input_takes_the_array_of_its_name_or_one_without_a_name(tmp_path: Path) -> None:
    x = images(4)
    from_npz = read_inputs(saved(tmp_path, labels=np.zeros(4, int), x=x), [IMAGE], 4)
    np.save(tmp_path / "x.npy", x)
    from_npy = read_inputs(tmp_path / "x.npy", [IMAGE], 4)
    np.testing.assert_array_equal(from_npz.arrays["x"], x[None])
    np.testing.assert_array_equal(from_npy.arrays["x"], x[None])
    assert from_npy.origin == "4 samples of x.npy"
    for name in ("pictures", "arr_0"):
        said = refusal(saved(tmp_path, **{name: x}))
        assert f"missing: x; unknown: {name}" in said
        assert "numpy.savez(path, x=…)" in said
    odd = refusal(saved(tmp_path, y=x), TensorSpec("a.b", (4,), "float32"))
    assert "numpy.savez(path, **{'a.b': …})" in odd


def test_an_input_without_the_batch_axis_goes_into_every_batch(tmp_path: Path) -> None:
    table = TensorSpec("table", (7,), "float32")
    scale = TensorSpec("scale", (), "float32")
    values = np.arange(7, dtype=np.float32)
    path = saved(tmp_path, x=images(8), table=values, scale=np.float32(2))
    batches = read_inputs(path, [IMAGE, table, scale], 4)
    assert len(batches) == 2
    for batch in batches:
        np.testing.assert_array_equal(batch["table"], values)
        assert batch["scale"] == 2
        for array in batch.values():
            assert isinstance(array, np.ndarray)
            assert array.flags.writeable  # torch warns of arrays that are not


def test_widens_only_within_a_kind(tmp_path: Path) -> None:
    half = images(4, np.float16)
    big_endian = images(4).astype(">f4")
    assert read_inputs(saved(tmp_path, x=half), [IMAGE], 4).arrays["x"].dtype == np.float32
    found = read_inputs(saved(tmp_path, x=big_endian), [IMAGE], 4).arrays["x"]
    assert found.dtype == np.float32
    assert found.dtype.isnative
    np.testing.assert_array_equal(found[0], images(4))


@pytest.mark.parametrize(
    ("dtype", "named", "hint"),
    [
        (np.float64, "is float64, and the model takes float32", "array.astype(numpy.float32)"),
        (np.uint8, "is uint8, and the model takes float32", "Preprocess as the model was trained"),
        (np.complex64, "is complex64", "astype"),
        ("U3", "is str", "astype"),
    ],
)
def test_refuses_another_dtype(tmp_path: Path, dtype: Any, named: str, hint: str) -> None:
    said = refusal(saved(tmp_path, x=np.zeros((4, 3, 2, 2), dtype)))
    assert named in said
    assert hint in said


def test_refuses_a_wrong_shape_and_shows_both(tmp_path: Path) -> None:
    said = refusal(saved(tmp_path, x=np.zeros((4, 3, 2, 5), np.float32)))
    assert "Input 'x' has shape (4, 3, 2, 5), and the model takes (4, 3, 2, 2)" in said
    assert "(samples, 3, 2, 2)" in said


def test_a_wrong_shape_that_is_easily_mended_says_how(tmp_path: Path) -> None:
    no_samples = saved(tmp_path, x=np.zeros((3, 2, 2), np.float32))
    assert "array[None]" in refusal(no_samples)
    channels_last = saved(tmp_path, x=np.zeros((4, 2, 2, 3), np.float32))
    assert "numpy.transpose(array, (0, 3, 1, 2))" in refusal(channels_last)
    assert "shape ()" in refusal(saved(tmp_path, x=np.float32(1)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_names_the_first_value_that_is_not_finite(tmp_path: Path, value: float) -> None:
    x = images(4)
    x[3, 0, 1, 1] = np.nan
    x[2, 1, 0, 1] = value
    said = refusal(saved(tmp_path, x=x))
    assert f"holds {np.float32(value)}" in said
    assert "x[2, 1, 0, 1]" in said


def test_names_missing_and_unknown_arrays(tmp_path: Path) -> None:
    said = refusal(saved(tmp_path, x=images(4), msak=np.zeros((4, 5), np.int64)), IMAGE, MASK)
    assert "missing: mask" in said
    assert "unknown: msak" in said
    assert "unknown: y" in refusal(saved(tmp_path, x=images(4), y=images(4)))


def test_refuses_different_numbers_of_samples(tmp_path: Path) -> None:
    said = refusal(saved(tmp_path, x=images(4), mask=np.zeros((3, 5), np.int64)), IMAGE, MASK)
    assert "x: 4, mask: 3" in said


def test_refuses_a_file_without_samples(tmp_path: Path) -> None:
    assert "no samples" in refusal(saved(tmp_path, x=images(0)))
    assert "no array but labels" in refusal(saved(tmp_path, labels=np.zeros(3, int)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(3, np.int64), "3 labels for 4 samples"),
        (np.zeros((4, 1), np.int64), "int64 of shape (4, 1)"),
        (np.zeros(4, np.float32), "float32 of shape (4,)"),
        (np.array([0, 1, -1, 2]), "Label -1 is negative.\nlabels[2]"),
    ],
)
def test_refuses_labels_that_do_not_fit(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    assert said in refusal(saved(tmp_path, x=images(4), labels=labels))


def test_a_model_with_an_input_named_labels_is_refused(tmp_path: Path) -> None:
    spec = TensorSpec("labels", (4, 2), "float32")
    said = refusal(saved(tmp_path, labels=np.zeros((4, 2), np.float32)), spec)
    assert "an input named 'labels'" in said


class Trap:
    """Runs code when unpickled: leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickled_array_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    objects = np.empty(4, object)
    objects[:] = [Trap(mark)] * 4
    for path in (tmp_path / "x.npz", tmp_path / "x.npy"):
        with path.open("wb") as file:
            if path.suffix == ".npz":
                np.savez(file, x=objects)
            else:
                np.save(file, objects)
        assert "pickled objects, which would run code" in refusal(path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Trap(mark)))
    assert "not an .npz or .npy" in refusal(tmp_path / "x.pkl")
    assert not mark.exists()


def test_refuses_what_is_no_file_of_arrays(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.npz")
    assert "The folder holds no pictures." in refusal(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    assert "Nothing says how a picture becomes the input" in refusal(tmp_path / "photo.jpg")
    (tmp_path / "empty.npz").write_bytes(b"")
    assert "not an .npz or .npy" in refusal(tmp_path / "empty.npz")
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
    assert "a zip archive but not an .npz" in refusal(tmp_path / "model.pt")


def test_refuses_a_damaged_file(tmp_path: Path) -> None:
    whole = saved(tmp_path, x=images(64)).read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(path)
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 0xFF
    path.write_bytes(altered)
    assert "damaged" in refusal(path)
    np.save(tmp_path / "x.npy", images(64))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:200])
    assert "damaged" in refusal(tmp_path / "x.npy")


def test_one_array_for_several_inputs_says_how_to_save_them(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(4))
    assert "numpy.savez(path, x=…, mask=…)" in refusal(tmp_path / "x.npy", IMAGE, MASK)


def test_refuses_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    spec = TensorSpec("x", (4, 3, 2, 2), "float7")
    assert "float7" in refusal(saved(tmp_path, x=images(4)), spec)


def test_synthetic_values_fit_the_dtype() -> None:
    specs = [
        TensorSpec("x", (2, 64), "float32"),
        TensorSpec("half", (2, 64), "float16"),
        TensorSpec("ids", (2, 64), "int64"),
        TensorSpec("raw", (2, 640), "uint8"),
        TensorSpec("on", (2, 64), "bool"),
        TensorSpec("scale", (), "float64"),
    ]
    batches = synthetic_inputs(specs, 3, seed=0)
    assert batches.samples == 6
    assert batches.labels is None
    assert "not real data" in batches.origin
    for spec in specs:
        assert batches.arrays[spec.name].shape == (3, *spec.shape)
        assert batches.arrays[spec.name].dtype == spec.dtype
    x = batches.arrays["x"]
    assert abs(float(x.mean())) < 0.2
    assert abs(float(x.std()) - 1) < 0.2
    assert set(np.unique(batches.arrays["ids"])) == {0, 1}
    assert batches.arrays["raw"].max() > 200
    assert batches.arrays["on"].any()
    assert not batches.arrays["on"].all()


def test_synthetic_values_depend_on_seed_and_name_alone() -> None:
    a, b = TensorSpec("a", (2, 8), "float32"), TensorSpec("b", (2, 8), "float32")
    both = synthetic_inputs([a, b], 2, seed=3).arrays
    turned = synthetic_inputs([b, a], 1, seed=3).arrays
    np.testing.assert_array_equal(both["a"][:1], turned["a"])
    np.testing.assert_array_equal(both["b"][:1], turned["b"])
    assert not np.array_equal(both["a"], both["b"])
    assert not np.array_equal(both["a"], synthetic_inputs([a], 2, seed=4).arrays["a"])


def test_synthetic_values_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="complex64"):
        synthetic_inputs([TensorSpec("x", (1, 2), "complex64")], 1, seed=0)
    with pytest.raises(UsageError, match="seed is -1"):
        synthetic_inputs([IMAGE], 1, seed=-1)


def test_parses_a_shape() -> None:
    assert parse_shape("1,3,224,224") == (1, 3, 224, 224)
    assert parse_shape(" 1, 3 ,224,224", batch=8) == (8, 3, 224, 224)


@pytest.mark.parametrize("text", ["", "1,3,", "1x3", "1,0,2", "1,-1", "1,2.5", "1,²", "a", "1_0"])
def test_refuses_what_is_no_shape(text: str) -> None:
    with pytest.raises(UsageError, match="not a list of whole numbers") as caught:
        parse_shape(text)
    assert "1,3,224,224" in caught.value.fix


def test_refuses_a_batch_below_one() -> None:
    with pytest.raises(UsageError, match="batch is 0"):
        parse_shape("1,3", batch=0)


def test_accuracy_leaves_the_padding_out() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    labels = np.array([0, 1, 2, 3])
    for sample, label in enumerate([0, 1, 2, 0]):  # the fourth is wrong
        logits[sample // 3, sample % 3, label] = 1
    logits[1, 1:, 3] = 9  # repeats of the last sample, as if they were right
    assert accuracy(logits, labels) == 0.75


def test_accuracy_refuses_what_is_no_classification() -> None:
    labels = np.array([0, 7])
    with pytest.raises(InputError, match=r"Label 7 .* 4 classes"):
        accuracy(np.zeros((1, 2, 4)), labels)
    with pytest.raises(InputError, match=r"shape \(N, classes\), and it is \(2, 5, 4\)"):
        accuracy(np.zeros((1, 2, 5, 4)), labels)
    with pytest.raises(InputError, match="classes"):
        accuracy(np.zeros((1, 1, 4)), labels)
