"""Gives the names of classes their numbers: the places of a model's outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import InputError, listed
from tokexport.runtimes.bundle.class_scores import MOST_LABELS
from tokexport.runtimes.bundle.manifest import Manifest
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.printable import printable

#: Bytes of a file of class names; that of ImageNet has some thirty thousand.
_LARGEST: Final = 1 << 24


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes.

    Attributes:
        numbers: The number of the class that each name stands for; a class may have several names.
        origin: Where they were found.
        asked: Whether the user gave them, so that a name which is not among them is a mistake.
        labels: The name that is shown for each class, by its number, '' where it has none; here a
            name may stand for several.
    """

    numbers: Mapping[str, int]
    origin: str
    asked: bool = False
    labels: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        names: Mapping[str, int | None],
        origin: str,
        asked: bool = False,
        labels: Mapping[int, str] | None = None,
    ) -> ClassNames:
        """Returns class names; one that stands for several classes (None) is left out.

        Args:
            names: The number of the class that each name stands for.
            origin: Where they were found.
            asked: Whether the user gave them.
            labels: The name that is shown for each class, by its number.
        """
        found = {simplified(name): number for name, number in names.items()}
        numbers = {name: one for name, one in found.items() if one is not None}
        return cls(numbers, origin, asked, _by_place(labels or {}))


def _by_place(labels: Mapping[int, str]) -> tuple[str, ...]:
    """Returns labels in the order of their numbers; none where a number is no place."""
    if not labels or min(labels) < 0 or max(labels) >= MOST_LABELS:
        return ()
    return tuple(labels.get(number, "") for number in range(max(labels) + 1))


def classes_of_bundle(manifest: Manifest) -> ClassNames | None:
    """Returns the classes that a bundle was compiled with; None where its manifest names none."""
    found = manifest.classes
    return ClassNames.of({**found}, "the bundle's manifest") if found else None


@dataclass(frozen=True)
class NumberedClasses:
    """The number of every class by its name, as the user's files spell it.

    Attributes:
        numbers: The numbers.
        how: How they were found, a clause.
        warnings: What a reader has to know, a sentence each.
        by_place: Whether they are only the places in sorted order, which fits a model of exactly
            so many classes.
    """

    numbers: Mapping[str, int]
    how: str
    warnings: tuple[str, ...] = ()
    by_place: bool = False


def numbered(names: Sequence[str], known: ClassNames | None, where: Path) -> NumberedClasses:
    """Returns the number of each class.

    Names of the model's classes have the numbers of those; where only some are among them, no class
    has a number. Whole numbers are the numbers themselves. Other names are numbered by their place
    in sorted order, as ``ImageFolder`` of torchvision numbers its subfolders.

    Args:
        names: The names, each once.
        known: The names of the model's classes; None where nothing says them.
        where: What holds the names, for an error.

    Raises:
        InputError: Some names are none of the classes whose names the user gave.
    """
    ordered = sorted(names)
    found = {} if known is None else _by_name(ordered, known)
    if known is not None and len(found) == len(ordered):
        return NumberedClasses(found, f"numbered as {known.origin} names them")
    if all(name.isascii() and name.isdigit() for name in ordered):
        return _whole_numbers(ordered, where)
    unknown = listed([repr(name) for name in ordered if name not in found])
    if known is not None and found and not known.asked:
        said = f"Some classes of the pictures are none of the model's: {unknown}. "
        return NumberedClasses({}, "not numbered", (f"{said}Their labels are not used.",))
    if known is not None and known.asked:
        raise InputError(
            f"Some classes are none of the model's: {unknown}.",
            where=f"{where}; the model's are those of {known.origin}",
            fix="Name the subfolders, or the labels of the .csv, as that file names the classes.",
        )
    places = {name: place for place, name in enumerate(ordered)}
    said = listed([f"{name} is {place}" for name, place in places.items()], 3)
    return NumberedClasses(places, f"numbered in sorted order: {said}", by_place=True)


