"""What pictures become as the samples of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs import pictures as pictures_module
from tokexport.exporter.inputs.batches import Batches, read_inputs
from tokexport.exporter.inputs.class_numbers import ClassNames
from tokexport.exporter.inputs.pictures import PictureOptions
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.errors import PictureError, PreprocessingError
from tokexport.runtimes.pictures import Preprocessing, decode, parse_preprocessing

SPEC = TensorSpec("x", (2, 3, 8, 8), "float32")
TEXT = "crop=0.8,mean=imagenet"
STEPS = parse_preprocessing(TEXT, (8, 8))
RANDOM = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (9, 12), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def read(
    path: Path, spec: TensorSpec = SPEC, samples: int | None = None, **options: Any
) -> Batches:
    given = {"preprocess": TEXT, **options}
    return read_inputs(path, [spec], spec.shape[0], samples, pictures=PictureOptions(**given))


def refusal(path: Path, spec: TensorSpec = SPEC, **options: Any) -> str:
    with pytest.raises((InputError, PictureError, PreprocessingError)) as caught:
        read(path, spec, **options)
    assert caught.value.fix
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of two classes, of several sizes and kinds."""
    picture(tmp_path / "photos/cat/a.png")
    picture(tmp_path / "photos/cat/b.jpg", (1, 1))
    picture(tmp_path / "photos/cat/c.jpg", (30, 4), "CMYK")
    picture(tmp_path / "photos/dog/a.png", (5, 80), "L")
    picture(tmp_path / "photos/dog/b.png", (8, 8), "RGBA")
    return tmp_path / "photos"


def test_a_folder_becomes_samples_with_labels_and_names(folder: Path) -> None:
    found = read(folder)
    assert found.samples == 5
    assert found.files == ("cat/a.png", "cat/b.jpg", "cat/c.jpg", "dog/a.png", "dog/b.png")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.origin == (
        "5 pictures of photos (2 classes, numbered in sorted order: cat is 0, dog is 1)"
    )
    assert found.classes_by_place == 2
    assert found.warnings == (
        "In 1 of 5 pictures colours were converted to RGB without a colour profile.",
    )
    assert found.arrays["x"].shape == (3, 2, 3, 8, 8)
    values = found.arrays["x"].reshape(-1, 3, 8, 8)
    for value, name in zip(values, found.files, strict=False):
        np.testing.assert_array_equal(value, STEPS.apply(decode(folder / name).pixels))
    np.testing.assert_array_equal(values[-1], values[-2])


def test_only_those_that_are_taken_are_decoded(folder: Path) -> None:
    (folder / "cat/b.jpg").write_bytes(b"broken")
    found = read(folder, samples=2)
    assert found.files == ("cat/a.png", "cat/c.jpg")
    assert found.origin.startswith("2 of 5 pictures of photos")
    assert found.labels is not None
    assert len(found.labels) == 2


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "cat/b.jpg").write_bytes((folder / "cat/c.jpg").read_bytes()[:300])
    message = refusal(folder)
    assert str(folder / "cat/b.jpg") in message
    assert "leave it out" in message


def test_a_list_and_one_picture(folder: Path) -> None:
    (folder / "list.csv").write_text("dog/a.png,7\ncat/a.png,3\n")
    found = read(folder / "list.csv")
    assert found.labels is not None
    assert found.labels.tolist() == [7, 3]
    assert found.origin == "2 pictures of list.csv (2 classes, numbered by their names)"
    alone = read(folder / "dog/a.png")
    assert (alone.samples, alone.files, alone.labels) == (1, ("a.png",), None)
    assert alone.origin == "1 picture of a.png"


def test_whoever_watches_sees_every_file(folder: Path) -> None:
    seen: list[int] = []

    def watch(many: Iterable[int], count: int) -> Iterator[int]:
        for one in many:
            yield one
            seen.append(count)

    read(folder, watch=watch)
    assert seen == [5] * 5


def test_names_of_the_classes_are_those_of_the_file_else_of_the_source(
    folder: Path, tmp_path: Path
) -> None:
    def known() -> ClassNames:
        return ClassNames.of({"cat": 281, "dog": 207}, "the model's configuration")

    found = read(folder, known=known)
    assert found.labels is not None
    assert found.labels.tolist() == [281] * 3 + [207] * 2
    assert "numbered as the model's configuration names them" in found.origin
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    asked = read(folder, known=known, labels=tmp_path / "names.txt")
    assert asked.labels is not None
    assert asked.labels.tolist() == [1, 1, 1, 0, 0]
    (tmp_path / "names.txt").write_text("dog\nwolf\n")
    assert "'cat'" in refusal(folder, labels=tmp_path / "names.txt")


def test_classes_of_which_only_some_are_the_models_are_not_used(folder: Path) -> None:
    found = read(folder, known=lambda: ClassNames.of({"cat": 1}, "the configuration"))
    assert found.labels is None
    assert "Their labels are not used." in " ".join(found.warnings)


def test_without_steps_it_says_what_to_pass(folder: Path) -> None:
    message = refusal(folder, preprocess=None)
    assert "Nothing says how a picture becomes the input" in message
    assert "--preprocess size=8,crop=0.9,mean=imagenet" in message
    wide = TensorSpec("x", (1, 3, 8, 16), "float32")
    assert "--preprocess size=8x16" in refusal(folder, wide, preprocess=None)


def test_steps_of_the_source_are_taken_unless_others_are_asked_for(folder: Path) -> None:
    own = parse_preprocessing("size=8,mean=none")
    found = read(folder, preprocess=None, own=own)
    first = decode(folder / "cat/a.png").pixels
    np.testing.assert_array_equal(found.arrays["x"][0, 0], own.apply(first))
    np.testing.assert_array_equal(read(folder, own=own).arrays["x"][0, 0], STEPS.apply(first))


def test_steps_to_another_size_are_refused(folder: Path) -> None:
    message = refusal(folder, preprocess="size=7,mean=none")
    assert "The pictures become 7 × 7, and the model takes 8 × 8." in message
    assert "from: --preprocess size=7,mean=none" in message
    assert "become 7 × 8" in refusal(
        folder, preprocess=None, own=parse_preprocessing("size=7x8,mean=none")
    )
    assert "no size" not in refusal(folder, preprocess="size=9,mean=none")


def test_further_steps_of_the_source_are_refused(folder: Path) -> None:
    own = Preprocessing.from_json(STEPS.to_json() | {"other_steps": ["do_pad"]})
    assert "do_pad" in refusal(folder, preprocess=None, own=own)


@pytest.mark.parametrize(
    "specs",
    [
        [TensorSpec("x", (2, 1, 8, 8), "float32")],
        [TensorSpec("x", (2, 8, 8, 3), "float32")],
        [TensorSpec("x", (2, 3, 8, 8), "uint8")],
        [TensorSpec("x", (2, 12), "float32")],
        [SPEC, TensorSpec("mask", (2, 4), "bool")],
    ],
)
def test_other_models_take_no_pictures(specs: list[TensorSpec], folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_inputs(folder, specs, 2, pictures=PictureOptions(preprocess=TEXT))
    assert "pictures go into (N, 3, H, W) float32" in str(caught.value)
    assert str(specs[-1]) in str(caught.value)


def test_what_does_not_fit_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(pictures_module.np, "empty", full)
    assert "Pass --samples with fewer." in refusal(folder)


def test_what_was_left_out_is_said(folder: Path) -> None:
    (folder / "cat/readme.txt").write_text("")
    (folder / "empty").mkdir()
    said = " ".join(read(folder).warnings)
    assert "no pictures were left out: 1." in said
    assert "Classes without a picture: empty." in said
