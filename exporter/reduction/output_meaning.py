"""Refuses a reduction that changes the meaning of an output, not only its number of tokens.

A reduction leaves a set: the special tokens, then fewer patches in any order. Two kinds of outputs
keep their meaning then. Which kind an output is, is tried out and not read off shapes: the model
runs with nothing reduced, but with its patches in another order from the first reduced block on:

    the output is as it was                   it is of the whole image: a class, a mean, a maximum
    a (B, N, C) whose patches moved along     it is the tokens, and will have fewer

Any other output depends on where patches stand: a map, one row by its number, all rows flattened.
An output of the whole image must not depend on how many tokens there are either, as a sum does and
a mean over a written-down N: with all tokens of an image alike, N and fewer of them give the same
output. Tokens that are put back behind a block (``restore``) stand in their order and number again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.outputs import Constant
from tokexport.exporter.reduction.shown_blocks import Shown
from tokexport.exporter.reduction.surgery_distance import Answer, local_distance
from tokexport.exporter.reduction.surgery_gate import (
    SURGERY_TOLERANCE,
    patch_order,
    shuffled,
)
from tokexport.exporter.reduction.tokens_per_layer import ReducedRun
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Block, Layer, Method
from tokexport.graph_passes.reduction.surgery.reduced_block import Flow
from tokexport.graph_passes.reduction.tokens import Tokens

#: How far an output of the whole image may move with the number of tokens that are all alike.
#: One token less of a thousand changes a sum by ten times that; rounding stays below a tenth.
ALIKE_TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Shortened:
    """An output that has fewer tokens than without the reduction.

    Attributes:
        name: The output.
        before: Its shape without the reduction.
        after: Its shape with it.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __str__(self) -> str:
        """Returns the warning, a sentence."""
        return (
            f"Output '{self.name}' is {self.after}, and {self.before} without the reduction: its "
            "token axis is shorter, and its rows no longer stand where their patches do; --restore "
            "puts every token back."
        )


@dataclass(frozen=True, kw_only=True)
class _Reordered(Method):
    """Reorders the patches after one block."""

    behind: int

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        return shuffled(tokens) if layer.index == self.behind else tokens


@dataclass(frozen=True, kw_only=True)
class _Alike(Method):
    """Makes all tokens of an image equal, and keeps some of them after each block."""

    counts: tuple[int, ...]

    def before_attention(
        self, layer: Layer, tokens: Tokens, block: Block
    ) -> tuple[Tokens, Attention]:
        if layer.index == 0:
            mean = tokens.x[:, tokens.special :].mean(dim=1, keepdim=True)
            tokens = tokens.with_x(mean.expand_as(tokens.x).contiguous())
        return tokens, block.attention(tokens)

    def after_mlp(self, layer: Layer, tokens: Tokens, attention: Attention) -> Tokens:
        left = self.counts[layer.index + 1]
        if left >= tokens.count:
            return tokens
        by = _First(left, tokens.count, tokens.x.shape[0])
        return tokens.merged(by, by(tokens.x), None)


@dataclass(frozen=True)
class _First:
    """The first tokens stay, and the last of them stands for all that went."""

    left: int
    tokens: int
    batch: int

    def __call__(self, value: Tensor, mode: str = "sum") -> Tensor:
        return value[:, : self.left]

    def sources(self) -> Tensor:
        return torch.arange(self.left).expand(self.batch, -1)

    def places(self) -> Tensor:
        return torch.arange(self.tokens).clamp_max(self.left - 1).expand(self.batch, -1)


