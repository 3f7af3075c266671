"""What is looked up quickly is what torch looks up."""

from __future__ import annotations

from typing import Any

import torch
from torch._export import utils
from torch._subclasses.fake_impls import op_implementations_dict
from torch.export import exported_program

KEY = torch._C.DispatchKey.CompositeImplicitAutograd
OPERATOR = torch.ops.aten.pixel_unshuffle.default


def test_the_same_operators_are_found() -> None:
    wanted: set[Any] = set()
    for name in torch.ops._dir:
        namespace = getattr(torch.ops, name)
        if isinstance(namespace, torch._ops._OpNamespace):
            wanted |= utils._collect_all_valid_cia_ops_for_namespace(namespace)
    assert len(wanted) > 100
    assert exported_program._collect_all_valid_cia_ops() == wanted


def entered(decomposition: Any) -> tuple[dict[Any, Any], Any]:
    """Enters a decomposition, and returns the kernels by key and what runs on fake tensors."""
    with exported_program._override_composite_implicit_decomp({OPERATOR: decomposition}):
        return dict(OPERATOR.py_kernels), op_implementations_dict[OPERATOR]


def test_what_was_entered_is_entered_again_and_taken_out() -> None:
    def decomposition(*given: Any) -> Any:
        raise AssertionError

    before = dict(OPERATOR.py_kernels)
    op_implementations_dict.pop(OPERATOR, None)  # as torch leaves it behind a first trace
    kernels, fake = entered(decomposition)
    assert kernels[KEY] is decomposition
    assert len(kernels) > len(before) + 10
    assert OPERATOR.py_kernels == before
    assert OPERATOR not in op_implementations_dict
    assert entered(decomposition) == (kernels, fake)
    assert OPERATOR.py_kernels == before
    assert OPERATOR not in op_implementations_dict


def test_an_operator_with_another_kernel_is_entered_anew() -> None:
    def decomposition(*given: Any) -> Any:
        raise AssertionError

    kernels, _ = entered(decomposition)
    own = torch._C.DispatchKey.CPU
    assert own in kernels
    assert kernels[own] is not decomposition
    before = dict(OPERATOR.py_kernels)
    try:
        OPERATOR.py_kernels[own] = decomposition
        assert entered(decomposition)[0][own] is decomposition
        assert OPERATOR.py_kernels == {**before, own: decomposition}
    finally:
        OPERATOR.py_kernels.clear()
        OPERATOR.py_kernels.update(before)
        OPERATOR._dispatch_cache.clear()
