"""Refuses inputs on which an artifact would differ from the model that it was compiled from.

Where the data decide how many tokens a model keeps, the artifact has room for a number of them, and
assumes what held on the samples. Whether the assumptions hold for an input is one more output of
the artifact, which a runner reads and does not return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokexport.runtimes.errors import InputMismatchError

#: The name of the output, unless the model has an output of that name.
NAME = "input_checks"


@dataclass(frozen=True)
class InputCheck:
    """A condition that an input has to meet.

    Attributes:
        kind: ``room`` for a cap on rows, ``none`` for a choice of no row, ``rows`` for rows that
            have to be as many as others, ``branch`` for what the code decides.
        said: What an input does that breaks it, a clause.
        line: The line of the model's code, or ''.
    """

    kind: str
    said: str
    line: str

    def __str__(self) -> str:
        """Returns the clause with its line."""
        return f"{self.said}, at {self.line}" if self.line else self.said


@dataclass(frozen=True)
class InputChecks:
    """The checks of an artifact.

    Attributes:
        output: The name of the output that says whether they hold, truth values (checks,).
        held: The checks, in its order.
    """

    output: str
    held: tuple[InputCheck, ...]

    @classmethod
    def from_json(cls, given: Mapping[str, Any] | None) -> Self | None:
        """Returns the checks of an object of JSON whose types are right."""
        if given is None:
            return None
        held = (InputCheck(one["kind"], one["said"], one["line"]) for one in given["held"])
        return cls(given["output"], tuple(held))

    def require(self, holds: NDArray[np.bool_]) -> None:
        """Raises InputMismatchError where a check does not hold."""
        failed = [check for check, true in zip(self.held, holds, strict=True) if not true]
        if failed:
            raise InputMismatchError(
                "The artifact would not answer this input as the model does.",
                where="\n".join(dict.fromkeys(map(str, failed))),
                fix=_FIXES.get(failed[0].kind, _BY_SAMPLES),
            )


_BY_SAMPLES = "Compile with inputs like this one among --inputs: what samples do is proven."
_FIXES = {
    "room": "Compile with a larger --token-cap.",
    "none": _BY_SAMPLES,
    "rows": "Run samples one by one, or write the model so that it does not depend on this.",
    "branch": _BY_SAMPLES,
}
