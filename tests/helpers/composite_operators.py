"""Lets torch.export look up quickly which operators are composite, in each trace of a process.

A trace and an export to ONNX ask for all of them once for each namespace, and enter two hundred and
more into the dispatcher of Python and take them out again, under some twenty keys. Of a small graph
that takes more than half of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch


def look_up_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives torch.export the same operators, and enters the same kernels, in less time."""
    from torch._export import utils
    from torch.export import decomp_utils, exported_program

    collect = collect_once_a_lookup()
    for module in (utils, exported_program, decomp_utils):
        monkeypatch.setattr(module, "_collect_all_valid_cia_ops", collect)
    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", enter_as_before())


def collect_once_a_lookup() -> Callable[[], set[Any]]:
    """Returns torch's lookup, which asks the dispatcher of C++ once for all namespaces."""
    from torch._export import utils

    ask, collect = utils._materialize_cpp_cia_ops, utils._collect_all_valid_cia_ops

    def collected() -> set[Any]:
        ask()
        with pytest.MonkeyPatch.context() as within:
            within.setattr(utils, "_materialize_cpp_cia_ops", lambda: None)
            return collect()

    return collected


@dataclass(frozen=True)
class Entered:
    """What torch entered for an operator.

    Attributes:
        before: Its kernels by key, before.
        decomposition: What it was to become in a trace.
        kernels: Its kernels by key, from then on.
        fake: What runs it on fake tensors.
    """

    before: Mapping[Any, Any]
    decomposition: Callable[..., Any]
    kernels: Mapping[Any, Any]
    fake: Callable[..., Any]


def enter_as_before() -> Callable[[Mapping[Any, Callable[..., Any]]], Any]:
    """Returns torch's entering of decompositions, which remembers what it entered.

    What it entered before is entered again as long as an operator has the kernels that it had.
    """
    from torch._subclasses.fake_impls import _deregister_op_impl, op_implementations_dict
    from torch.export import exported_program

    enter = exported_program._override_composite_implicit_decomp
    known: dict[Any, Entered] = {}

    def is_known(operator: torch._ops.OpOverload, decomposition: Callable[..., Any]) -> bool:
        one = known.get(operator)
        return (
            one is not None
            and one.decomposition is decomposition
            and operator not in op_implementations_dict
            and operator.py_kernels == one.before
        )

    @contextmanager
    def entering(decompositions: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
        again = {one for one, wanted in decompositions.items() if is_known(one, wanted)}
        new = {one: wanted for one, wanted in decompositions.items() if one not in again}
        before = {one: dict(one.py_kernels) for one in new if one not in op_implementations_dict}
        with enter(new):
            for one, kernels in before.items():
                fake = op_implementations_dict[one]
                known[one] = Entered(kernels, new[one], dict(one.py_kernels), fake)
            for one in again:
                _set_kernels(one, known[one].kernels)
                op_implementations_dict[one] = known[one].fake
            try:
                yield
            finally:
                for one in again:
                    _set_kernels(one, known[one].before)
                    _deregister_op_impl(one)

    return entering


def _set_kernels(operator: torch._ops.OpOverload, kernels: Mapping[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()
