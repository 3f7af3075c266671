"""Traces a model to a static graph whose inputs and outputs are named tensors.

Where it cannot be traced, a refusal says why, with the user's own line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.exporter.capture.dynamic_sizes import OR_CAP, Padding, SomeRows, with_fixed_sizes
from tokexport.exporter.capture.example_numbers import ExampleNumbers
from tokexport.exporter.capture.known_values import KnownValues
from tokexport.exporter.capture.slice_bounds import SliceBounds
from tokexport.exporter.capture.spelled_out import SpelledOut
from tokexport.exporter.capture.traced_lines import tracing
from tokexport.exporter.capture.view_writes import write_by_copy
from tokexport.exporter.counts.fixed_counts import FixedCounts
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.errors import FIXED_COUNTS, DataDependentError, ModelNotSupportedError
from tokexport.exporter.inputs.constant_inputs import suggested
from tokexport.graph_passes.stack_traces import innermost_line, origin, raised_at
from tokexport.graph_passes.torch_errors import depends_on_data, in_words
from tokexport.graph_passes.torch_passes.graph.added_output import drop_writes
from tokexport.runtimes.memory import lacks_memory

#: Room for so many rows is tried, to see whether a model could be padded.
_ROOM_TO_TRY = 1024
#: Inputs of so many floats may be settings: a threshold, a scale for each axis.
_FEW = 16


def capture(
    model: nn.Module, example: Sequence[Tensor], caps: Sequence[int] | None = None
) -> ExportedProgram:
    """Returns the functional graph of a model of tensors on inputs of these shapes.

    The model is left as it was, its attributes and training flags included.

    Args:
        model: Takes and gives flat tensors.
        example: Inputs of the shapes to trace.
        caps: For how many rows each choice by the data has room; None allows no choice by the data.

    Raises:
        DataDependentError: A count or a branch depends on the values of the input.
        ModelNotSupportedError: torch.export cannot trace the model for another reason.
    """
    return capture_padded(model, example, caps)[0]


def capture_padded(
    model: nn.Module, example: Sequence[Tensor], caps: Sequence[int] | None
) -> tuple[ExportedProgram, Padding]:
    """Captures as ``capture`` does, and returns what was padded too.

    With caps the model runs on the example first: the graph takes the example's branches, and
    checks them. Without caps a refusal says whether caps would help, and which inputs to fix.
    """
    try:
        return _captured(model, example, caps)
    except ModelNotSupportedError as error:
        if caps is None and isinstance(error, DataDependentError) and _helps(model, example):
            error.fix += OR_CAP
        if fixed := _fixed_that_help(model, example, caps):
            error.fix = suggested(fixed, error.fix)
        raise


def _fixed_that_help(
    model: nn.Module, example: Sequence[Tensor], caps: Sequence[int] | None
) -> tuple[str, ...]:
    """Returns the inputs that make a model traceable once they are constants; maybe none."""
    if type(model) is not FlatModel:
        return ()
    named = dict(zip(model.spec.names, example, strict=True))
    likely = tuple(name for name, one in named.items() if _may_be_fixed(one))
    for names in dict.fromkeys((*((name,) for name in likely), likely)):
        if not names or len(names) == len(named):
            continue
        spec = model.spec.fixing({name: named[name] for name in names})
        left = [named[name] for name in spec.names]
        try:
            _captured(FlatModel(model.model, spec), left, caps)
        except ModelNotSupportedError:
            continue
        return names
    return ()


def _may_be_fixed(example: Tensor) -> bool:
    """Returns whether an input may be a setting of a few values, not an image or features."""
    if example.is_floating_point() or example.is_complex():
        return example.dim() <= 1 and example.numel() <= _FEW
    return example.dtype != torch.uint8 or example.dim() <= 2


def _helps(model: nn.Module, example: Sequence[Tensor]) -> bool:
    """Returns whether a model can be padded with large caps."""
    try:
        _captured(model, example, (_ROOM_TO_TRY,))
    except ModelNotSupportedError:
        return False
    return True


def _captured(
    model: nn.Module, example: Sequence[Tensor], caps: Sequence[int] | None
) -> tuple[ExportedProgram, Padding]:
    numbers = ExampleNumbers()
    with ExitStack() as quiet:
        entered = quiet.enter_context(evaluation(model))
        quiet.enter_context(tracing())
        try:
            if caps is not None:
                with numbers, SliceBounds():
                    model(*example)
                entered.begin_again()
                numbers.begin()
            with ExitStack() as modes:
                for mode in (SpelledOut(), SomeRows(), FixedCounts(), KnownValues(model)):
                    modes.enter_context(mode)
                if caps is not None:
                    modes.enter_context(numbers)
                modes.enter_context(SliceBounds())
                traced = torch.export.export(model, tuple(example), strict=False)
            numbers.end()
            write_by_copy(traced.graph_module)
            program: ExportedProgram = traced.run_decompositions({})
            drop_writes(program)
        except (Exception, SystemExit) as error:
            if isinstance(error, DataDependentError):
                raise
            if lacks_memory(error):
                raise MemoryError(f"Tracing the model: {error}") from error
            raise (scripted_part(model) or refusal(error)) from error
        padding = with_fixed_sizes(program, caps)
    check_static(program)
    return program, padding


def scripted_part(model: nn.Module) -> ModelNotSupportedError | None:
    """Returns the refusal of a TorchScript part, which torch.export does not trace."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return ModelNotSupportedError(
                f"The model cannot be traced by torch.export: '{name.removeprefix('model.')}' is "
                "TorchScript.",
                fix="Put the module there that it was scripted or traced from.",
            )
    return None


def refusal(error: BaseException) -> ModelNotSupportedError:
    """Turns what torch.export raised into a message with the user's own line."""
    line = raised_at(error) or _users_line(str(error))
    where = f"At {line}" if line else ""
    if depends_on_data(error):
        return DataDependentError(
            "A number of tokens or a branch depends on the values of the input, and a static "
            "graph cannot hold that.",
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
    """Returns the layout of a tensor that is not dense and plain; '' for others."""
    if value.is_nested:
        return "a nested"
    if value.is_quantized:
        return "a quantised"
    layout = str(value.layout).removeprefix("torch.")
    return "" if layout == "strided" else f"a {layout.replace('_', ' ')}"
