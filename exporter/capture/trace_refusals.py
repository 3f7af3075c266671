"""Says why a model cannot be traced to a static graph, with the person's own line."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.exporter.errors import FIXED_COUNTS, DataDependentError, ModelNotSupportedError
from tokexport.graph_passes.stack_traces import innermost_line, origin, raised_at
from tokexport.graph_passes.torch_errors import depends_on_data, in_words


def scripted_part(model: nn.Module) -> ModelNotSupportedError | None:
    """Says which part of a model is TorchScript, which torch.export does not trace."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return ModelNotSupportedError(
                f"The model cannot be traced by torch.export: '{name.removeprefix('model.')}' is "
                "TorchScript.",
                fix="Put the module there that it was scripted or traced from.",
            )
    return None


def refusal(error: BaseException) -> ModelNotSupportedError:
    """Turns what torch.export raised into a message with the person's own line."""
    line = raised_at(error) or _users_line(str(error))
    where = f"At {line}" if line else ""
    if depends_on_data(error):
        return DataDependentError(
            "A number of tokens or a branch depends on the values of the input, and a static graph "
            "has no room for that.",
            where=where,
            fix=FIXED_COUNTS,
        )
    return ModelNotSupportedError(
        f"The model cannot be traced by torch.export: {in_words(error)}.",
        where=where,
        fix="Rewrite that line with operations on tensors of fixed shape, or export the model "
        "yourself with torch.export and give the .pt2 file.",
    )


def _users_line(text: str) -> str:
    """Finds the innermost frame of the user's stack in torch's message."""
    for marker in ("User Stack", "The following call raised this error", "from user code"):
        _, found, rest = text.partition(marker)
        if found:
            frames = re.split(r"\n\s*\n", rest, maxsplit=1)[0]
            line = innermost_line(frames)
            if line:
                return line
    return ""


def check_static(program: ExportedProgram) -> None:
    """Refuses a size that is only known when the graph runs, and tensors that are not plain."""
    for node in program.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, Tensor) and (layout := _unusual(value)):
                raise ModelNotSupportedError(
                    f"The result of {node.target} is {layout} tensor, which no target takes.",
                    where=origin(node),
                    fix="Compute it densely, with the zeros written out, in ordinary types.",
                )
            sizes = value.shape if isinstance(value, Tensor) else (value,)
            if any(isinstance(size, torch.SymInt | torch.SymFloat) for size in sizes):
                raise DataDependentError(
                    f"The result of {node.target} has a size that depends on the values of the "
                    "input.",
                    where=origin(node),
                    fix=FIXED_COUNTS,
                )


def _unusual(value: Tensor) -> str:
    """Says how a tensor is laid out where it is not rows of plain numbers; else ''."""
    if value.is_nested:
        return "a nested"
    if value.is_quantized:
        return "a quantised"
    layout = str(value.layout).removeprefix("torch.")
    return "" if layout == "strided" else f"a {layout.replace('_', ' ')}"
