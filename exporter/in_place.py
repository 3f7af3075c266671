"""Says which tensor a function of torch changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

#: Operators of Python that change what stands on their left.
_ASSIGNING: Final = frozenset(
    f"__i{name}__"
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"),
        *("lshift", "rshift", "div"),
    )
)


def changed_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the tensor whose numbers a call changes in place; None for a call that changes none.

    Args:
        func: The function, as ``__torch_function__`` is given it.
        args: What it takes.
        kwargs: What it takes by name.
    """
    name = str(getattr(func, "__name__", "")).partition(".")[0]
    method = name.endswith("_") and not name.endswith("__")
    # Attributes are set by a method of their property: of them, data is numbers.
    data = name == "__set__" and getattr(func.__self__, "__name__", "") == "data"
    target = kwargs.get("out")
    if method or data or name in _ASSIGNING or name == "__setitem__":
        target = args[0] if args else None
    return target if isinstance(target, Tensor) else None
