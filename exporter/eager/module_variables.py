"""Finds the state that functions keep in variables of their module.

A cache beside a class, ``_CACHE: dict = {}``, or a variable that a function declares ``global``, is
state of a model as much as its attributes: what the first run puts there, the next ones meet.
"""

from __future__ import annotations

import dis
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
from torch import Tensor

_MISSING: Final = object()
#: Types whose objects may be changed in place.
_KEEPERS: Final = (dict, list, set, deque, Tensor, np.ndarray, bytearray)


def values_kept(function: types.FunctionType) -> Iterator[Any]:
    """Yields the containers and tensors that a function names, and functions of its package."""
    own = (function.__module__ or "").partition(".")[0]
    for name in _named(function.__code__):
        value = function.__globals__.get(name)
        helper = isinstance(value, types.FunctionType) and value is not function
        if isinstance(value, _KEEPERS) or (helper and _package_of(value) == own):
            yield value


def assigned_again(function: types.FunctionType) -> Iterator[Callable[[], object]]:
    """Yields functions that restore the variables that a function assigns."""
    for name in _assigned(function.__code__):
        held = function.__globals__.get(name, _MISSING)
        yield partial(_set, function.__globals__, name, held)


def assigned_names(function: types.FunctionType) -> tuple[str, ...]:
    """Returns the variables of its module that a function assigns."""
    return _assigned(function.__code__)


def _package_of(value: Any) -> str:
    return (value.__module__ or "").partition(".")[0]


def _set(variables: dict[str, Any], name: str, held: Any) -> None:
    if held is _MISSING:
        variables.pop(name, None)
    else:
        variables[name] = held


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields the code of a function and of what is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=4096)
def _named(code: types.CodeType) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in _codes(code) for name in each.co_names))


@functools.lru_cache(maxsize=4096)
def _assigned(code: types.CodeType) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            step.argval
            for each in _codes(code)
            for step in dis.get_instructions(each)
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
        )
    )
