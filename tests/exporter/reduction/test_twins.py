"""A reduction put in on the graph equals the same method patched into the classes by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from helpers.thorough import thorough_but
from models.zoo import MODELS, divprune, dpc_knn, dynamicvit, projector, pyra, tome
from models.zoo.vit import IMAGE, Vit, seeded
from torch import Tensor, nn

import tokexport

Build = Callable[[], nn.Module]

#: The patched model of the zoo, the plain one of the same weights, and the recipe.
TWINS: Final[dict[str, tuple[Build, str]]] = {
    "tome": (lambda: tome.small_timm(0), "tome:r=4"),
    "tome, falling r": (lambda: tome.small_timm(0), "tome:r=4,inflection=-0.75"),
    "tome, sizes not in attention": (lambda: tome.small_timm(0), "tome:r=4,prop_attn=false"),
    "tome, distilled": (
        lambda: tome.small_timm(0, "deit_tiny_distilled_patch16_224"),
        "tome:r=4",
    ),
    "mctf": (lambda: seeded(0), "mctf:r=7"),
    "mctf, one way": (lambda: seeded(0), "mctf:r=[0,0.2,0,0.2],bidirectional=false"),
    "mctf, to the fewest": (lambda: seeded(0), "mctf:r=18"),
    "pitome": (lambda: seeded(0), "pitome:keep=0.9"),
    "tofu": (lambda: seeded(0), "tofu:keep=0.9"),
    "dct": (lambda: seeded(0), "dct:keep=[1.0,0.8,1.0,0.8]"),
    "diffrate": (lambda: seeded(0), "diffrate:prune=[37,33,34,26],merge=[37,30,26,24]"),
    "evit": (lambda: seeded(0), "evit:keep=0.7,fuse=false,layers=[1,3]"),
    "evit, fused token": (lambda: seeded(0), "evit:keep=0.7,layers=[1,3]"),
    "evit, fused token, distilled": (
        lambda: seeded(0, distilled=True),
        "evit:keep=0.7,layers=[1,3],protect=1",
    ),
    "top-k class attention": (lambda: seeded(0), "topk:keep=[1.0,0.69,0.66,1.0],layers=[1,2]"),
}

#: The patched model leaves the patches in their own order here; that changes no logit.
OTHER_ORDER: Final = ("top-k class attention",)


def _first(result: Any) -> Tensor:
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found


def _images() -> Tensor:
    return torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", thorough_but([*TWINS][::2], TWINS))
def test_it_equals_the_patched_model(name: str) -> None:
    build, recipe = TWINS[name]
    x = _images()
    plain = build()
    reduced, patched = tokexport.reduce(plain, recipe, x[:1]), MODELS[name](0)[0]
    (found, mine), (wanted, theirs), (unreduced, _) = (
        _run(model, x) for model in (reduced, patched, plain)
    )
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)
    assert (unreduced - wanted).abs().max() > 1e-4  # the method did something
    assert [one.shape for one in mine] == [one.shape for one in theirs]
    if name not in OTHER_ORDER:
        for own, other in zip(mine, theirs, strict=True):  # the same decisions, in the same order
            atol = 1e-5 * max(1.0, other.abs().max().item())
            torch.testing.assert_close(own, other, rtol=0.0, atol=atol)


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns a model's first output, and the tokens behind each block and at the last norm."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0]))
        for name, module in model.named_modules()
        if name == "norm"
    ]
    blocks: Any = model.blocks
    hooks += [block.register_forward_hook(lambda b, i, out: seen.append(out)) for block in blocks]
    with torch.no_grad():
        result = _first(model(x))
    for hook in hooks:
        hook.remove()
    return result, seen


def test_dynamicvit_equals_the_patched_model_of_the_same_predictors(tmp_path: Path) -> None:
    patched = dynamicvit.build(0)[0]
    assert isinstance(patched, dynamicvit.DynamicVit)
    weights = {
        f"blocks.{block}.reduction.{name}": tensor
        for block, predictor in zip((1, 3), patched.score_predictor, strict=True)
        for name, tensor in predictor.state_dict().items()
    }
    torch.save(weights, tmp_path / "predictors.pt")
    plain, x = seeded(0), _images()
    recipe = f"dynamicvit:keep=0.7,layers=[1,3],weights={tmp_path / 'predictors.pt'}"
    reduced = tokexport.reduce(plain, recipe, x[:1])
    with torch.no_grad():
        found, wanted, unreduced = reduced(x), patched(x), plain(x)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)
    assert (unreduced - wanted).abs().max() > 1e-4


def test_pyra_equals_the_patched_model_of_the_same_vectors(tmp_path: Path) -> None:
    patched, _ = pyra.build(0)
    assert isinstance(patched, Vit)
    names = {"adapt_norm.weight": "norm.weight", "adapt_norm.bias": "norm.bias"}
    names |= {"w_r": "a", "w_d": "b"}
    weights = {
        f"blocks.{number}.reduction.{names[name]}": tensor
        for number, block in enumerate(patched.blocks)
        for name, tensor in block.get_submodule("modulation").state_dict().items()
    }
    torch.save(weights, tmp_path / "vectors.pt")
    plain, x = seeded(0), _images()
    recipe = f"pyra:r=4,weights={tmp_path / 'vectors.pt'}"
    reduced, tome_only = (tokexport.reduce(plain, one, x[:1]) for one in (recipe, "tome:r=4"))
    with torch.no_grad():
        found, unmodulated = (model(x).log_softmax(dim=-1) for model in (reduced, tome_only))
        wanted = patched(x)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)
    assert (unmodulated - wanted).abs().max() > 1e-4


def _features(recipe: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What leaves the second-to-last block of a reduced ViT, without the class token."""
    plain = seeded(0)
    plain.load_state_dict(weights)
    reduced = tokexport.reduce(plain, recipe, x[:1])
    assert isinstance(reduced, Vit)
    seen: list[Tensor] = []
    reduced.blocks[-2].register_forward_hook(lambda block, args, out: seen.append(out))
    with torch.no_grad():
        reduced(x)
    return seen[-1][:, 1:]


