"""Traces models whose token counts depend on the data, and makes the counts static.

torch.export gives these counts symbols. The graph is then made static: masks of constants have a
known count, and with a cap the rest is padded; what cannot be is refused with its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from tokexport.exporter.errors import FIXED_COUNTS, DataDependentError
from tokexport.graph_passes.errors import TokenCountError
from tokexport.graph_passes.torch_passes.graph.calls import is_call
from tokexport.graph_passes.torch_passes.graph.pass_runner import run_passes
from tokexport.graph_passes.torch_passes.pad.numbers_of_rows import ASSERTIONS
from tokexport.graph_passes.torch_passes.pad.pad_tokens import PadTokens
from tokexport.graph_passes.torch_passes.pad.padded_rows import Check, Selection

#: The same, where padding would do.
OR_CAP: Final = (
    " Or pass --token-cap N: the model can be padded to N rows where the data decide how many, and "
    "a runner then refuses inputs that need more."
)


class SomeRows(TorchFunctionMode):
    """Makes the tracer assume that a choice by the data takes at least one row.

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


@dataclass(frozen=True)
class Padding:
    """The choices that were padded in a graph, and the checks of its inputs.

    Attributes:
        selections: The choices that were padded, in order.
        checks: The clauses whose truth is the last output of the graph, in order; where there is
            nothing to check, the graph has no output for it.
    """

    selections: tuple[Selection, ...] = ()
    checks: tuple[Check, ...] = ()


def with_fixed_sizes(program: ExportedProgram, caps: Sequence[int] | None) -> Padding:
    """Makes a traced graph static, in place; one that is static already stays as it is.

    Args:
        program: The program.
        caps: For how many rows each choice by the data has room, in order; None allows none.

    Returns:
        What was padded.

    Raises:
        DataDependentError: A size cannot be fixed.
    """
    if not any(
        _is_symbolic(node.meta.get("val")) or is_call(node, *ASSERTIONS)
        for node in program.graph.nodes
    ):
        return Padding()
    padding = PadTokens(program, caps)
    try:
        run_passes(program, (padding,), "capture")
    except TokenCountError as error:
        raise DataDependentError(error.what, where=error.where, fix=FIXED_COUNTS) from error
    left = set(program.graph.nodes)
    selections = tuple(one for one in padding.selections if one.count in left)
    return Padding(selections, padding.checks)


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_is_symbolic, value))
    sizes = value.shape if isinstance(value, Tensor) else (value,)
    return any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)
