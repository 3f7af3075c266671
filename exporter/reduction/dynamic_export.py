"""Exports a reduced model as a program of plain ATen operators that takes any batch."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tokexport.exporter.capture.traced_lines import tracing
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.outputs import flatten
from tokexport.exporter.errors import GateError, ModelNotSupportedError, listed
from tokexport.exporter.reduction.blocks.special_tokens import other_inputs
from tokexport.exporter.reduction.surgery_distance import Answer
from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.graph_passes.stack_traces import raised_at, source_line
from tokexport.graph_passes.torch_errors import in_words

#: The batches at which the program must answer as the module does.
CHECKED: Final = (1, 3)
#: The tolerance between them, as a share of the scale around each value, where rounding explains no
#: more.
TOLERANCE: Final = 1e-5
_PLAIN: Final = ("aten", "prims")


def export_any_batch(model: FlatModel, inputs: Sequence[Tensor]) -> ExportedProgram:
    """Returns a program whose tensors keep the names of the model's inputs and weights.

    Its results nest as the model's do where these are tuples, lists and dicts; other results, for
    example an output class of a library, become a dict of named tensors. The example that it keeps
    has batch 1.

    Args:
        model: The reduced model, on flat inputs; those with the batch of the first have it along
            their leading axis.
        inputs: An example.

    Raises:
        ModelNotSupportedError: The model works for one batch only, or calls an operator that torch
            alone does not have.
        GateError: The program gives another answer than the model.
    """
    size = inputs[0].shape[:1]
    batched = [bool(size) and one.shape[:1] == size for one in inputs]
    alone = _alone(model)
    samples = [other_inputs(_at_batch(inputs, batched, count), 4) for count in CHECKED]
    example = _at_batch(inputs, batched, 2)  # a size of 1 is never free
    batch = Dim("batch", min=1)
    shapes = tuple({0: batch} if free else None for free in batched)
    with evaluation(alone), tracing():
        try:  # the outputs first: a trace may change the state of a method
            wanted = [pytree.tree_leaves(alone(*sample)) for sample in samples]
            traced = torch.export.export(alone, example, dynamic_shapes=shapes, strict=False)
            program: ExportedProgram = traced.run_decompositions({})
        except Exception as error:
            raise _refusal(error) from error
    _require_plain(program)
    program.example_inputs = (_at_batch(inputs, batched, 1), {})
    for count, sample, answer in zip(CHECKED, samples, wanted, strict=True):
        _check(program, sample, Answer(alone, sample, answer), answer, count)
    return program


def _alone(model: FlatModel) -> nn.Module:
    """Returns the model as a function of its tensors by name, its weights under their own names."""
    given = model.model

    def forward(self: nn.Module, *tensors: Tensor) -> Any:
        args, kwargs = model.spec.arguments(tensors)
        result = given.forward(*args, **kwargs)
        return result if _is_plain(result) else flatten(result)[0]

    kind = type(type(given).__name__, (nn.Module,), {"forward": _with_names(forward, model)})
    alone: nn.Module = kind()
    alone._parameters, alone._buffers = given._parameters, given._buffers
    alone._non_persistent_buffers_set = given._non_persistent_buffers_set
    alone._modules = given._modules
    return alone


def _with_names(forward: Callable[..., Any], model: FlatModel) -> Callable[..., Any]:
    """Gives a function of tensors the names of the model's inputs, by which export calls them."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [
        name if name.isidentifier() and not keyword.iskeyword(name) else f"input_{position}"
        for position, name in enumerate(model.spec.names)
    ]
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _is_plain(value: Any) -> bool:
    """Returns whether torch alone can rebuild a result."""
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return isinstance(value, Tensor | int | float | str | None)


def _at_batch(inputs: Sequence[Tensor], batched: Sequence[bool], count: int) -> tuple[Tensor, ...]:
    """Repeats or cuts the inputs that have the batch as their leading axis."""
    return tuple(
        torch.cat([one] * -(-count // one.shape[0]))[:count].clone() if free else one
        for one, free in zip(inputs, batched, strict=True)
    )


def _refusal(error: Exception) -> ModelNotSupportedError:
    return ModelNotSupportedError(
        f"The reduced model cannot be exported for any batch: {in_words(error)}.",
        where=raised_at(error),
        fix="Let forward read the batch from its input's shape, not from a number; or compile the "
        "model as it is, at one batch.",
    )


def _require_plain(program: ExportedProgram) -> None:
    """Refuses operators that come with another library."""
    foreign = {
        str(node.target): source_line(node)
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _PLAIN
    }
    if foreign:
        raise ModelNotSupportedError(
            f"The model calls operators that torch alone does not have: {listed(list(foreign))}.",
            where=next((f"At {line}" for line in foreign.values() if line), ""),
            fix="Compile the model instead: a bundle needs no torch.",
        )


def _check(
    program: ExportedProgram,
    inputs: Sequence[Tensor],
    answer: Answer,
    wanted: Sequence[Any],
    batch: int,
) -> None:
    """Compares the program with the module's outputs at one batch."""
    with torch.no_grad(), torch_warnings_silenced():
        found = pytree.tree_leaves(program.module()(*inputs))
    for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if not isinstance(one, Tensor):
            continue
        if one.shape == other.shape and answer.distance(place, other, TOLERANCE) <= TOLERANCE:
            continue
        raise GateError(
            f"The exported program gives other outputs than the reduced model at batch {batch}.",
            fix="The model computes something that depends on the batch it was traced with. "
            "Compile it at one batch instead.",
        )
