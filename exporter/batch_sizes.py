"""Says which batches artifacts are asked for, one each."""

from __future__ import annotations

from collections.abc import Sequence

from tokexport.exporter.errors import UsageError


def batches_of(given: object) -> tuple[int | None, ...]:
    """Returns the batches of an option, one or several; (None,) where none is named.

    Args:
        given: A number, or several.

    Raises:
        UsageError: They are not different whole numbers of 1 or more.
    """
    if given is None or isinstance(given, int):
        return (given,)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(f"The batch is {given}.", fix="Pass a batch of 1 or more, or several.")
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in given)
    if not given or not whole or len(set(given)) < len(given):
        text = ",".join(map(str, given))
        raise UsageError(f"The batches are {text}.", fix="Pass each number of 1 or more once.")
    return tuple(given)
