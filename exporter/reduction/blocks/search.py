"""Finds the repeated blocks of a ViT and takes them apart.

Each is traced alone, for any batch and any number of tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tokexport.exporter.capture.traced_lines import tracing
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.errors import ModelNotSupportedError, UsageError, listed
from tokexport.exporter.reduction.blocks.observed_calls import Call, observe, other_blocks
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.surgery.block_parts import BlockParts, take_apart
from tokexport.graph_passes.reduction.surgery.position_terms import PositionTerm, position_terms
from tokexport.graph_passes.stack_traces import raised_at
from tokexport.graph_passes.torch_errors import in_words


class _Alone(nn.Module):
    """A block as a function of its tensors, the tokens first, to its tokens."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._parameters = call.module._parameters
        self._buffers = call.module._buffers
        self._modules = call.module._modules
        self._call = (call,)

    def forward(self, *tensors: Tensor) -> Any:
        (call,) = self._call
        leaves = list(call.leaves)
        for position, tensor in zip((call.tokens, *call.extras), tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, call.tree)
        results = pytree.tree_leaves(call.module.forward(*args, **kwargs))
        return results[call.result_tokens]


def trace_block(call: Call) -> ExportedProgram:
    """Returns the graph of a block whose batch and number of tokens are symbols.

    Its inputs are the tokens (B, N, C) and the block's other tensors.

    Raises:
        SurgeryError: torch.export cannot trace the block alone.
    """
    x = call.x if call.x.shape[0] > 1 else call.x.repeat(2, 1, 1)  # one of a size 1 is never free
    tensors = (x, *(call.leaves[position] for position in call.extras))
    free = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in tensors)
    free[0][2] = Dim.STATIC
    with evaluation(call.module), tracing():
        try:
            return torch.export.export(_Alone(call), tensors, dynamic_shapes=(free,), strict=False)
        except Exception as error:
            raise SurgeryError(
                f"The block '{call.path}' cannot be traced for any number of tokens: "
                f"{in_words(error)}.",
                where=raised_at(error),
                fix="Reduce a model whose blocks take any number of tokens: no windows, no bias "
                "between positions.",
            ) from error


_FIX = "Name the container of the blocks with blocks=PATH."


@dataclass(frozen=True)
class FoundBlock:
    """A block and its parts.

    Attributes:
        call: How the model calls it.
        parts: Its pieces.
        terms: What its other tensors are.
    """

    call: Call
    parts: BlockParts
    terms: tuple[PositionTerm | None, ...]


def _candidates(model: FlatModel, inputs: Sequence[Tensor], path: str | None) -> list[list[Call]]:
    """Returns the lists of modules that might be the blocks, the largest first.

    They follow each other in one container, take (B, N, C) and give it back, and run once each; at
    least two are of one class. A module without parts, for example a norm, is no block.

    Raises:
        UsageError: No container has that name.
    """
    if path is not None and path not in dict(model.model.named_modules()):
        containers = sorted({name.rpartition(".")[0] for name, _ in model.model.named_modules()})
        raise UsageError(
            f"The model has no module '{path}'.", fix=f"It has {listed(containers[1:])}."
        )
    calls = observe(model, inputs, lambda name: path is None or name.startswith(f"{path}."))
    times = Counter(call.path for call in calls)
    groups: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        container = call.path.rpartition(".")[0]
        has_parts = next(call.module.children(), None) is not None
        if times[call.path] == 1 and has_parts and (path is None or container == path):
            groups[container].append(call)
    found = [group for group in groups.values() if path is not None or _repeats(group)]
    return sorted(found, key=_weights, reverse=True)


def _repeats(group: list[Call]) -> bool:
    return max(Counter(type(call.module) for call in group).values()) > 1


def _weights(group: list[Call]) -> int:
    return sum(parameter.numel() for call in group for parameter in call.module.parameters())


def find_blocks(
    model: FlatModel, inputs: Sequence[Tensor], path: str | None
) -> tuple[FoundBlock, ...]:
    """Returns the blocks of a model, in the order they run.

    Args:
        model: The user's model, on flat inputs.
        inputs: What it is run on.
        path: The container the user named, or None.

    Raises:
        ModelNotSupportedError: No blocks can be taken apart; the message has the reason.
        UsageError: Several lists of blocks can be, or no container has that name.
    """
    reasons: list[SurgeryError] = []
    found: list[tuple[FoundBlock, ...]] = []
    for group in _candidates(model, inputs, path):
        if any(_is_within(group[0], taken[0].call) for taken in found):
            continue
        try:
            found.append(_taken_apart(group))
        except SurgeryError as reason:
            reasons.append(reason)
    if len(found) > 1:
        paths = [blocks[0].call.path.rpartition(".")[0] for blocks in found]
        raise UsageError(f"The model has several rows of blocks: {listed(paths)}.", fix=_FIX)
    if found:
        return found[0]
    if reasons:
        raise reasons[0]
    raise ModelNotSupportedError(
        "The model has no repeated blocks that take and give tokens (batch, tokens, channels).",
        where=" ".join(other_blocks(model, inputs)) or (f"Looked in '{path}'." if path else ""),
        fix=f"{_FIX} Each image has to be a row of its own that holds all its tokens.",
    )


def _is_within(call: Call, other: Call) -> bool:
    return call.path.startswith(f"{other.path}.")


def _taken_apart(group: list[Call]) -> tuple[FoundBlock, ...]:
    """Takes the blocks of a list apart, one of each kind only."""
    known: dict[object, tuple[BlockParts, tuple[PositionTerm | None, ...]]] = {}
    blocks = []
    for call in group:
        if isinstance(call.module, torch.jit.ScriptModule):
            raise SurgeryError(
                f"The block '{call.path}' is TorchScript, which is not taken apart.",
                fix="Put the module there that it was scripted or traced from.",
            )
        kind = _kind(call)
        if kind not in known:
            program = trace_block(call)
            known[kind] = take_apart(program, 0), position_terms(program)
        blocks.append(FoundBlock(call, *known[kind]))
    return tuple(blocks)


def _kind(call: Call) -> object:
    """Returns what blocks with the same graph share: weights, submodules and their settings."""
    weights = [(name, tuple(p.shape)) for name, p in call.module.named_parameters()]
    settings = [
        (name, type(module), module.extra_repr(), _plain(module), _put_in(module, bool(name)))
        for name, module in call.module.named_modules()
    ]
    return repr((weights, settings, call.tree, [type(leaf) for leaf in call.leaves]))


def _put_in(module: nn.Module, hooked: bool) -> list[int]:
    """Returns the functions that were patched into a module: its forward and its hooks.

    The hooks of a block itself run around its replacement, and do not matter here.
    """
    forward = vars(module).get("forward")
    put = [] if forward is None else [id(getattr(forward, "__func__", forward))]
    if hooked:
        put += map(id, (*module._forward_pre_hooks.values(), *module._forward_hooks.values()))
    return put


def _plain(module: object) -> list[tuple[str, object]]:
    """Returns a module's own numbers, flags and texts, without its index in the list."""
    return [
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | float | str)
    ]
