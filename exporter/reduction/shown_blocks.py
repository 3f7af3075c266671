"""Finds the blocks whose output is read outside the next block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.reduction.surgery_gate import reraise_as_surgery_error
from tokexport.graph_passes.reduction.method import Layer
from tokexport.graph_passes.reduction.surgery.reduced_block import Flow
from tokexport.graph_passes.reduction.tokens import Tokens


@dataclass(frozen=True)
class Shown:
    """How a model uses the outputs of its blocks.

    Attributes:
        read: The blocks whose output something reads beside the next block, the last one always.
        changed: The blocks behind which the next one gets other tokens than they returned.
    """

    read: frozenset[int]
    changed: frozenset[int]

    @property
    def restorable(self) -> frozenset[int]:
        """The blocks behind which all tokens can be put back for those that read them."""
        return self.read - self.changed


class Watched(Flow):
    """Returns a new tensor after each block, on which no block works.

    Args:
        special: Tokens at the front that are no patches.
        traced: Whether it is followed where tokens come from.
    """

    def __init__(self, special: int, traced: bool) -> None:
        super().__init__(special, traced)
        self.returned: dict[int, tuple[int, Tensor]] = {}
        self.changed: set[int] = set()
        self._last: Tensor | None = None
        self._version = 0  # goes up where a tensor is changed in place

    def enter(self, layer: Layer, x: Tensor) -> Tokens:
        """Records whether it is the last block's output, and continues unwatched."""
        if layer.index and (x is not self._last or x._version != self._version):
            self.changed.add(layer.index - 1)
        return super().enter(layer, x)

    def leave(self, layer: Layer, tokens: Tokens) -> Tensor:
        """Returns a copy that is known again."""
        self._last = tokens.x.clone()
        self._version = self._last._version
        self.returned[id(self._last)] = layer.index, self._last
        self._hand_on(layer, tokens, self._last)
        return self._last


class _Reads(TorchDispatchMode):
    """Records which of some tensors operators take."""

    def __init__(self, watched: Mapping[int, tuple[int, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched, self.read = watched, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in self.watched:
                self.read.add(self.watched[id(leaf)][0])
        return func(*args, **(kwargs or {}))


def shown_blocks(model: FlatModel, flow: Watched, depth: int, inputs: Sequence[Tensor]) -> Shown:
    """Runs a model with nothing reduced and returns which blocks' outputs it reads.

    Args:
        model: The model taken apart, on flat inputs.
        flow: What its blocks hand on.
        depth: How many blocks there are.
        inputs: What it is run on.
    """
    with (
        reraise_as_surgery_error("Taken apart, the model fails"),
        evaluation(model),
        torch.no_grad(),
    ):
        with _Reads(flow.returned) as reads:
            outputs = model(*inputs)
        direct = {flow.returned[id(one)][0] for one in outputs if id(one) in flow.returned}
        # read here, since the flow is put back with all else that the model holds
        return Shown(frozenset(reads.read | direct | {depth - 1}), frozenset(flow.changed))
