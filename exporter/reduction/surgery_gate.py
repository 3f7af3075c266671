"""Compares the model after surgery with the model as given, before any token is reduced.

With nothing reduced, the rebuilt blocks must give the model's outputs. They must also give them
with the patches in another order from the first block on, and in their own order again after the
last: a block that derives positions from token indices would mix them up once tokens are removed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.errors import ExporterError, GateError, NotRepeatableError
from tokexport.exporter.reduction.surgery_distance import Answer
from tokexport.graph_passes.reduction.attention import Attention
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Block, Layer, Method
from tokexport.graph_passes.reduction.surgery.reduced_block import Flow, ReducedBlock
from tokexport.graph_passes.reduction.token_maps import Selection, behind_special
from tokexport.graph_passes.reduction.tokens import Tokens
from tokexport.graph_passes.stack_traces import raised_at
from tokexport.graph_passes.torch_errors import in_words

#: How far the surgery with nothing reduced may be from the model, as a share of the scale around
#: each value; more where rounding explains it (``surgery_distance``).
SURGERY_TOLERANCE: Final = 1e-5
#: What to do where a model fails on fewer tokens: what follows the blocks may need them all.
RESTORE_FIX: Final = (
    "Where what follows the blocks needs every token, put them back with --restore (restore=true "
    "in the recipe)."
)
#: The same where they are put back already.
RESTORED_FIX: Final = (
    "Tokens are put back behind the last block and behind those of restore=[…]: let what needs "
    "every token read the output of a block as it is, before anything is computed from it."
)
_APART_FIX: Final = (
    "Nothing was reduced yet: the model, copied around its weights, has to run by itself. Let "
    "forward, its modules and their hooks hold what it reads, and no global or other object."
)
#: Builds the model with a method in its blocks.
Rebuild = Callable[[Method, Flow], nn.Module]


@dataclass(frozen=True, kw_only=True)
class _Shuffled(Method):
    """Puts the patches in another order before the first block."""

    def before_attention(
        self, layer: Layer, tokens: Tokens, block: Block
    ) -> tuple[Tokens, Attention]:
        if layer.index == 0:
            tokens = shuffled(tokens)
        return tokens, block.attention(tokens)


def patch_order(patches: int) -> Tensor:
    """Returns another order of patches: one cycle, so that none keeps its place."""
    cycle = torch.randperm(patches, generator=torch.Generator().manual_seed(0))
    return torch.empty_like(cycle).scatter(0, cycle, cycle.roll(-1))


def shuffled(tokens: Tokens) -> Tokens:
    """Returns the tokens with the patches in the order of ``patch_order``."""
    order = patch_order(tokens.count - tokens.special).to(tokens.x.device)
    index = order.expand(tokens.x.shape[0], -1) + tokens.special
    by = Selection(behind_special(tokens.special, index), tokens.count)
    return tokens.merged(by, by(tokens.x), None)


def surgery_error(
    flat: FlatModel, rebuild: Rebuild, flow: Flow, depth: int, inputs: Sequence[Tensor]
) -> float:
    """Returns the largest difference to the model, as a share of the scale around it.

    It is not a number where the model has no values, on torch's meta device.

    Raises:
        GateError: The outputs differ.
        NotRepeatableError: Two runs of the model differ.
        SurgeryError: The blocks are called by another path, or use the indices of tokens.
    """
    if any(parameter.is_meta for parameter in flat.parameters()):
        return math.nan
    with evaluation(flat), torch.no_grad():
        wanted = flat(*inputs)
    answer = Answer(flat, inputs, wanted)
    plain = _distance(flat, rebuild(Method(), flow), depth, inputs, wanted, answer)
    if not plain <= SURGERY_TOLERANCE:
        _require_one_answer(flat, inputs, wanted)
        raise GateError(
            "The model's blocks, taken apart and put together with nothing reduced, give other "
            "outputs.",
            where=f"Off by {plain:.1e} of the scale of the values around; "
            f"{SURGERY_TOLERANCE:.0e} is allowed.",
            fix="The blocks hold something that depends on more than their tokens. Please report "
            "the model.",
        )
    shuffled = math.inf
    for behind in ({depth - 1}, set(range(depth))):  # the latter where outputs in between are read
        followed = Flow(flow.special, traced=True, restore=frozenset(behind))
        if not shuffled <= SURGERY_TOLERANCE:
            rebuilt = rebuild(_Shuffled(), followed)
            shuffled = _distance(flat, rebuilt, depth, inputs, wanted, answer)
    if not shuffled <= SURGERY_TOLERANCE:
        raise SurgeryError(
            "The model uses the indices of its tokens, in its blocks or between them, "
            "and a reduction changes them.",
            where=f"With the patches in another order its outputs are off by {shuffled:.1e} of the "
            "scale of the values around.",
            fix="Reduce a model whose positions are added before the blocks, or enter each block "
            "as a tensor with a row for each token. Where it returns what it reads behind a block, "
            "let the next block take that output as it is.",
        )
    return max(plain, shuffled)


@contextmanager
def reraise_as_surgery_error(what: str, fix: str = _APART_FIX) -> Iterator[None]:
    """Raises the errors of a model with reduced blocks as SurgeryError, with ``what`` and ``fix``.

    Raises:
        SurgeryError: Something failed in the model.
    """
    try:
        yield
    except (ExporterError, SurgeryError):
        raise
    except Exception as error:
        raise SurgeryError(
            f"{what}: {in_words(error)}.",
            where=raised_at(error),
            fix=fix,
        ) from error


def _distance(
    flat: FlatModel,
    rebuilt: nn.Module,
    depth: int,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    answer: Answer,
) -> float:
    runs: Counter[int] = Counter()

    def count(block: nn.Module, args: Any, result: Any) -> None:
        runs[id(block)] += 1

    blocks = [module for module in rebuilt.modules() if isinstance(module, ReducedBlock)]
    model = FlatModel(rebuilt, flat.spec)
    with (
        reraise_as_surgery_error("Taken apart, the model fails"),
        evaluation(model),
        torch.no_grad(),
    ):
        hooks = [block.register_forward_hook(count) for block in blocks]
        found = model(*inputs)
        for hook in hooks:
            hook.remove()
    if len(blocks) != depth or any(runs[id(block)] != 1 for block in blocks):
        raise SurgeryError(
            f"Of the model's {depth} blocks {sum(map(bool, runs.values()))} run where they are "
            "registered: it reaches them by another path, such as a plain list.",
            fix="Let forward call the blocks of one nn.ModuleList or nn.Sequential.",
        )
    if [one.shape for one in found] != [one.shape for one in wanted]:
        raise GateError(
            "The blocks, taken apart and put together, give outputs of another shape.",
            fix="Please report the model.",
        )
    distances = (
        answer.distance(position, one, SURGERY_TOLERANCE) for position, one in enumerate(found)
    )
    return max(distances, default=0.0)


def _require_one_answer(flat: FlatModel, inputs: Sequence[Tensor], first: Sequence[Tensor]) -> None:
    """Refuses a model whose runs differ, before anything else is blamed."""
    with evaluation(flat), torch.no_grad():
        second = flat(*inputs)
    if not all(torch.equal(one, other) for one, other in zip(first, second, strict=True)):
        raise NotRepeatableError(
            "The model gives other outputs when it runs again on the same input.",
            fix="Take the random numbers out of eval mode: they hide what a reduction changes.",
        )
