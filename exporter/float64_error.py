"""Measures how far fp32 eager is from float64 eager: what the gate of an output is made from.

The model is run as it is. Where one of its decisions falls differently in float64, that run says
nothing about arithmetic; the traced graph is then run in float64 with the decisions of fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tokexport.exporter.inputs import Batches
from tokexport.exporter.module_state import evaluation
from tokexport.exporter.reference import tensors_of
from tokexport.graph_passes.decisions import show, tell
from tokexport.runtimes.base import Array

#: How many batches are run in float64.
BATCHES: Final = 4


@dataclass(frozen=True)
class Float64Error:
    """The distance of fp32 from float64.

    Attributes:
        by_output: The largest |fp32 - float64| of each output, relative to the largest |float64|;
            None where the model does not run in float64.
        why_not: The reason for that, in words.
    """

    by_output: Mapping[str, float] | None
    why_not: str = ""


def of_model(model: nn.Module, batches: Batches, outputs: Mapping[str, Array]) -> Float64Error:
    """Runs the model in float64, without copying or changing it.

    Args:
        model: Takes and gives flat tensors.
        batches: The inputs; the first few are run.
        outputs: What it gave in fp32, (batches, …) each, in its order.
    """
    doubled = _doubled_state(model)

    def run(batch: dict[str, Array]) -> tuple[Tensor, ...]:
        with evaluation(model):
            result: tuple[Tensor, ...] = torch.func.functional_call(
                model, doubled, _doubled(tensors_of(batch))
            )
        return result

    return _largest(run, batches, outputs)


def with_decisions_kept(
    captured: GraphModule, batches: Batches, outputs: Mapping[str, Array]
) -> Float64Error | None:
    """Runs the traced graph in float64 with the decisions that it makes in fp32.

    Args:
        captured: The traced model, unlifted, before any pass.
        batches: The inputs; the first few are run.
        outputs: What eager gave in fp32, (batches, …) each.

    Returns:
        The distance, or None where the model decides nothing or does not run so.
    """
    told = tell(captured, batches.names, tuple(outputs))
    if not told.told:
        return None
    decided = show(captured, [told.sources[name].names[0] for name in told.told])
    _in_float64(told.module)
    doubled = _doubled_state(told.module)

    def run(batch: dict[str, Array]) -> tuple[Tensor, ...]:
        tensors = tensors_of(batch)
        given = (*_doubled(tensors), *decided(*tensors))
        results: tuple[Tensor, ...] = torch.func.functional_call(told.module, doubled, given)
        return results[: len(outputs)]

    error = _largest(run, batches, outputs)
    return error if error.by_output is not None else None


def _largest(
    run: Callable[[dict[str, Array]], tuple[Tensor, ...]],
    batches: Batches,
    outputs: Mapping[str, Array],
) -> Float64Error:
    worst = dict.fromkeys(outputs, 0.0)
    for position, batch in enumerate(islice(batches, BATCHES)):
        try:
            with torch.no_grad():
                precise = run(batch)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return Float64Error(None, f"it does not run in float64: {reason}")
        for name, tensor in zip(outputs, precise, strict=True):
            if not tensor.is_floating_point():
                continue
            near = outputs[name][position].astype(np.float64)
            exact = tensor.detach().double().numpy()
            if near.shape != exact.shape:
                return Float64Error(None, f"in float64 its output '{name}' has another shape")
            worst[name] = max(worst[name], _distance(near, exact))
    return Float64Error(worst)


def _distance(near: Array, exact: Array) -> float:
    finite = np.isfinite(exact) & np.isfinite(near)
    if not finite.any():
        return 0.0
    scale = float(np.abs(exact[finite]).max()) or 1.0
    return float(np.abs(near[finite] - exact[finite]).max()) / scale


def _doubled_state(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return dict(zip([name for name, _ in named], _doubled(t for _, t in named), strict=True))


def _doubled(tensors: Any) -> tuple[Tensor, ...]:
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)


def _in_float64(module: GraphModule) -> None:
    """Lets every call that names float32 as its result's type name float64."""

    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    for node in module.graph.nodes:
        node.args = tuple(map(wider, node.args))
        node.kwargs = {name: wider(value) for name, value in node.kwargs.items()}
    module.recompile()
