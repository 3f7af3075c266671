"""Which number a class has by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs.class_numbers import (
    ClassNames,
    NumberedClasses,
    numbered,
    read_class_names,
)

HERE = Path("photos")


def known(asked: bool, **numbers: int) -> ClassNames:
    return ClassNames.of(numbers, "names.txt", asked)


def test_names_have_their_places_in_sorted_order() -> None:
    found = numbered(["dog", "ape", "Cat"], None, HERE)
    assert dict(found.numbers) == {"Cat": 0, "ape": 1, "dog": 2}
    assert found.by_place
    assert found.how == "numbered in sorted order: Cat is 0, ape is 1, dog is 2"
    assert found.warnings == ()


def test_whole_numbers_are_themselves() -> None:
    found = numbered([str(number) for number in range(12)], None, HERE)
    assert dict(found.numbers) == {str(number): number for number in range(12)}
    assert not found.by_place
    (warning,) = found.warnings
    assert "10 is class 10." in warning
    assert "it would be 2" in warning
    padded = numbered(["00", "01", "02"], None, HERE)
    assert (dict(padded.numbers), padded.warnings) == ({"00": 0, "01": 1, "02": 2}, ())


@pytest.mark.parametrize("name", ["65536", "9" * 25, "9" * 5000])
def test_numbers_of_no_class_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is the number of no class"):
        numbered(["0", name], None, HERE)
    assert dict(numbered(["0" * 5000 + "7"], None, HERE).numbers).popitem()[1] == 7


def test_numbers_beside_names_are_names() -> None:
    assert numbered(["1", "two"], None, HERE).by_place


def test_names_of_the_model_have_its_numbers() -> None:
    for asked in (True, False):
        found = numbered(
            ["tiger_shark", "Tench"], known(asked, tench=0, **{"tiger shark": 3}), HERE
        )
        assert dict(found.numbers) == {"tiger_shark": 3, "Tench": 0}
        assert not found.by_place
        digits = numbered(["0", "1"], known(asked, **{"0": 7, "1": 8}), HERE)
        assert dict(digits.numbers) == {"0": 7, "1": 8}


def test_names_that_are_none_of_the_model() -> None:
    with pytest.raises(InputError) as caught:
        numbered(["tench", "wolf"], known(True, tench=0), HERE)
    assert "none of the model's: 'wolf'" in str(caught.value)
    with pytest.raises(InputError, match="'a', 'b'"):
        numbered(["a", "b"], known(True, tench=0), HERE)
    found = numbered(["tench", "wolf"], known(False, tench=0), HERE)
    assert dict(found.numbers) == {}
    assert "'wolf'. Their labels are not used." in found.warnings[0]
    assert numbered(["a", "b"], known(False, tench=0), HERE).by_place
    assert dict(numbered(["5"], known(True, tench=0), HERE).numbers) == {"5": 5}


@pytest.mark.parametrize(
    "text",
    [
        "tench\ngold fish\n\nwolf\n",
        '["tench", "gold fish", "", "wolf"]',
        '{"0": "tench", "3": "wolf", "1": "gold fish"}',
    ],
)
def test_names_from_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    found: NumberedClasses = numbered(
        ["Tench", "gold_fish", "wolf"], read_class_names(tmp_path / "names"), HERE
    )
    assert dict(found.numbers) == {"Tench": 0, "gold_fish": 1, "wolf": 3}


def test_a_name_of_two_classes_stands_for_neither(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("crane\ntench\ncrane\n")
    names = read_class_names(tmp_path / "names")
    assert dict(names.numbers) == {"tench": 1}


def test_an_empty_line_is_a_class_without_a_name_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("\ncat\n\ndog\n\n")
    assert read_class_names(tmp_path / "names").labels == ("", "cat", "", "dog")


@pytest.mark.parametrize(
    "text",
    [
        *("", " \n", "[1]", '{"a": "b"}', "[", '{"0": ["x"]}', "\xff"),
        *('{"-1": "a"}', '{"0": "a", "65536": "b"}', "[]", "{}", '{"0": "a", "00": "b"}'),
        *("\n" * 65536 + "a", '{"' + "9" * 5000 + '": "a"}'),
    ],
)
def test_files_without_names_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="names of the classes cannot be read"):
        read_class_names(tmp_path / "names")
    with pytest.raises(InputError, match="names of the classes cannot be read"):
        read_class_names(tmp_path / "missing")
