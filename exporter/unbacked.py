"""Lets torch.export trace models whose numbers of tokens depend on the data, and fixes the numbers.

torch.export gives such a number a symbol. The graph is then made static: masks of constants have a
known count, and with a cap the rest is padded; what cannot be is refused with its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from tokexport.exporter.errors import DataDependentError
from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.live_rows import Selection
from tokexport.graph_passes.torch_passes.cap_tokens import CapTokens
from tokexport.graph_passes.torch_passes.infrastructure import run_passes

#: What a person can do about a count that depends on the data.
FIX: Final = (
    "Make the count a constant (top-k with a fixed k in place of a threshold, of nonzero or of "
    ".item()): keep = scores.topk(K).indices; live = mask.gather(1, keep); then add "
    "torch.where(live, 0.0, -inf) to the attention logits and count only live rows in means."
)
_OR_CAP: Final = (
    " Or choose rows with a mask or nonzero, and pass --token-cap N to compile, which does the "
    "same."
)


class SomeRows(TorchFunctionMode):
    """Tells the tracer that a choice by the data takes at least one row.

    Without that, operators that treat an empty value apart (fused attention) cannot be traced.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the function and looks at the sizes of what it gives."""
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            if isinstance(part, Tensor):
                sizes: tuple[Any, ...] = tuple(part.shape)
                for size in sizes:
                    if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                        torch._check(size != 0)
        return found


def with_fixed_sizes(program: ExportedProgram, cap: int | None) -> tuple[Selection, ...]:
    """Makes a traced graph static, in place; one that is static already stays as it is.

    Args:
        program: The program.
        cap: For how many rows a choice by the data has room; None allows none.

    Returns:
        The choices that were padded.

    Raises:
        DataDependentError: A size cannot be fixed.
    """
    if not any(_is_symbolic(node.meta.get("val")) for node in program.graph.nodes):
        return ()
    cap_tokens = CapTokens(program, cap)
    try:
        run_passes(program, (cap_tokens,))
    except TokenCountError as error:
        fix = FIX + _OR_CAP if cap is None else FIX
        raise DataDependentError(error.what, where=error.where, fix=fix) from error
    left = set(program.graph.nodes)
    return tuple(one for one in cap_tokens.selections if one.count in left)


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_is_symbolic, value))
    sizes = value.shape if isinstance(value, Tensor) else (value,)
    return any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)