def simplified(name: str) -> str:
    """Returns a name without what spellings differ in: case, and underscores for spaces."""
    return " ".join(name.casefold().replace("_", " ").split())


def one_line(label: str) -> str:
    """Returns the name of a class as a terminal and a table can show it, in one line."""
    return printable(" ".join(label.split()))


def _by_name(names: Sequence[str], known: ClassNames) -> dict[str, int]:
    spelled = {name: simplified(name) for name in names}
    return {name: known.numbers[its] for name, its in spelled.items() if its in known.numbers}


def _whole_numbers(ordered: Sequence[str], where: Path) -> NumberedClasses:
    """Takes names that are whole numbers as the numbers of the classes.

    Raises:
        InputError: A number is that of no class.
    """
    if wrong := [name for name in ordered if _number(name) is None]:
        raise InputError(
            f"{wrong[0]!r:.40} is the number of no class.",
            where=str(where),
            fix=f"Number the classes from 0 to {MOST_LABELS - 1} at most, or name them.",
        )
    numbers = {name: _number(name) or 0 for name in ordered}
    other = [(name, place) for place, name in enumerate(ordered) if numbers[name] != place]
    warnings: tuple[str, ...] = ()
    if other:
        name, place = other[0]
        warnings = (
            f"The classes are named by whole numbers, which are taken as their numbers: {name} is "
            f"class {numbers[name]}. In sorted order, as torchvision's ImageFolder numbers them, "
            f"it would be {place}: if the model was trained so, write a .csv of files and labels.",
        )
    return NumberedClasses(numbers, "numbered by their names", warnings)


def read_class_names(path: Path) -> ClassNames:
    """Reads the names of a model's classes from a file, in the order of its outputs.

    Args:
        path: A text with a name a line; or JSON: a list, or an object of names by number.

    Raises:
        InputError: It cannot be read, or is neither.
    """
    try:
        text = read_at_most(path, _LARGEST).decode("utf-8-sig")
        pairs = _parsed(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "The names of the classes cannot be read.",
            where=f"{path} ({reason})",
            fix="Write a name a line, in the order of the model's outputs.",
        ) from error
    labels = {number: name for name, number in pairs}
    return ClassNames.of(once(pairs), path.name, asked=True, labels=labels)


def _number(text: str) -> int | None:
    """Returns the number of a class; None where a text is none."""
    digits = text.lstrip("0") or text[-1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MOST_LABELS))):
        return None
    return int(digits) if int(digits) < MOST_LABELS else None


def _parsed(text: str) -> list[tuple[str, int]]:
    """Returns the names of a file with the numbers of their classes."""
    stripped = text.strip()
    if stripped.startswith(("[", "{")):
        data: Any = json.loads(stripped)
        pairs = [*enumerate(data)] if isinstance(data, list) else [*data.items()]
    else:
        lines = text.rstrip().splitlines()  # an empty line at the start is a class without a name
        pairs = [(place, line.strip()) for place, line in enumerate(lines) if line.strip()]
    found: dict[int, str] = {}
    for key, name in pairs:
        number = _number(str(key))
        if not isinstance(name, str):
            raise ValueError(f"{name!r:.40} is no name")
        if number is None:
            raise ValueError(f"{str(key):.40} is the number of no class")
        if number in found:
            raise ValueError(f"class {number} has two names")
        found[number] = name
    if not found:
        raise ValueError("it holds no names")
    return [(name, number) for number, name in found.items()]


def once(pairs: Sequence[tuple[str, int]]) -> dict[str, int | None]:
    """Returns the number of each name; None of a name that stands for several classes.

    Args:
        pairs: Names with the numbers of their classes.
    """
    found: dict[str, int | None] = {}
    for name, number in pairs:
        key = simplified(name)
        found[key] = number if found.get(key, number) == number else None
    return found
