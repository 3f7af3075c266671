"""Runs a block of the user's model from its pieces, with a method between them."""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer, Method
from tokexport.graph_passes.reduction.surgery.block_parts import BlockParts
from tokexport.graph_passes.reduction.surgery.position_terms import PositionTerm
from tokexport.graph_passes.reduction.tokens import Tokens, Trace

#: The name of the method's own parameters in a block.
TRAINED: Final = "reduction"
#: The method of blocks in which the recipe's method does not act.
_NOTHING = Method()


class Mark(enum.Enum):
    """Stands for a tensor in a block's result: made anew in each run, or absent."""

    TOKENS = enum.auto()
    NOT_COMPUTED = enum.auto()


@dataclass(frozen=True)
class BlockCall:
    """How the model calls its blocks.

    Attributes:
        tokens: Where among (args, kwargs) the tokens are.
        extras: Where the other tensors are, such as rotary positions.
        settings: What was no tensor, by its place: numbers, flags, None.
        result: What a block returns, with ``Mark.TOKENS`` where the tokens are.
    """

    tokens: Any
    extras: tuple[Any, ...]
    settings: Mapping[Any, Any]
    result: Any

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Returns the tokens and the other tensors among a block's arguments.

        While it is exported, a model may make a mask that it leaves out in eager because it masks
        nothing; that the traced graph then agrees with eager is proven later.

        Raises:
            SurgeryError: The tensors differ from those when the model was reduced.
        """
        leaves, _ = pytree.tree_flatten_with_path((args, kwargs))
        given = {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
        new = set(given) - {self.tokens, *self.extras}
        if torch.compiler.is_exporting():
            new -= {path for path, setting in self.settings.items() if setting is None}
        if new or not {self.tokens, *self.extras} <= set(given):
            raise SurgeryError(
                "The model calls its blocks with other tensors than when it was reduced.",
                where=f"Now: {', '.join(map(pytree.keystr, given))}.",
                fix="Reduce it on example inputs of the kind it will run on.",
            )
        for path, leaf in leaves:
            setting = self.settings.get(path)
            if isinstance(setting, bool | int | float | str) and leaf != setting:
                raise SurgeryError(
                    f"The model calls its blocks with {leaf!r}, and with {setting!r} when it was "
                    "reduced.",
                    where=f"At {pytree.keystr(path)} of (args, kwargs).",
                    fix="Reduce it as it will run: what is no tensor is fixed by the example.",
                )
        return given[self.tokens], [given[path] for path in self.extras]

    def answer(self, x: Tensor) -> Any:
        """Returns tokens in the form that a block returns them."""
        return pytree.tree_map(lambda leaf: x if leaf is Mark.TOKENS else leaf, self.result)


class Flow:
    """The tokens on their way from block to block of one run; all blocks of a model share it.

    Args:
        special: Tokens at the front that are no patches.
        traced: Whether it is followed where tokens come from.
        restore: The blocks behind which every token is put back.
    """

    def __init__(self, special: int, traced: bool, restore: frozenset[int] = frozenset()) -> None:
        self.special, self.traced, self.restore = special, traced, restore
        self._between: dict[int, tuple[Tokens, Tensor | None]] = {}  # by thread

    def __getstate__(self) -> dict[str, Any]:
        """Clears what an interrupted run left between two blocks."""
        return {**self.__dict__, "_between": {}}

    def enter(self, layer: Layer, x: Tensor) -> Tokens:
        """Returns the tokens that enter a block whose input is x (B, N, C)."""
        tokens, shown = self._between.pop(threading.get_ident(), (None, None))
        if layer.index == 0:
            trace = _first_trace(x) if self.traced else None
            return Tokens(x, self.special, x.shape[1], trace=trace)
        if tokens is None:
            raise SurgeryError(
                "A block ran without the one before it.",
                where=f"Block {layer.index}.",
                fix="Run the whole model: blocks alone, and checkpointed ones that run again, "
                "get no tokens from the block before.",
            )
        if x is shown:
            return tokens
        if x.shape != tokens.x.shape:
            raise SurgeryError(
                f"Between two blocks the model itself made tokens {tuple(x.shape)} of "
                f"{tuple(tokens.x.shape)}.",
                where=f"Before block {layer.index}.",
                fix="Reduce a model whose blocks hand their tokens to each other as they are.",
            )
        return tokens.with_x(x)

    def leave(self, layer: Layer, tokens: Tokens) -> Tensor:
        """Keeps the tokens of a block for the next one, and returns those that the model sees."""
        shown = None
        if layer.index in self.restore and tokens.trace is not None:
            shown = tokens.trace.restored(tokens.x)
        self._hand_on(layer, tokens, shown)
        return tokens.x if shown is None else shown

    def _hand_on(self, layer: Layer, tokens: Tokens, shown: Tensor | None) -> None:
        if layer.index < layer.depth - 1:
            self._between[threading.get_ident()] = tokens, shown


def _first_trace(x: Tensor) -> Trace:
    everyone = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    return Trace(everyone, everyone)


@dataclass(frozen=True)
class Surgery:
    """The data of a reduced block.

    Attributes:
        parts: The pieces of its kind.
        terms: What the block's other tensors are.
        call: How it is called.
        method: What reduces the tokens.
        layer: Which block it is.
        flow: What the blocks hand on; one object for all of a model.
    """

    parts: BlockParts
    terms: tuple[PositionTerm | None, ...]
    call: BlockCall
    method: Method
    layer: Layer
    flow: Flow


class ReducedBlock(nn.Module):
    """Runs a block from its pieces, with fewer tokens from the method's place on."""

    surgery: Surgery

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the original block does."""
        did = self.surgery
        x, extras = did.call.tensors(args, kwargs)
        tokens = did.flow.enter(did.layer, x)
        layer = replace(did.layer, trained=self._modules.get(TRAINED))
        method = did.method if did.method.acts_in(layer) else _NOTHING
        tokens, attention = method.before_attention(layer, tokens, _Run(self, extras))
        (summed,) = did.parts.residual.run(self, tokens.x, attention.result())
        tokens = method.after_attention(layer, tokens.with_x(summed), attention)
        (out,) = did.parts.mlp.run(self, tokens.x)
        tokens = method.after_mlp(layer, tokens.with_x(out), attention)
        return did.call.answer(did.flow.leave(layer, tokens))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles by the block's own class, as the reduced class is made here."""
        return _blank, (type(self).__mro__[2],), self.__dict__


