"""A block of the person's model that runs from its pieces, with a method between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.block_parts import BlockParts
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer, Method
from tokexport.graph_passes.reduction.position_terms import PositionTerm
from tokexport.graph_passes.reduction.tokens import Tokens, Trace

#: The name of the method's own parameters in a block.
TRAINED: Final = "reduction"
#: What a block does where the method does not act.
_NOTHING = Method()


@dataclass(frozen=True)
class BlockCall:
    """How the model around them calls its blocks.

    Attributes:
        tree: How the arguments nest in (args, kwargs).
        tokens: Which of the leaves are the tokens.
        extras: Which are the other tensors, such as rotary positions.
        result: The leaves of what a block returns; the tokens' is replaced.
        result_tree: How these nest.
        result_tokens: Which of these are the tokens.
    """

    tree: Any
    tokens: int
    extras: tuple[int, ...]
    result: tuple[Any, ...]
    result_tree: Any
    result_tokens: int

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Returns the tokens and the other tensors among a block's arguments."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        if tree != self.tree:
            raise SurgeryError(
                "The model calls its blocks in another way than when it was reduced.",
                fix="Reduce it on example inputs of the kind it will run on.",
            )
        return leaves[self.tokens], [leaves[position] for position in self.extras]

    def answer(self, x: Tensor) -> Any:
        """Returns tokens in the form that a block returns them."""
        leaves = list(self.result)
        leaves[self.result_tokens] = x
        return pytree.tree_unflatten(leaves, self.result_tree)


class Flow:
    """The tokens on their way from block to block of one run; all blocks of a model share it.

    Args:
        special: Tokens at the front that are no patches.
        traced: Whether it is followed where tokens come from.
        restore: The blocks behind which every token is put back.
    """

    def __init__(self, special: int, traced: bool, restore: frozenset[int] = frozenset()) -> None:
        self.special, self.traced, self.restore = special, traced, restore
        self._tokens: Tokens | None = None
        self._shown: Tensor | None = None

    def enter(self, layer: Layer, x: Tensor) -> Tokens:
        """Returns what enters a block whose input is x (B, N, C)."""
        if layer.index == 0:
            trace = _first_trace(x) if self.traced else None
            return Tokens(x, self.special, x.shape[1], trace=trace)
        tokens, shown = self._tokens, self._shown
        self._tokens = self._shown = None
        if tokens is None:
            raise SurgeryError("A block ran without the one before it.")
        if x is shown:
            return tokens
        if x.shape != tokens.x.shape:
            raise SurgeryError(
                f"Between two blocks the model itself made tokens {tuple(x.shape)} of "
                f"{tuple(tokens.x.shape)}.",
                where=f"Before block {layer.index}.",
                fix="Reduce only blocks that follow each other directly, with layers=[…].",
            )
        return tokens.with_x(x)

    def leave(self, layer: Layer, tokens: Tokens) -> Tensor:
        """Keeps what leaves a block for the next, and returns what the model sees of it."""
        last = layer.index == layer.depth - 1
        self._tokens = None if last else tokens
        if layer.index not in self.restore or tokens.trace is None:
            return tokens.x
        shown = tokens.trace.restored(tokens.x)
        self._shown = None if last else shown
        return shown


def _first_trace(x: Tensor) -> Trace:
    everyone = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    return Trace(everyone, everyone)


class ReducedBlock(nn.Module):
    """Stands where the block stood, with its parameters under their names.

    Args:
        block: The block; its parameters, buffers and children become this module's own.
        parts: The pieces of its kind.
        terms: What the block's other tensors are.
        call: How it is called.
        method: What reduces the tokens.
        layer: Which block it is.
        flow: What the blocks hand on.
    """

    def __init__(
        self,
        block: nn.Module,
        parts: BlockParts,
        terms: Sequence[PositionTerm | None],
        call: BlockCall,
        method: Method,
        layer: Layer,
        flow: Flow,
    ) -> None:
        super().__init__()
        self._parameters = block._parameters
        self._buffers = block._buffers
        self._non_persistent_buffers_set = block._non_persistent_buffers_set
        self._modules = dict(block._modules)
        self.training = block.training
        trained = method.trained(layer, parts.width) if method.acts_in(layer) else None
        if trained is not None:
            self.add_module(TRAINED, trained)
        self._held = (block,)  # in a tuple, so that it is no child
        self._parts, self._terms, self._call = parts, tuple(terms), call
        self._method, self._layer, self._flow = method, layer, flow

    def __getattr__(self, name: str) -> Any:
        """Reads what the model around it may ask a block for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            held = self.__dict__.get("_held")
            if held is None or name.startswith("_"):
                raise
            return getattr(held[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the block does, with fewer tokens from the method's place on."""
        x, extras = self._call.tensors(args, kwargs)
        tokens = self._flow.enter(self._layer, x)
        layer, run = (
            replace(self._layer, trained=self._modules.get(TRAINED)),
            _Run(self, extras),
        )
        method = self._method if self._method.acts_in(layer) else _NOTHING
        tokens, attention = method.before_attention(layer, tokens, run)
        (summed,) = self._parts.residual.run(self, tokens.x, attention.result())
        tokens = method.after_attention(layer, tokens.with_x(summed), attention)
        (out,) = self._parts.mlp.run(self, tokens.x)
        tokens = method.after_mlp(layer, tokens.with_x(out), attention)
        return self._call.answer(self._flow.leave(layer, tokens))


@dataclass(frozen=True)
class _Run:
    """One run of a block."""

    block: ReducedBlock
    extras: list[Tensor]

    def attention(self, tokens: Tokens) -> Attention:
        """Computes the heads of the tokens, with the block's position terms at their origins."""
        block = self.block
        extras = [
            extra if term is None else term.at(extra, tokens)
            for extra, term in zip(self.extras, block._terms, strict=True)
        ]
        q, k, v = block._parts.heads.run(block, tokens.x, *extras)
        log_size = None
        if tokens.size is not None and block._method.adds_sizes():
            log_size = tokens.size[..., 0].log()
        return Attention(q, k, v, block._parts.scale, log_size)
