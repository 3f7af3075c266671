"""Traces a model to a static graph whose inputs and outputs are named tensors."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.exporter.errors import (
    DataDependentError,
    InputError,
    ModelNotSupportedError,
)
from tokexport.exporter.module_state import evaluation
from tokexport.exporter.outputs import Constant, flatten
from tokexport.exporter.torch_warnings import torch_log_silenced, torch_warnings_silenced
from tokexport.exporter.unbacked import FIX, SomeRows, with_fixed_sizes
from tokexport.graph_passes.live_rows import Selection
from tokexport.graph_passes.torch_passes.editor import innermost_line, source_line


@dataclass(frozen=True)
class CallSpec:
    """How named tensors become the arguments of ``forward``.

    Attributes:
        names: The input names, in order.
        tree: How the flat tensors nest in (args, kwargs); values that are no tensors are kept.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    tree: Any

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns (args, kwargs) with the tensors in their places."""
        given = iter(tensors)
        filled = [next(given) if leaf is _TENSOR else leaf for leaf in self.leaves]
        args, kwargs = torch.utils._pytree.tree_unflatten(filled, self.tree)
        return args, kwargs


_TENSOR = object()


def call_spec(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallSpec:
    """Names the tensors among the example arguments after the parameters of ``forward``."""
    signature = inspect.Signature(list(forward_parameters(model).values()))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"The example inputs do not fit the model's forward: {error}.",
            fix=f"It is forward{signature}.",
        ) from error
    names: list[str] = []
    for parameter, value in bound.arguments.items():
        kind = signature.parameters[parameter].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            for key, part in value.items():
                names += _names_within(part, key)
        elif kind is inspect.Parameter.VAR_POSITIONAL and len(value) == 1:
            names += _names_within(value[0], "input")
        else:
            names += _names_within(value, parameter)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"Two inputs of the model would be called '{twice[0]}'.",
            fix="Rename an argument of forward, so that parts joined by '_' differ.",
        )
    leaves, tree = torch.utils._pytree.tree_flatten((tuple(args), dict(kwargs)))
    marked = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return CallSpec(tuple(names), marked, tree)


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Returns the parameters of ``forward`` without self.

    A patched ``forward(*args, **kwargs)`` that passes everything on has no names of its own; the
    nearest ``forward`` of a base class that has some gives them.
    """
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = dict(inspect.signature(model.forward).parameters)
    if not own or any(parameter.kind not in catch_all for parameter in own.values()):
        return own
    for base in type(model).__mro__[1:]:
        forward = base.__dict__.get("forward")
        if forward is None or base is nn.Module:
            continue
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        if parameters and any(parameter.kind not in catch_all for parameter in parameters):
            return {parameter.name: parameter for parameter in parameters}
    return own


def _names_within(value: Any, name: str) -> list[str]:
    if isinstance(value, Tensor):
        return [name]
    if isinstance(value, dict):
        return [n for key, part in value.items() for n in _names_within(part, f"{name}_{key}")]
    if isinstance(value, tuple | list):
        return [n for i, part in enumerate(value) for n in _names_within(part, f"{name}_{i}")]
    return []


class FlatModel(nn.Module):
    """The model as a function from named tensors to a flat tuple of tensors.

    Args:
        model: The person's model; it is held, not copied.
        spec: How the inputs become its arguments.
    """

    def __init__(self, model: nn.Module, spec: CallSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the model; the outputs come in the order of ``output_names``."""
        args, kwargs = self.spec.arguments(tensors)
        return tuple(flatten(self.model(*args, **kwargs))[0].values())

    def named_outputs(self, *tensors: Tensor) -> tuple[dict[str, Tensor], dict[str, Constant]]:
        """Runs the model and returns its tensors and its constants by name.

        An output called like an input becomes NAME_out, or the next such name that nothing has:
        ONNX has one space of names.
        """
        args, kwargs = self.spec.arguments(tensors)
        outputs, constants = flatten(self.model(*args, **kwargs))
        taken = {*self.spec.names, *outputs}
        named: dict[str, Tensor] = {}
        for name, tensor in outputs.items():
            free = name
            while free in self.spec.names or (free != name and free in taken):
                free += "_out"
            named[free] = tensor
            taken.add(free)
        return named, constants


def capture(
    model: nn.Module, example: Sequence[Tensor], token_cap: int | None = None
) -> ExportedProgram:
    """Returns the functional graph of a model of tensors on inputs of these shapes.

    The model is left as it was, its attributes and training flags included.

    Args:
        model: Takes and gives flat tensors.
        example: Inputs of the shapes to trace.
        token_cap: For how many rows a choice by the data has room; None allows no such choice.

    Raises:
        DataDependentError: A count or a branch depends on the values of the input.
        ModelNotSupportedError: torch.export cannot trace the model for another reason.
    """
    return capture_padded(model, example, token_cap)[0]


def capture_padded(
    model: nn.Module, example: Sequence[Tensor], token_cap: int | None
) -> tuple[ExportedProgram, tuple[Selection, ...]]:
    """Captures as ``capture`` does, and returns the choices that were padded too."""
    with evaluation(model), torch.no_grad(), torch_warnings_silenced(), torch_log_silenced():
        try:
            with SomeRows():
                traced = torch.export.export(model, tuple(example), strict=False)
            program: ExportedProgram = traced.run_decompositions({})
        except (Exception, SystemExit) as error:
            raise _refusal(error) from error
        selections = with_fixed_sizes(program, token_cap)
    _check_static(program)
    return program, selections


def _refusal(error: BaseException) -> ModelNotSupportedError:
    """Turns what torch.export raised into a message with the person's own line."""
    text = str(error)
    line = _users_line(text) or raised_at(error)
    where = f"At {line}" if line else ""
    if "data-dependent" in text.lower() or "DataDependent" in type(error).__name__:
        return DataDependentError(
            "A number of tokens or a branch depends on the values of the input, and a static graph "
            "has no room for that.",
            where=where,
            fix=FIX,
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return ModelNotSupportedError(
        f"The model cannot be traced by torch.export: {type(error).__name__}: {first}",
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


def raised_at(error: BaseException) -> str:
    """Names the deepest frame that is neither torch's nor of this package, or ''."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith(own) and frame.line:
            found = f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    return found


def _check_static(program: ExportedProgram) -> None:
    """Refuses a graph in which some size is only known when it runs."""
    for node in program.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else (values,):
            sizes = value.shape if isinstance(value, Tensor) else (value,)
            if any(isinstance(size, torch.SymInt | torch.SymFloat) for size in sizes):
                raise DataDependentError(
                    f"The result of {node.target} has a size that depends on the values of the "
                    "input.",
                    where=f"At {source_line(node)}" if source_line(node) else f"Node {node.name}",
                    fix=FIX,
                )