def reduced_block(block: nn.Module, surgery: Surgery) -> ReducedBlock:
    """Returns a block of the same class, attributes, hooks and parameters that runs reduced.

    It is a subclass of the block's class, so that a model that looks for its blocks finds them.
    """
    reduced = _blank(type(block))
    reduced.__dict__.update(block.__dict__)
    reduced.__dict__.pop("forward", None)  # one that was set on the block is traced already
    reduced._modules = dict(block._modules)
    reduced.surgery = surgery
    if surgery.method.acts_in(surgery.layer):
        trained = surgery.method.trained(surgery.layer, surgery.parts.width)
        if trained is not None:
            reduced.add_module(TRAINED, trained)
    return reduced


def _blank(kind: type[nn.Module]) -> ReducedBlock:
    """Returns an empty block of the reduced subclass of a class of blocks."""
    made: type[ReducedBlock] = _subclass(kind)
    return made.__new__(made)


def _subclass(kind: type[nn.Module]) -> Any:
    if kind not in _SUBCLASSES:
        named = f"Reduced{kind.__name__}"
        _SUBCLASSES[kind] = type(named, (ReducedBlock, kind), {"__module__": kind.__module__})
    return _SUBCLASSES[kind]


_SUBCLASSES: dict[type[nn.Module], Any] = {}


@dataclass(frozen=True)
class _Run:
    """One run of a block."""

    block: ReducedBlock
    extras: list[Tensor]

    def attention(self, tokens: Tokens) -> Attention:
        """Computes the heads of the tokens, with the block's position terms at their origins."""
        did = self.block.surgery
        extras = [
            extra if term is None else term.at(extra, tokens)
            for extra, term in zip(self.extras, did.terms, strict=True)
        ]
        q, k, v = did.parts.heads.run(self.block, tokens.x, *extras)
        log_size = None
        if tokens.size is not None and did.method.adds_sizes():
            log_size = tokens.size[..., 0].log()
        return Attention(q, k, v, did.parts.scale, log_size)
