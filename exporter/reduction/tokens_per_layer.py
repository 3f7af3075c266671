"""Counts the tokens between the blocks of a reduced model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokexport.exporter.capture import FlatModel
from tokexport.exporter.module_state import evaluation
from tokexport.exporter.reduction.surgery_gate import failures_told
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.reduced_block import Flow, ReducedBlock
from tokexport.graph_passes.reduction.tokens import Tokens


class _Counting(Flow):
    """A flow that notes how many tokens pass; what the model sees restored does not count."""

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


def tokens_per_layer(model: FlatModel, inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Runs a reduced model and returns the tokens of an image that enter it and leave each block.

    It is not run, and there are none, where it has no values, on torch's meta device.

    Args:
        model: The reduced model, on flat inputs.
        inputs: What it is run on.

    Raises:
        tokexport.graph_passes.reduction.errors.SurgeryError: The method cannot work on it, or what
            follows the blocks needs all tokens.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return ()
    blocks = [module for module in model.modules() if isinstance(module, ReducedBlock)]
    counting = _Counting(blocks[0].surgery.flow)
    with failures_told("With fewer tokens the model fails"), evaluation(model), torch.no_grad():
        for block in blocks:
            block.surgery = replace(block.surgery, flow=counting)
        model(*inputs)
        return tuple(counting.counts)