def test_vtc_cls_equals_the_patched_model() -> None:
    model, _ = projector.build_vtc_cls(0)
    assert isinstance(model, projector.VtcCls)
    x = _images()
    features = _features("vtc-cls:tokens=9,start=1", model.vision_tower.state_dict(), x)
    assert features.shape[1] == 9
    with torch.no_grad():
        found, wanted = model.mm_projector(features), model(x)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("rounds", [1, 2])
def test_aim_equals_the_patched_models_merging(rounds: int) -> None:
    tower, x = projector.Tower().eval(), _images()
    found = _features(f"aim-merge:rounds={rounds}", tower.state_dict(), x)
    with torch.no_grad():
        wanted = tower(x).hidden_states[-2][:, 1:]
        for _ in range(rounds):
            wanted = projector.merge_half(wanted)
    assert found.shape[1] == 36 // 2**rounds
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)


def test_divprune_equals_the_patched_model() -> None:
    model, _ = divprune.build(0)
    assert isinstance(model, divprune.DivPrune)
    x = _images()
    features = _features("divprune:keep=0.25", model.vision_tower.state_dict(), x)
    assert features.shape[1] == 9
    with torch.no_grad():
        found, wanted = model.mm_projector(features), model(x)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)


def test_dpcknn_equals_the_patched_models_clustering() -> None:
    tower, x = projector.Tower().eval(), _images()
    found = _features("dpcknn:keep=0.5,layers=[2]", tower.state_dict(), x)
    with torch.no_grad():
        tokens = {"x": tower(x).hidden_states[-2][:, 1:]}
        dpc_knn.merge_tokens(tokens, dpc_knn.cluster_dpc_knn(tokens["x"], 18), 18)
    torch.testing.assert_close(found, tokens["x"], rtol=0.0, atol=1e-5)
