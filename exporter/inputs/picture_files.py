"""Lists the pictures of a folder, of a list or of one path, with the classes of each.

photos/cat/1.jpg        a folder: its subfolders are the classes, if it has some
photos/dog/2.jpg

file,label              a list: paths relative to it, with labels or without, with a header or
a/1.jpg,cat             without
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokexport.exporter.errors import InputError, listed
from tokexport.exporter.inputs.kinds import PICTURES, Kind
from tokexport.runtimes.files.regular_files import read_at_most

#: What a header of a list may call its columns.
_FILE: Final = ("file", "filename", "file_name", "path", "image", "image_path", "picture", "img")
_LABEL: Final = ("label", "labels", "class", "class_name", "target", "category")
#: Bytes of a list.
_LARGEST: Final = 1 << 28


@dataclass(frozen=True)
class PictureFiles:
    """Pictures, not decoded yet.

    Attributes:
        paths: The files, in order.
        classes: The name of the class of each; None where nothing says it.
        all_classes: Every class that the inputs name, also without a picture.
        names: What a report calls each file: its path within the folder, or as the list has it.
        skipped: How many files of a folder have no suffix of a picture.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...] | None
    all_classes: tuple[str, ...]
    names: tuple[str, ...]
    skipped: int = 0


def list_pictures(path: Path, kind: Kind) -> PictureFiles:
    """Lists the pictures that a path holds.

    Args:
        path: The folder, the list or the picture.
        kind: Which of them.

    Raises:
        InputError: It holds no pictures, its subfolders are not clear, or a line of a list names no
            file.
    """
    if kind is Kind.PICTURE:
        return PictureFiles((path,), None, (), (path.name,))
    return _of_folder(path) if kind is Kind.FOLDER else _of_list(path)


def pictures_below(folder: Path) -> tuple[list[Path], int]:
    """Returns the pictures at any depth of a folder, and how many other files it holds.

    Hidden files are left out of both.

    Raises:
        InputError: It holds no pictures, or cannot be read.
    """
    _names_in(folder)
    files = _below(folder)
    if found := _pictures(files):
        return found, len(files) - len(found)
    raise _no_pictures(folder)


def _names_in(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(
            "The folder of inputs cannot be read.",
            where=f"{folder} ({error.strerror})",
            fix="Check its permissions.",
        ) from error


def _no_pictures(folder: Path) -> InputError:
    return InputError(
        "The folder holds no pictures.",
        where=str(folder),
        fix=f"Pictures end in {', '.join(sorted(PICTURES))}; arrays are an .npz file.",
    )


def _of_folder(folder: Path) -> PictureFiles:
    """Lists a folder as ImageFolder of torchvision does: by class, then by path."""
    inside = _names_in(folder)
    subfolders = [name for name in inside if (folder / name).is_dir()]
    own = [folder / name for name in inside if name not in subfolders]
    pictures = [path for path in own if path.suffix.lower() in PICTURES]
    found = {name: _below(folder / name) for name in subfolders}
    classes = [name for name, files in found.items() if _pictures(files)]
    others = len(own) - len(pictures)
    others += sum(len(files) - len(_pictures(files)) for files in found.values())
    if pictures and classes:
        raise InputError(
            f"The folder has pictures beside its subfolders {listed(classes, 3)}.",
            where=f"{folder}: {listed([path.name for path in pictures], 3)}",
            fix="Put each picture into the subfolder of its class, or write a .csv of files.",
        )
    if not pictures and not classes:
        raise _no_pictures(folder)
    if pictures:
        names = tuple(path.name for path in pictures)
        return PictureFiles(tuple(pictures), None, (), names, others)
    pairs = [(path, name) for name in subfolders for path in _pictures(found[name])]
    paths = tuple(path for path, _ in pairs)
    return PictureFiles(
        paths,
        tuple(name for _, name in pairs),
        tuple(subfolders),
        tuple(path.relative_to(folder).as_posix() for path in paths),
        others,
    )


def _below(folder: Path) -> list[Path]:
    """Returns the files at any depth of a folder; hidden ones and links in circles are left out."""
    found, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(files) if not name.startswith(".")]
    return found


def _pictures(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() in PICTURES]


def _of_list(path: Path) -> PictureFiles:
    """Reads a list of files and labels; paths are relative to its folder."""
    rows = _rows(path)
    file, label, start = _columns(rows, path)
    paths, names, labels = [], [], []
    for number, row in rows[start:]:
        name = row[file] if file < len(row) else ""
        picture = path.parent / name
        if not name or not picture.is_file():
            raise InputError(
                f"Line {number} of the list names no file: {name!r}.",
                where=f"{path}; looked for {picture}",
                fix="Write paths relative to the folder of the list, one a line: file,label",
            )
        paths.append(picture)
        names.append(name)
        labels.append(row[label] if label is not None and label < len(row) else "")
    empty = [number for (number, _), one in zip(rows[start:], labels, strict=True) if not one]
    if any(labels) and empty:
        raise InputError(
            f"Line {empty[0]} of the list has no label, and others have one.",
            where=str(path),
            fix="Give every picture a label, or none.",
        )
    classes = tuple(labels) if any(labels) else None
    return PictureFiles(tuple(paths), classes, tuple(dict.fromkeys(classes or ())), tuple(names))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Returns the rows that are not empty, with the numbers of their lines."""
    try:
        text = read_at_most(path, _LARGEST).decode("utf-8-sig")
        first = text.partition("\n")[0]
        mark = max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "The list of pictures cannot be read.",
            where=f"{path} ({reason})",
            fix="Write it as UTF-8 text, a file and a label a line: a/1.jpg,cat",
        ) from error
    if not rows:
        raise InputError(
            "The list names no pictures.", where=str(path), fix="Write a file a line: a/1.jpg,cat"
        )
    return rows


def _columns(rows: Sequence[tuple[int, list[str]]], path: Path) -> tuple[int, int | None, int]:
    """Returns the column of the files, that of the labels, and the first row that is no header."""
    head = [cell.casefold() for cell in rows[0][1]]
    named = [place for place, cell in enumerate(head) if cell in _FILE]
    if not named or (path.parent / rows[0][1][0]).is_file():
        return 0, 1 if len(head) > 1 else None, 0
    if len(rows) == 1:
        raise InputError(
            "The list names no pictures below its header.",
            where=str(path),
            fix="Write a file a line: a/1.jpg,cat",
        )
    labels = [place for place, cell in enumerate(head) if cell in _LABEL]
    left = [place for place in range(len(head)) if place != named[0]]
    # a header of two columns calls its labels as it likes
    label = labels[0] if labels else left[0] if len(left) == 1 else None
    return named[0], label, 1