@dataclass(frozen=True)
class Judged:
    """A model as given, and how to run it with other blocks.

    Attributes:
        flat: The model as given.
        rebuild: Builds it with a method in its blocks.
        special: Tokens at the front that are no patches.
        restore: The blocks behind which the recipe puts every token back.
        shown: What the model does with the outputs of its blocks.
    """

    flat: FlatModel
    rebuild: Callable[[Method, Flow], nn.Module]
    special: int
    restore: frozenset[int]
    shown: Shown

    def run(self, method: Method, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns the outputs, by name, with a method in the blocks."""
        flow = Flow(self.special, traced=True, restore=self.restore)
        model = FlatModel(self.rebuild(method, flow), self.flat.spec)
        with evaluation(model), torch.no_grad():
            return model.named_outputs(*inputs)[0]


def shortened_outputs(
    judged: Judged, reduced: ReducedRun, inputs: Sequence[Tensor]
) -> tuple[Shortened, ...]:
    """Returns the outputs that have fewer tokens, if every output keeps its meaning.

    Args:
        judged: The model as given, and how to run it.
        reduced: What the reduced model returned.
        inputs: Random ones, to try out with what each output changes.

    Raises:
        SurgeryError: An output would mean something else.
    """
    with evaluation(judged.flat), torch.no_grad():
        given, constants = judged.flat.named_outputs(*inputs)
    _require_same_constants(constants, reduced.constants, judged)
    counts = reduced.tokens
    falls = [index for index in range(len(counts) - 1) if counts[index + 1] < counts[index]]
    if not falls:
        return ()
    moved = judged.run(_Reordered(behind=falls[0]), inputs)
    answer = Answer(judged.flat, inputs, list(given.values()))
    shorter = []
    for position, (name, before) in enumerate(given.items()):
        after = reduced.outputs[name]
        ways = (moved[name], *_moved_back(moved[name], before, counts[0] - judged.special))
        if not any(
            answer.distance(position, way, SURGERY_TOLERANCE) <= SURGERY_TOLERANCE for way in ways
        ):
            raise _refusal(name, before, after, "depends on where its tokens stand", judged)
        if before.shape != after.shape:
            if not _has_fewer_tokens(before, after):
                why = "is no (batch, tokens, channels) with fewer tokens"
                raise _refusal(name, before, after, why, judged)
            shorter.append(Shortened(name, tuple(before.shape), tuple(after.shape)))
    _require_tokens_of_one_layer(shorter, given, judged)
    _require_no_count(given, reduced, judged, inputs)
    return tuple(shorter)


def _moved_back(moved: Tensor, before: Tensor, patches: int) -> tuple[Tensor, ...]:
    """Returns a floating (B, N, C) with its patches back in order, in a tuple; () for others."""
    if before.dim() != 3 or not before.is_floating_point() or before.shape[1] < patches:
        return ()
    front = before.shape[1] - patches
    order = torch.cat([torch.arange(front), front + patch_order(patches)])
    return (moved[:, order.argsort()],)


def _has_fewer_tokens(before: Tensor, after: Tensor) -> bool:
    """Returns whether two outputs are floating (B, N, C) and (B, M, C) with M < N."""
    return (
        before.dim() == after.dim() == 3
        and before.is_floating_point()
        and before.shape[::2] == after.shape[::2]
        and after.shape[1] < before.shape[1]
    )


def _require_same_constants(
    given: Mapping[str, Constant], reduced: Mapping[str, Constant], judged: Judged
) -> None:
    """Refuses constants among the outputs that change with fewer tokens."""
    changed = [name for name in given if given[name] != reduced.get(name)]
    if changed:
        name = changed[0]
        raise SurgeryError(
            f"Output '{name}' is {given[name]!r}, and {reduced.get(name)!r} with fewer tokens.",
            where="The model returns it as a number beside its tensors.",
            fix=_way_out(judged),
        )


def _require_tokens_of_one_layer(
    shorter: Sequence[Shortened], given: Mapping[str, Tensor], judged: Judged
) -> None:
    """Refuses tokens of several layers: after a reduction their rows differ."""
    short = {one.name: one for one in shorter}
    for one in shorter:
        for name, other in given.items():
            gone = 0 if name not in short else short[name].before[1] - short[name].after[1]
            alike = tuple(other.shape) == one.before or name in short
            if alike and gone != one.before[1] - one.after[1]:
                left = short[name].after if name in short else tuple(other.shape)
                raise SurgeryError(
                    f"Outputs '{one.name}' and '{name}' are tokens of different layers, and with "
                    f"the reduction their rows are no longer the same tokens.",
                    where=f"'{one.name}' {one.before} would be {one.after}, '{name}' "
                    f"{tuple(other.shape)} would be {left}.",
                    fix=_way_out(judged),
                )


def _require_no_count(
    given: Mapping[str, Tensor], reduced: ReducedRun, judged: Judged, inputs: Sequence[Tensor]
) -> None:
    """Refuses an output that changes with the number of tokens alone."""
    counts = reduced.tokens
    many = judged.run(_Alike(counts=counts[:1] * len(counts)), inputs)
    few = judged.run(_Alike(counts=counts), inputs)
    for name, before in given.items():
        one, other = many[name], few[name]
        if one.shape != other.shape:
            one = one[:, : other.shape[1]]
        if not _are_alike(one, other):
            why = "depends on how many tokens there are, as a sum over them does"
            raise _refusal(name, before, reduced.outputs[name], why, judged)


def _are_alike(one: Tensor, other: Tensor) -> bool:
    """Returns whether outputs of alike tokens are the same, by their rows along some axis.

    A channel has one value in all tokens, which may be near 0, so it gives no scale.
    """
    ways = [(one, other)]
    if one.dim() > 2:
        axes = range(1, one.dim())
        ways = [(_rows_along(one, axis), _rows_along(other, axis)) for axis in axes]
    return any(local_distance(*way, ALIKE_TOLERANCE) <= ALIKE_TOLERANCE for way in ways)


def _rows_along(output: Tensor, axis: int) -> Tensor:
    return output.movedim(axis, -1).flatten(0, -2)


def _refusal(name: str, before: Tensor, after: Tensor, why: str, judged: Judged) -> SurgeryError:
    return SurgeryError(
        f"Output '{name}' {why}: with the reduction it would mean something else.",
        where=f"It is {tuple(before.shape)} without the reduction, and would be "
        f"{tuple(after.shape)}.",
        fix=_way_out(judged),
    )


def _way_out(judged: Judged) -> str:
    """Returns how to get an output of all tokens, where that is possible."""
    if not judged.restore:
        return "Put every token back with --restore (restore=true in the recipe)."
    missing = sorted(judged.shown.read - judged.restore)
    stuck = sorted(judged.shown.changed & set(missing))
    if stuck:
        return (
            f"Behind {_blocks(stuck)} no token can be put back: the model changes the tokens "
            "before the next block. Read the output of a block that the next one takes as it is, "
            "or leave this output out."
        )
    if missing:
        return f"Behind {_blocks(missing)} tokens are read and not put back: take restore=true."
    return "Every token is put back where the model reads them: leave this output out."


def _blocks(numbers: Sequence[int]) -> str:
    return f"block{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
