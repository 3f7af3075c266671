"""Gives a tracer the numbers of an example where the model's code reads them.

A tracer gives values no numbers, and stops where code branches on one. Here the model runs on the
example first, and what it reads is written down in order; while it is traced, the same reads set a
hint for the tracer's symbols::

    if (ids == 0).any():     the branch that the example takes, and an assertion that it is the one
    n = mask.sum().item()    a symbol still; if n > 3: is decided, and asserted

An assertion that is left in the graph is a check of the artifact (``pad/numbers_of_rows.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import TensorReferenceAnalysis

from tokexport.graph_passes.torch_passes.graph.calls import base_name

#: What turns a tensor into a Python number or truth at once.
_NUMBERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "__bool__": bool,
    "is_nonzero": bool,
    "__int__": int,
    "__index__": int,
    "__float__": float,
}
#: What gives numbers, or tensors whose sizes are numbers, that only the data says.
_READS: Final = frozenset(
    name
    for line in (
        "item tolist nonzero argwhere where masked_select __getitem__ unique _unique2",
        "unique_consecutive repeat_interleave bincount pad_sequence",
    )
    for name in line.split()
)


#: What an input does that takes another branch than the example.
BRANCH: Final = "the code branches otherwise than on the sample"
NUMBER: Final = (
    "the code reads another number than on the sample (int() and float() fix one, .item() does not)"
)
_TYPES: Final = {torch.SymInt: torch.int64, torch.SymFloat: torch.float64}
_SYMBOLS: Final = (torch.SymInt, torch.SymFloat, torch.SymBool)


class ExampleNumbers(TorchFunctionMode):
    """Records what a model reads from its tensors, and gives it as hints while it is traced.

    But for ``SliceBounds`` it has to be the innermost of the modes that are entered, so that it
    meets every call of the model itself. ``begin`` ends the first part.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: list[tuple[str, list[Any]]] = []
        self._position: int | None = None
        self._symbols: dict[Any, Any] = {}
        self._hints: dict[Any, Any] = {}
        self._hinted: list[Any] = []

    def begin(self) -> None:
        """Ends the recording and begins to give hints."""
        self._position = 0

    def end(self) -> None:
        """Ends; what is decided later would be asserted nowhere, and gets no hint."""
        self._hints.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function, and records the numbers in its result or gives them as hints."""
        name, kwargs = base_name(func), dict(kwargs or {})
        if name in ("equal", "allclose"):
            return self._compared(name, args, kwargs)
        if name in _NUMBERS:
            return self._number(func, name, args[0])
        if name == "item" and self._position is not None and args[0].dtype is torch.bool:
            return self._truth(args[0])
        found = func(*args, **kwargs)
        if name in _READS:
            self._met(name, found)
        return found

    def _met(self, name: str, found: Any) -> None:
        """Records the numbers in a result, or gives hints for its symbols."""
        own = _numbers_in(found)
        if self._position is None:
            self._read.append((name, own))
            return
        for one, value in zip(own, self._next(name, len(own)) or (), strict=False):
            self._hint(one, value)

    def _next(self, name: str, count: int) -> list[Any] | None:
        """Returns what the example gave at the next read; None where the branches differ."""
        assert self._position is not None
        read = self._read[self._position : self._position + 1]
        if not read or read[0][0] != name or len(read[0][1]) != count:
            self._read = []
            return None
        self._position += 1
        return read[0][1]

    def _number(self, func: Callable[..., Any], name: str, tensor: Tensor) -> Any:
        if self._position is None:
            value = func(tensor)
            self._read.append(("item", [value]))
            return value
        number = tensor.item()
        value = self._next("item", 1)
        if not isinstance(number, _SYMBOLS):  # something beside the trace knows it
            return _NUMBERS[name](number)
        if value is None:
            return func(tensor)  # fails as it does without an example
        (value,) = value
        is_truth = _NUMBERS[name] is bool
        holds = (tensor != 0) == bool(value) if is_truth else tensor == value
        assert_in_graph(holds.reshape(()), BRANCH if is_truth else NUMBER)
        return _NUMBERS[name](value)

    def _truth(self, tensor: Tensor) -> Any:
        """``item`` of a truth value, as the number that it is."""
        number = tensor.to(torch.int64).item()
        self._met("item", number)
        return number == 1

    def _compared(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """``equal`` and ``allclose``, which give a Python truth."""
        one, other = args[:2] if len(args) > 1 else (args[0], kwargs.pop("other"))
        if name == "equal" and one.shape != other.shape:
            return False
        same = one == other if name == "equal" else torch.isclose(one, other, *args[2:], **kwargs)
        with self:
            return bool(same.all())

    def _hint(self, symbol: Any, value: Any) -> None:
        """Records the value of a tracer's symbol on the example."""
        if not isinstance(symbol, _SYMBOLS) or not symbol.node.expr.is_Symbol:
            return
        number = float(value) if isinstance(symbol, torch.SymFloat) else int(value)
        self._symbols[symbol.node.expr] = symbol
        self._hints[symbol.node.expr] = number
        shape_env = symbol.node.shape_env
        if shape_env not in self._hinted:
            self._hinted.append(shape_env)
            _let_decide(shape_env, self._hints, self._decided)

    def _decided(self, expression: Any, result: Any) -> None:
        """Adds an assertion to the graph: a decision about symbols is that of the example."""
        tensors = {
            name: torch.scalar_tensor(self._symbols[name], dtype=_TYPES[type(self._symbols[name])])
            for name in expression.free_symbols
        }
        found: Any = sympy_interp(TensorReferenceAnalysis, tensors, expression)
        if result.is_Boolean:
            found = found if bool(result) else torch.logical_not(found)
        else:
            found = found == (int(result) if result.is_Integer else float(result))
        assert_in_graph(found)


def assert_in_graph(holds: Tensor, said: str = BRANCH) -> None:
    """Records in a trace the assumption that a truth value of rank 0 holds.

    Args:
        holds: The truth value.
        said: What an input does that breaks it, a clause.
    """
    torch.ops.aten._assert_async.msg(holds, said)


def _let_decide(shape_env: Any, hints: Mapping[Any, Any], decided: Callable[..., None]) -> None:
    """Makes a tracer decide by hints what it cannot decide otherwise, and records the decisions."""
    evaluate = shape_env.evaluate_expr
    deciding: list[Any] = []

    def with_hints(*args: Any, **kwargs: Any) -> Any:
        if deciding:  # what is said of a decision is decided without hints
            return evaluate(*args, **kwargs)
        for name, number in hints.items():
            shape_env.set_real_tensor_prop_unbacked_vals(name, number)
        try:
            return evaluate(*args, **kwargs)
        finally:
            shape_env.real_tensor_prop_unbacked_vals = {}

    def say(expression: Any, result: Any) -> None:
        shape_env.real_tensor_prop_unbacked_vals = {}
        deciding.append(expression)
        try:
            decided(expression, result)
        finally:
            deciding.pop()

    shape_env.evaluate_expr = with_hints
    shape_env._log_real_tensor_propagation = say


def _numbers_in(found: Any) -> list[Any]:
    """Returns the numbers in a result, and the sizes of the tensors in it."""
    numbers: list[Any] = []
    for one in pytree.tree_leaves(found):
        numbers += [*one.shape] if isinstance(one, Tensor) else [one]
    return numbers
