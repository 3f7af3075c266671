"""Checks the values of inputs that were fixed when a model was compiled.

The artifact does not take them: what the model reads from them is in the graph. A caller may leave
one out, or pass it as the model takes it, with exactly the fixed value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokexport.runtimes.errors import InputMismatchError

#: Values of so many numbers are shown whole.
_SHOWN = 24


@dataclass(frozen=True)
class ConstantInput:
    """An input of the model whose value the artifact holds.

    Attributes:
        name: Its name.
        shape: Its sizes.
        dtype: The name of its numpy dtype.
        values: Its numbers, in nested lists as they are shaped; one that is infinite as the text
            ``Infinity`` or ``-Infinity``, which JSON has no number for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: Any

    @classmethod
    def of(cls, name: str, value: NDArray[Any]) -> Self:
        """Returns the constant of a value."""
        return cls(name, tuple(value.shape), value.dtype.name, _written(value.tolist()))

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """Returns the constant of an object of JSON.

        Raises:
            ValueError: Its values are no numbers of its type and shape.
        """
        found = cls(given["name"], tuple(given["shape"]), given["dtype"], given["values"])
        if found.array.shape != found.shape or found.array.dtype.kind not in "biuf":
            raise ValueError(f"the values of {found.name} have shape {found.array.shape}")
        return found

    @cached_property
    def array(self) -> NDArray[Any]:
        """The value; it cannot be changed."""
        found = np.array(_read(self.values), dtype=self.dtype)
        found.flags.writeable = False
        return found

    def __str__(self) -> str:
        """Returns the name with the value: ``grid_thw = [[1, 4, 4]]``."""
        return f"{self.name} = {shown(self.array)}"

    def require(self, given: NDArray[Any]) -> None:
        """Raises InputMismatchError where an array of this shape and type has another value."""
        wanted = self.array
        differs = given != wanted
        if given.dtype.kind == "f":  # 1 / 0.0 and 1 / -0.0 are no neighbours
            differs |= np.signbit(given) != np.signbit(wanted)
        if not np.any(differs):
            return
        what = f"Input {self.name} is {shown(given)}, and the artifact is for {shown(wanted)} only."
        if given.size > _SHOWN:
            at = tuple(int(place) for place in np.argwhere(differs)[0])
            what = (
                f"Input {self.name} holds {given[at]} at {at}, and the artifact is for "
                f"{wanted[at]} there only."
            )
        raise InputMismatchError(
            what,
            where=f"The value of {self.name} was fixed when the model was compiled, and "
            f"{int(np.count_nonzero(differs))} of {given.size} numbers differ.",
            fix=f"Leave {self.name} out or pass that value; or compile with --constant "
            f"{self.name}=VALUE for another.",
        )


def shown(value: NDArray[Any]) -> str:
    """Returns a value as a user writes it; of many numbers the first, and its shape."""
    if value.size <= _SHOWN:
        return _text(value)
    first = ", ".join(map(str, value.reshape(-1)[:4]))
    return f"{first}, … of shape {tuple(value.shape)}"


def _text(value: NDArray[Any]) -> str:
    """Writes each number as short as its type has it: 0.1 of float32, too."""
    return f"[{', '.join(map(_text, value))}]" if np.ndim(value) else str(value)


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _read(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_read(one) for one in value]
    if isinstance(value, str):
        return {"Infinity": math.inf, "-Infinity": -math.inf}[value]
    return value
