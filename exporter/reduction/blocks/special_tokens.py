"""Finds the class, distillation and register tokens of a ViT, which no pixel reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.errors import ModelNotSupportedError
from tokexport.exporter.reduction.blocks.observed_calls import observe


def other_inputs(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Returns random inputs of the same shapes; integers other than pixels stay what they are."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(one.shape, generator=generator, dtype=one.dtype, device="cpu").to(one.device)
        if one.is_floating_point()
        else torch.randint(0, 256, one.shape, generator=generator, dtype=one.dtype)
        if one.dtype == torch.uint8
        else one
        for one in inputs
    )


def count_special_tokens(model: FlatModel, inputs: Sequence[Tensor], first_block: str) -> int:
    """Returns how many tokens at the front of the first block are the same whatever the input.

    Args:
        model: The user's model, on flat inputs.
        inputs: An example.
        first_block: The first block's name.

    Raises:
        ModelNotSupportedError: Special tokens are not at the front.
    """
    seen = []
    for seed in (1, 2):
        (call,) = observe(model, other_inputs(inputs, seed), lambda name: name == first_block)
        seen.append(call.x)
    # Each number by itself: a large channel that no pixel reaches says nothing of the others.
    fixed = torch.isclose(seen[0], seen[1], rtol=1e-6, atol=0.0).all(dim=2).all(dim=0)
    positions = fixed.nonzero()[:, 0].tolist()
    if positions != list(range(len(positions))) or len(positions) == len(fixed):
        raise ModelNotSupportedError(
            f"The tokens at {positions[:8]} do not depend on the input, and special tokens are "
            "expected at the front.",
            where=f"At the input of '{first_block}', {len(fixed)} tokens.",
            fix="Say how many special tokens there are at the front with protect=NUMBER.",
        )
    return len(positions)
