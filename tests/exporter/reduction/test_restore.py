"""Every token comes back where it was: exactly where it never merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.thorough import thorough_but
from models.plain_vits import DEEPER, build, image
from torch import Tensor, nn

import tokexport
from tokexport.graph_passes.reduction.surgery.reduced_block import ReducedBlock

#: One that merges and one that selects; the others' tokens are put back by the same two.
FIRST = ("mctf:r=5,least=4", "evit:keep=0.7")
METHODS = ("tome:r=3", "mctf:r=5,least=4", "pitome:keep=0.9", "evit:keep=0.7", "dpcknn:keep=0.8")


def _features(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Any = model(x)
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found


def _blocks(model: nn.Module) -> list[ReducedBlock]:
    return [module for module in model.modules() if isinstance(module, ReducedBlock)]


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns what the model sees behind each block."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in _blocks(model)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("recipe", thorough_but(FIRST, METHODS))
def test_as_many_tokens_come_back_as_went_in(recipe: str) -> None:
    model, x = build("transformers DINOv2"), image()
    restored = _features(tokexport.reduce(model, f"{recipe},restore=true", x), x)
    assert restored.shape == _features(model, x).shape == (2, 37, 48)


@pytest.mark.parametrize("recipe", thorough_but(FIRST, METHODS))
def test_every_reduced_token_is_somewhere_among_the_restored(recipe: str) -> None:
    model, x = build("transformers DINOv2"), image()
    short = _features(tokexport.reduce(model, recipe, x), x)
    whole = _features(tokexport.reduce(model, f"{recipe},restore=true", x), x)
    for few, all_ in zip(short, whole, strict=True):
        nearest = torch.cdist(few.double(), all_.double()).amin(dim=1)
        assert nearest[: 1 if "evit" in recipe else None].max() < 1e-5
        distinct = (torch.cdist(all_.double(), few.double()).amin(dim=1) < 1e-5).sum()
        assert distinct >= few.shape[0] - ("evit" in recipe)


def test_a_token_that_never_merged_is_exactly_what_the_reduced_model_has() -> None:
    model, x = build("transformers DINOv2", depth=DEEPER), image()
    reduced = tokexport.reduce(model, "tome:r=2,layers=[3]", x)
    whole = tokexport.reduce(model, "tome:r=2,layers=[3],restore=true", x)
    short, restored = _features(reduced, x), _features(whole, x)
    for few, all_ in zip(short, restored, strict=True):
        pairs = (few[None] == all_[:, None]).all(dim=2)  # (37, 35)
        assert pairs.any(dim=1).all()
        assert pairs.sum() == 37
        alone = pairs.sum(dim=0) == 1
        assert alone.sum() >= 35 - 2
        assert pairs[0, 0]


def test_blocks_in_between_show_all_tokens_and_go_on_with_the_few() -> None:
    model, x = build("transformers DINOv2", depth=DEEPER), image()
    ends = _outputs(tokexport.reduce(model, "tome:r=5,restore=true", x), x)
    both = _outputs(tokexport.reduce(model, "tome:r=5,restore=[1]", x), x)
    assert [one.shape[1] for one in ends] == [32, 27, 22, 37]
    assert [one.shape[1] for one in both] == [32, 37, 22, 37]
    assert torch.equal(ends[3], both[3])


def test_a_dropped_token_is_what_it_last_was() -> None:
    model, x = build("transformers DINOv2", depth=DEEPER), image()
    reduced = tokexport.reduce(model, "topk:keep=0.5,layers=[2],restore=[1]", x)
    _, before, _, end = _outputs(reduced, x)
    plain = tokexport.reduce(model, "tome:r=0", x)
    _, known, _, _ = _outputs(plain, x)
    torch.testing.assert_close(before, known, rtol=0.0, atol=1e-6)
    stayed = (end - before).abs().amax(dim=2) > 1e-3
    assert (stayed.sum(dim=1) == 37).all() or (stayed.sum(dim=1) >= 19).all()


def test_image_features_of_timm_become_a_map_again() -> None:
    model, x = build("timm DINOv2 with registers", depth=DEEPER), image()
    reduced: Any = tokexport.reduce(model, "pitome:keep=0.8,restore=[1]", x)
    with torch.no_grad():
        maps = reduced.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
    assert [tuple(one.shape) for one in maps] == [(2, 48, 6, 6)] * 2


def test_dct_cannot_be_restored() -> None:
    from tokexport.graph_passes.reduction.errors import SurgeryError

    model, x = build("timm DeiT"), image()
    with pytest.raises(SurgeryError, match="mixes all tokens"):
        tokexport.reduce(model, "dct:restore=true", x)(x)
