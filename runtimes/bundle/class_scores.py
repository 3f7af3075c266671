"""Holds which output of a model scores its classes, and the names of those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: What the numbers of an output are: to be made probabilities by a softmax; probabilities that sum
#: to 1; or one number a class, each by itself.
LOGITS: Final = "logits"
PROBABILITIES: Final = "probabilities"
INDEPENDENT: Final = "independent"
FORMS: Final = (LOGITS, PROBABILITIES, INDEPENDENT)
#: The most names of classes, the most characters of one, and the most bytes of all.
MOST_LABELS: Final = 1 << 16
MOST_CHARACTERS: Final = 200
MOST_BYTES: Final = 1 << 22


@dataclass(frozen=True)
class ClassScores:
    """The output of a model that scores its classes.

    Attributes:
        output: Its name; its shape is (N, classes).
        form: ``logits``, which a softmax makes probabilities; ``probabilities``, which sum to 1; or
            ``independent``, where a picture may have several classes or none.
    """

    output: str
    form: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClassScores:
        """Reads what a manifest holds.

        Raises:
            ValueError: A value is missing or not of its kind.
        """
        output, form = data.get("output"), data.get("form")
        if not isinstance(output, str):
            raise ValueError("scores.output should be the name of an output")
        if form not in FORMS:
            raise ValueError(f"scores.form should be one of {', '.join(FORMS)}")
        return cls(output, form)


def read_labels(data: Any) -> tuple[str, ...]:
    """Reads the names of classes that a manifest holds, in the order of the output.

    Returns:
        The names, a line each.

    Raises:
        ValueError: They are no list of short texts, or too many.
    """
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise ValueError("labels should be a list of texts")
    if len(data) > MOST_LABELS:
        raise ValueError(f"labels should be at most {MOST_LABELS} texts")
    if any(len(one) > MOST_CHARACTERS for one in data):
        raise ValueError(f"labels should have at most {MOST_CHARACTERS} characters")
    return tuple(one.replace("\n", " ").replace("\t", " ") for one in data)
