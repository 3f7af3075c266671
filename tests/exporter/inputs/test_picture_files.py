"""Which pictures a folder or a list holds, in which order, and which class each has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs.kinds import Kind, kind_of_inputs
from tokexport.exporter.inputs.picture_files import PictureFiles, list_pictures


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def listed(path: Path) -> PictureFiles:
    return list_pictures(path, kind_of_inputs(path))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        listed(path)
    assert caught.value.fix
    return str(caught.value)


def test_a_folder_without_subfolders_has_no_classes(tmp_path: Path) -> None:
    found = listed(files(tmp_path, "b.png", "a.JPG", "notes.txt", ".DS_Store", ".hidden.png"))
    assert found.names == ("a.JPG", "b.png")
    assert found.paths == (tmp_path / "a.JPG", tmp_path / "b.png")
    assert (found.classes, found.all_classes, found.skipped) == (None, (), 1)


def test_subfolders_are_classes_in_the_order_of_image_folder(tmp_path: Path) -> None:
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    from torchvision.datasets import ImageFolder

    names = ["dog/b.png", "dog/a.png", "cat/deep/2.jpg", "cat/z.webp", "Ape/1.tif", "10/x.png"]
    found = listed(files(tmp_path, *names, "2/y.png", "cat/readme.md"))
    theirs = ImageFolder(str(tmp_path))
    assert found.all_classes == tuple(theirs.classes)
    samples = [
        (str(path), theirs.class_to_idx[name])
        for path, name in zip(found.paths, found.classes or (), strict=True)
    ]
    assert samples == theirs.samples
    assert found.names[0] == "10/x.png"
    assert found.skipped == 1


def test_a_class_without_a_picture_keeps_its_place(tmp_path: Path) -> None:
    files(tmp_path, "a/1.png", "c/2.png")
    (tmp_path / "b").mkdir()
    assert listed(tmp_path).all_classes == ("a", "b", "c")
    assert listed(tmp_path).classes == ("a", "c")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    files(tmp_path, "a/1.png")
    os.symlink(tmp_path / "a", tmp_path / "a" / "again")
    assert listed(tmp_path).names == ("a/1.png",)


def test_folders_that_are_not_clear_are_refused(tmp_path: Path) -> None:
    assert "The folder holds no pictures." in refusal(tmp_path)
    assert "holds no pictures" in refusal(files(tmp_path / "texts", "a.txt", "b/c.txt"))
    assert "beside its subfolders cat" in refusal(files(tmp_path / "both", "a.png", "cat/1.png"))


@pytest.mark.parametrize("header", ["file,label\n", "Image_Path,species\n", ""])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_list_names_files_and_labels(header: str, mark: str, tmp_path: Path) -> None:
    files(tmp_path, "one/a.jpg", "b.jpg")
    text = f"{header}one/a.jpg,cat\n\n b.jpg ,dog\n".replace(",", mark)
    (tmp_path / "list.csv").write_text("\ufeff" + text, encoding="utf-8")
    found = listed(tmp_path / "list.csv")
    assert found.paths == (tmp_path / "one/a.jpg", tmp_path / "b.jpg")
    assert (found.names, found.classes) == (("one/a.jpg", "b.jpg"), ("cat", "dog"))
    assert found.all_classes == ("cat", "dog")


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("id,label,file,split\n1,3,a.jpg,x\n2,0,b.jpg,y\n")
    found = listed(tmp_path / "list.csv")
    assert (found.names, found.classes) == (("a.jpg", "b.jpg"), ("3", "0"))
    (tmp_path / "list.csv").write_text("id,file,split\n1,a.jpg,x\n")
    assert listed(tmp_path / "list.csv").classes is None


def test_labels_may_be_left_out(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg", "b, c.jpg")
    for text in ('a.jpg\n"b, c.jpg"\n', 'file\na.jpg\n"b, c.jpg"\n', 'a.jpg,\n"b, c.jpg",\n'):
        (tmp_path / "list.csv").write_text(text)
        found = listed(tmp_path / "list.csv")
        assert (found.names, found.classes) == (("a.jpg", "b, c.jpg"), None)


def test_a_list_may_name_files_anywhere(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg", "in/list.csv")
    (tmp_path / "in/list.csv").write_text(f"../a.jpg\n{tmp_path / 'a.jpg'}\n")
    found = listed(tmp_path / "in/list.csv")
    assert all(path.samefile(tmp_path / "a.jpg") for path in found.paths)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no pictures"),
        ("file,label\n", "no pictures below its header"),
        ("a.jpg,cat\nmissing.jpg,dog\n", "Line 2 of the list names no file: 'missing.jpg'"),
        ("a.jpg,cat\na.jpg\n", "Line 2 of the list has no label"),
        ("file,label\na.jpg,cat\n,dog\n", "Line 3 of the list names no file"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text: str, said: str, tmp_path: Path) -> None:
    files(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_text(text)
    message = refusal(tmp_path / "list.csv")
    assert said in message
    assert str(tmp_path / "list.csv") in message


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00")
    assert "The list of pictures cannot be read" in refusal(tmp_path / "list.csv")


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\x93NUMPY and so on")
    assert kind_of_inputs(tmp_path / "a.csv") is Kind.NPY
    (tmp_path / "a.JPG").write_bytes(b"")
    assert kind_of_inputs(tmp_path / "a.JPG") is Kind.PICTURE
    assert kind_of_inputs(tmp_path) is Kind.FOLDER
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="cannot be read"):
        kind_of_inputs(tmp_path / "pipe.png")
