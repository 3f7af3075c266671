"""Leaves the cases of a test that say little more to ``make thorough``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_but(always: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Marks all cases of a parametrised test but some as ``thorough``.

    Args:
        always: The cases that every run holds; each has to be among the cases.
        cases: All of them, each a value or a tuple of values.
    """
    always, cases = list(always), list(cases)
    missing = [case for case in always if case not in cases]
    if missing:
        raise ValueError(f"{missing} are no cases of the test")
    return [case if case in always else _thorough(case) for case in cases]


def _thorough(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough)
