"""Runs the model as the user gave it: its outputs are the reference of every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation, parameter_versions
from tokexport.exporter.eager.outputs import Answer, Constant, same_answers
from tokexport.exporter.eager.run_counters import RUNS, RunCounters
from tokexport.exporter.eager.settled_state import other_inputs, settle, weights_of
from tokexport.exporter.errors import (
    FIXED_COUNTS,
    DataDependentError,
    ExporterError,
    ModelNotSupportedError,
    NotFiniteError,
    NotRepeatableError,
)
from tokexport.exporter.inputs.batches import Batches
from tokexport.graph_passes.stack_traces import raised_at
from tokexport.graph_passes.torch_errors import in_words
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.memory import lacks_memory

#: How far a second run may be off, as a share of the scale of each value's own neighbourhood.
REPEATS: Final = 1e-6


@dataclass(frozen=True)
class Reference:
    """The outputs of eager in fp32.

    Attributes:
        outputs: By name, an array (batches, …) each.
        constants: What the model returned that was no tensor.
    """

    outputs: dict[str, Array]
    constants: dict[str, Constant]


def tensors_of(batch: dict[str, Array]) -> tuple[Tensor, ...]:
    """Returns the arrays of one batch as tensors, in their order."""
    return tuple(torch.from_numpy(np.array(array, order="C")) for array in batch.values())


def run_reference(model: FlatModel, batches: Batches, *, twice: bool = True) -> Reference:
    """Runs the model on every batch, the first one twice.

    Args:
        model: Takes and gives flat tensors.
        batches: The inputs.
        twice: Whether the first batch is run again, to see that the answer is the same.

    Raises:
        NotRepeatableError: The second run of the first batch differs from the first run.
        DataDependentError: Another batch gives outputs of another shape or name.
        NotFiniteError: An output holds NaN.
        ModelNotSupportedError: The model fails in eager, or rewrites its own weights in eval.
    """
    versions = parameter_versions(model)
    every = iter(batches)
    first = next(every)
    (outputs, constants), again = _first_run(model, tensors_of(first), versions, twice=twice)
    rows = [outputs]
    if again is not None:
        _check_repeats((outputs, constants), again)
    if len(batches) > 1:
        with evaluation(model) as entered:
            for position, batch in enumerate(every, start=1):
                entered.begin_again()
                outputs, found = _run(model, tensors_of(batch))
                check_constants(constants, found, f"batch {position}")
                rows.append(outputs)
                _check_shapes(rows[0], outputs, position)
    _require_same_weights(model, versions)
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    _check_finite(stacked)
    return Reference(stacked, constants)


def _require_same_weights(model: FlatModel, versions: dict[str, Any]) -> None:
    now = parameter_versions(model)
    changed = [name for name, version in now.items() if versions[name] != version]
    _refuse_rewriting([name for name in changed if name not in model.settled])


def _refuse_rewriting(changed: Sequence[str]) -> None:
    if changed:
        raise ModelNotSupportedError(
            "The model rewrites its own weights while it runs in eval mode.",
            where=f"Changed: {', '.join(changed[:8])}.",
            fix="Compute the value without storing it, or store it once before compiling.",
        )


def _first_run(
    model: FlatModel, tensors: Sequence[Tensor], versions: dict[str, Any], *, twice: bool
) -> tuple[Answer, _Again | None]:
    """Runs the model twice, checks that its weights stay the same, and restores everything."""
    again = None
    with evaluation(model, weights=True) as entered:
        counters = entered.counters()
        answer = _run(model, tensors)
        if twice:
            now = parameter_versions(model)
            kept = tuple(name for name, one in now.items() if versions.get(name) != one)
            counters.look()
            second = _run(model, tensors)
            counters.look()
            after_other = _run_of_others(model, tensors)
            counters.look()
            if same_answers(answer, second, REPEATS):
                _require_same_later(answer, counters, partial(_run, model, tensors))
            entered.begin_again()
            anew = _run(model, tensors)
            entered.begin_again()
            others = _run_of_others(model, tensors), after_other
            again = _Again(second, anew, others, kept)
    rewritten = set(map(id, entered.memory.rewritten))
    written = [name for name, one in weights_of(model) if id(one) in rewritten]
    if written and not model.settled and settle(model, written, tensors, partial(_run, model)):
        versions.clear()
        versions |= parameter_versions(model)
        return _first_run(model, tensors, versions, twice=twice)
    _require_same_weights(model, versions)
    _refuse_rewriting([name for name in written if name not in model.settled])
    return answer, again


def _require_same_later(answer: Answer, counters: RunCounters, run: Callable[[], Answer]) -> None:
    """Refuses a model that counts its runs and gives other outputs after many runs."""
    counting, many = counters.names(), 3
    for more in RUNS if counting else ():
        counters.advance(more - 1)
        many += more
        try:
            does = "" if same_answers(answer, run(), REPEATS) else "answers otherwise"
        except ExporterError:
            does = "fails"
        if does:
            raise ModelNotSupportedError(
                f"The model counts how often it ran, and {does} after {many:,} runs: "
                f"{', '.join(counting[:8])}.",
                fix="Compute the value without storing it, or take it as an input and return it.",
            )


@dataclass(frozen=True)
class _Again:
    """The results of further runs of a model.

    Attributes:
        after: From the state that the first run left.
        anew: From the state before the first run.
        others: On another input, from the state before the first run and the state after it; None
            where it fails there.
        kept: The weights that the first run replaced.
    """

    after: Answer
    anew: Answer
    others: tuple[Answer | None, Answer | None]
    kept: tuple[str, ...]


def _run(model: FlatModel, tensors: Sequence[Tensor]) -> Answer:
    """Runs a model in evaluation mode, on copies: it may write into what it is given.

    The result is copied too: it may be state of the model.
    """
    try:
        with torch.no_grad():
            outputs, constants = model.named_outputs(*(tensor.clone() for tensor in tensors))
    except ExporterError:
        raise
    except (Exception, SystemExit) as error:
        if lacks_memory(error):
            raise MemoryError(f"The model in eager: {error}") from error
        line = raised_at(error)
        shapes = ", ".join(_shape(name, tensor) for name, tensor in _named(model, tensors))
        raise ModelNotSupportedError(
            f"The model fails on these inputs: {in_words(error, whole=True)}.",
            where=f"Inputs: {shapes}." + (f"\nAt {line}" if line else ""),
            fix="Give inputs that fit it: --input-shape, --inputs, or example inputs returned "
            "by the factory.",
        ) from error
    return {name: _array(name, tensor) for name, tensor in outputs.items()}, constants


def _run_of_others(model: FlatModel, tensors: Sequence[Tensor]) -> Answer | None:
    """Runs a model on other inputs than these; None where it does not take them."""
    try:
        return _run(model, other_inputs(tensors))
    except ExporterError:
        return None


def _named(model: FlatModel, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    return list(zip(model.spec.names, tensors, strict=True))


def _shape(name: str, tensor: Tensor) -> str:
    return f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _array(name: str, tensor: Tensor) -> Array:
    try:
        array = np.array(tensor.detach().numpy(), copy=True)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{array.dtype} is no real number")
        return array
    except (TypeError, RuntimeError) as error:
        raise ModelNotSupportedError(
            f"Output '{name}' is {tensor.dtype} on {tensor.device}, and outputs are real numbers "
            "that numpy has a form for.",
            fix="Give the model in float32 on the CPU, and a complex output as "
            "torch.view_as_real gives it.",
        ) from error


def check_constants(first: dict[str, Constant], found: dict[str, Constant], on: str) -> None:
    """Refuses a model whose constants change with the inputs.

    Args:
        first: Those of the first batch.
        found: The others.
        on: The name of those inputs in the message.

    Raises:
        ModelNotSupportedError: They differ.
    """
    if found != first:
        raise ModelNotSupportedError(
            "The numbers that the model returns beside its tensors depend on the input.",
            where=f"First batch: {first}; {on}: {found}.",
            fix="Return tensors, or leave these out.",
        )


def _check_repeats(first: Answer, again: _Again) -> None:
    if not same_answers(first, again.anew, REPEATS):
        raise NotRepeatableError(
            "The model gives other outputs when it runs again on the same input.",
            fix="Draw no random numbers in eval mode: the outputs are compared with one reference.",
        )
    if not same_answers(first, again.after, REPEATS) or _remembers(*again.others):
        kept = (
            f"it keeps {', '.join(again.kept[:8])} between runs"
            if again.kept
            else "it keeps something"
        )
        raise ModelNotSupportedError(
            f"The model's answer depends on the runs before it: {kept}.",
            fix="Compute the value without storing it, or take it as an input and return it.",
        )


def _remembers(anew: Answer | None, after: Answer | None) -> bool:
    """Returns whether the result depends on the input that ran before, which set some state."""
    if anew is None:
        return False
    return after is None or not same_answers(anew, after, REPEATS)


def _check_shapes(first: dict[str, Array], outputs: dict[str, Array], position: int) -> None:
    shapes, now = ({n: a.shape for n, a in each.items()} for each in (first, outputs))
    if shapes != now:
        raise DataDependentError(
            "The shapes of the model's outputs depend on the values of the input.",
            where=f"First batch: {shapes}; batch {position}: {now}.",
            fix=FIXED_COUNTS,
        )


def _check_finite(outputs: dict[str, Array]) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            batch = int(np.argwhere(np.isnan(array))[0][0])
            raise NotFiniteError(
                f"The model's own output '{name}' holds NaN.",
                where=f"First in batch {batch} of the inputs.",
                fix="Give inputs, or weights, on which the model in PyTorch is finite.",
            )
