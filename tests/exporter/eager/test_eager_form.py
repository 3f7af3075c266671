"""Compiled modules and modules with hooks: what runs, is timed and is reduced is plain eager."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.thorough import thorough_but
from models.zoo.vit import IMAGE, Vit, seeded
from torch import Tensor, nn

import tokexport
from tokexport.exporter.eager.eager_form import copy_around_tensors, eager_form


def images() -> Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(5))


def _compiled(model: nn.Module) -> nn.Module:
    found: Any = torch.compile(model, backend="eager")  # the default one warns where it is imported
    assert isinstance(found, nn.Module)
    return found


def _inside(model: nn.Module) -> nn.Module:
    return nn.Sequential(_compiled(model))


def _blocks(model: nn.Module) -> nn.Module:
    assert isinstance(model, Vit)
    for number, block in enumerate(model.blocks):
        model.blocks[number] = _compiled(block)
    return model


def _in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled", thorough_but([_blocks, _in_place], [_compiled, _inside, _blocks, _in_place])
)
def test_a_compiled_model_is_reduced_as_the_one_in_it(compiled: Any) -> None:
    given = compiled(seeded(0))
    names = [type(module).__name__ for module in given.modules()]
    with torch.no_grad():
        wanted = tokexport.reduce(seeded(0), "tome:r=4", images())(images())
        reduced = tokexport.reduce(given, "tome:r=4", images())
        assert torch.equal(reduced(images()), wanted)
    assert [type(module).__name__ for module in given.modules()] == names
    assert "OptimizedModule" not in [type(module).__name__ for module in reduced.modules()]
    assert {id(one) for one in reduced.parameters()} == {id(one) for one in given.parameters()}


def test_a_model_that_is_not_compiled_is_left_alone() -> None:
    model = seeded(0)
    assert eager_form(model) is model
    assert eager_form(_compiled(model)) is model


class Hooked(Vit):
    """Its head reads what hooks kept of a block's input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.seen["behind"] = output

        self.blocks[1].register_forward_hook(keep)
        self.blocks[2].register_forward_pre_hook(functools.partial(_keep_input, self))

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, self.seen["behind"].mean(dim=1), self.seen["before"][:, 0]


def _keep_input(model: Hooked, module: nn.Module, inputs: Any) -> None:
    model.seen["before"] = inputs[0]


def test_hooks_that_the_head_reads_are_reduced_along() -> None:
    torch.manual_seed(0)
    model = Hooked().eval()
    reduced: Any = tokexport.reduce(model, "tome:r=4,layers=[0,1]", images())
    held = dict(model.seen)
    with torch.no_grad():
        _, mean, first = reduced(images())
    assert model.seen.keys() == held.keys()
    assert reduced.seen["behind"].shape == (2, 29, 48)
    assert torch.equal(mean, reduced.seen["behind"].mean(dim=1))
    assert torch.equal(first, reduced.seen["behind"][:, 0])
    restored: Any = tokexport.reduce(model, "tome:r=4,layers=[0,1],restore=true", images())
    with torch.no_grad():
        _, mean, _ = restored(images())
    assert restored.seen["behind"].shape == (2, 37, 48)
    assert torch.equal(mean, restored.seen["behind"].mean(dim=1))


def test_a_hook_without_anything_of_the_model_stays_the_same_function() -> None:
    model, seen = seeded(0), list[int]()
    hook = model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(1))
    copied: Any = copy_around_tensors(model)
    assert copied.blocks[0]._forward_hooks[hook.id] is model.blocks[0]._forward_hooks[hook.id]
    with torch.no_grad():
        copied(images())
    assert seen == [1]
