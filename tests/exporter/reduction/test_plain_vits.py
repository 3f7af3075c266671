"""Every training-free method goes into every plain ViT, and compiles for every target."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from helpers.compiled_models import assert_agrees, assert_builds, compile_for_ort
from helpers.thorough import thorough_but
from models.plain_vits import DEEPER, DEPTH, PLAIN, SPECIAL, build, image
from torch import Tensor, nn

import tokexport
import tokexport.runtimes
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.recipe import parse_recipe
from tokexport.exporter.reduction import reduce as reduce_module
from tokexport.exporter.reduction.blocks.search import FoundBlock, find_blocks
from tokexport.exporter.reduction.reduce import reduce_flat
from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.methods.known import METHODS
from tokexport.graph_passes.reduction.surgery.reduced_block import ReducedBlock
from tokexport.runtimes.bundle.manifest import PASSED

#: A recipe of each training-free method, and the patches it leaves of 36 behind each of 4 blocks.
RECIPES: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "tome": ("tome:r=5", (31, 26, 21, 16)),
    "mctf": ("mctf:r=5,least=4", (36, 31, 26, 21)),
    "pitome": ("pitome:keep=0.85", (31, 27, 23, 20)),
    "tofu": ("tofu:keep=0.85", ()),  # a share of all tokens, the special ones among them
    "dct": ("dct:keep=0.8", (29, 24, 20, 16)),
    "diffrate": ("diffrate:prune=[41,33,29,22],merge=[41,30,24,20]", ()),
    "evit": ("evit:keep=0.7", (36, 27, 20, 15)),
    "topk": ("topk:keep=0.7", (36, 26, 19, 14)),
    "random": ("random:keep=0.7", (36, 26, 19, 14)),
    "dpcknn": ("dpcknn:keep=0.7", (36, 26, 19, 14)),
    "divprune": ("divprune:keep=0.2", (36, 36, 7, 7)),
    "vtc-cls": ("vtc-cls:tokens=9,start=1", (36, 36, 9, 9)),
    "aim-merge": ("aim-merge", (36, 36, 9, 9)),
}

_NO_CLASS_TOKEN: Final = "timm SigLIP"
_ROTARY: Final = ("timm EVA-02", "transformers DINOv3")


def _kinds() -> dict[str, type[Method]]:
    return {kind.name: kind for kind in METHODS}


def _fits(model: str, method: str) -> bool:
    if model == _NO_CLASS_TOKEN and _kinds()[method].needs_class_token:
        return False
    return not (model in _ROTARY and method == "dct")


PAIRS: Final = [(model, method) for model in PLAIN for method in RECIPES if _fits(model, method)]
#: Every model with merging, and of its other methods each fourth, in turn.
FIRST: Final = [
    (model, method)
    for model, method in PAIRS
    if method == "tome" or (PLAIN.index(model) + [*RECIPES].index(method)) % 4 == 0
]


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _first(result: Any) -> Tensor:
    return _tensors(result)[0]


def patches_behind(model: nn.Module, x: Tensor, special: int) -> tuple[int, ...]:
    """Runs a reduced model and returns the patches that leave each block."""
    counts: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        counts.append(_first(output).shape[1] - special)

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, ReducedBlock)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return tuple(counts)


def test_every_training_free_method_has_a_recipe() -> None:
    assert set(RECIPES) == {kind.name for kind in METHODS if not kind.needs_training}


@pytest.mark.parametrize("name", PLAIN)
def test_special_tokens_are_found_and_the_surgery_changes_nothing(name: str) -> None:
    model, x = build(name), image()
    reduction = reduce_flat(
        FlatModel(model, call_spec(model, (x,), {})), (x,), parse_recipe("tome:r=0")
    )
    assert reduction.special == SPECIAL[name]
    assert reduction.error <= 2e-6
    assert len(reduction.blocks) == DEPTH
    other = image() * 0.7
    with torch.no_grad():
        for found, wanted in zip(
            _tensors(reduction.model(other)), _tensors(model(other)), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=0.0, atol=5e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_the_parameters_are_the_models_own_and_the_model_stays_as_it_was(name: str) -> None:
    model, x = build(name), image()
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    with torch.no_grad():
        wanted = _tensors(model(x))
    reduced = tokexport.reduce(model, "tome:r=5", x)
    own, shared = dict(model.named_parameters()), dict(reduced.named_parameters())
    assert list(own) == list(shared)
    assert all(own[key] is shared[key] for key in own)
    reduced.load_state_dict(before, strict=True)
    assert [type(module) for module in model.modules()] == kinds
    with torch.no_grad():
        reduced(x)
        for found, one in zip(_tensors(model(x)), wanted, strict=True):
            assert torch.equal(found, one)


@functools.cache
def _taken_apart(name: str) -> tuple[FlatModel, Tensor, tuple[FoundBlock, ...]]:
    """Finds the blocks of a model once for all methods: that takes most of a reduction."""
    model, x = build(name, depth=DEEPER), image()
    flat = FlatModel(model, call_spec(model, (x,), {}))
    return flat, x, find_blocks(flat, (x,), None)


@pytest.mark.parametrize(("name", "method"), thorough_but(FIRST, PAIRS))
def test_a_method_reduces_as_it_says(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, counts = RECIPES[method]
    flat, x, blocks = _taken_apart(name)
    monkeypatch.setattr(reduce_module, "find_blocks", lambda *given: blocks)
    reduction = reduce_flat(flat, (x,), parse_recipe(recipe))
    reduced, special = reduction.model, SPECIAL[name]
    found = patches_behind(reduced, x, special)
    assert reduction.tokens == tuple(special + patches for patches in (36, *found))
    if counts:
        assert found == counts
    else:
        assert found[-1] < 36
        assert all(later <= earlier for earlier, later in zip(found, found[1:], strict=False))
    with torch.no_grad():
        alone = torch.cat([_first(reduced(one[None])) for one in x])
        together = _first(reduced(x))
        assert (together - _first(flat.model(x))[:, : together.shape[1]]).abs().max() > 1e-6
        torch.testing.assert_close(alone, together, rtol=0.0, atol=1e-4)


#: Which architecture each method is compiled in; all pairs at their real sizes are a script of ci.
COMPILED: Final = {
    "tome": "timm EVA-02",
    "mctf": "timm DeiT, distilled",
    "pitome": "timm ViT",
    "tofu": "timm DINOv2 with registers",
    "dct": "timm SigLIP",
    "diffrate": "torchvision ViT",
    "evit": "transformers ViT",
    "topk": "open_clip ViT",
    "random": "transformers CLIP",
    "dpcknn": "transformers DINOv2",
    "divprune": "transformers DINOv3",
    "vtc-cls": "transformers CLIP",
    "aim-merge": "timm DeiT",
}


@pytest.mark.parametrize("method", thorough_but(["evit"], COMPILED))
def test_it_compiles_for_every_target(method: str, tmp_path: Path) -> None:
    name = COMPILED[method]
    batch = 1 if PLAIN.index(name) % 2 else 4
    reduced = tokexport.reduce(build(name), RECIPES[method][0], image(batch))
    compiled = compile_for_ort(reduced, image(batch), tmp_path)
    assert compiled.result.status == PASSED
    with tokexport.runtimes.load(compiled.result.bundle) as runner:
        assert_agrees(runner, compiled)
    for target in ("openvino", "trt"):
        (tmp_path / target).mkdir()
        assert_builds(compiled, target, tmp_path / target)
