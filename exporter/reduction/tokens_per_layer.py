"""Runs a reduced model once, and counts the tokens between its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.outputs import Constant
from tokexport.exporter.reduction.surgery_gate import (
    RESTORE_FIX,
    RESTORED_FIX,
    reraise_as_surgery_error,
)
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.surgery.reduced_block import Flow, ReducedBlock
from tokexport.graph_passes.reduction.tokens import Tokens


class _Counting(Flow):
    """A flow that counts the tokens that pass; restored tokens do not count."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.special, flow.traced, flow.restore)
        self.counts: list[int] = []

    def enter(self, layer: Layer, x: Tensor) -> Tokens:
        tokens = super().enter(layer, x)
        if layer.index == 0:
            self.counts = [tokens.count]
        return tokens

    def leave(self, layer: Layer, tokens: Tokens) -> Tensor:
        self.counts.append(tokens.count)
        return super().leave(layer, tokens)


@dataclass(frozen=True)
class ReducedRun:
    """The result of one run of a reduced model.

    Attributes:
        tokens: Tokens of an image that enter the first block, and that leave each.
        outputs: What the model returned, by name.
        constants: What it returned that was no tensor, by name.
    """

    tokens: tuple[int, ...]
    outputs: Mapping[str, Tensor]
    constants: Mapping[str, Constant]


def tokens_per_layer(
    model: FlatModel, inputs: Sequence[Tensor], restored: bool
) -> ReducedRun | None:
    """Runs a reduced model and returns its token counts and outputs.

    A model on torch's meta device, which has no values, is not run, and the result is empty.

    Args:
        model: The reduced model, on flat inputs.
        inputs: What it is run on.
        restored: Whether the recipe puts tokens back.

    Raises:
        tokexport.graph_passes.reduction.errors.SurgeryError: The method cannot work on it, or what
            follows the blocks needs all tokens.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    blocks = [module for module in model.modules() if isinstance(module, ReducedBlock)]
    counting = _Counting(blocks[0].surgery.flow)
    fix = RESTORED_FIX if restored else RESTORE_FIX
    failing = reraise_as_surgery_error("With fewer tokens the model fails", fix)
    with failing, evaluation(model), torch.no_grad():
        for block in blocks:
            block.surgery = replace(block.surgery, flow=counting)
        outputs, constants = model.named_outputs(*inputs)
        return ReducedRun(tuple(counting.counts), outputs, constants)
