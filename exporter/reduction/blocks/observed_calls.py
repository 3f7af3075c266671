"""Runs a model and records its calls of modules that take and return tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation


@dataclass(frozen=True)
class Call:
    """One call of a module on tokens.

    Attributes:
        path: The module's name in the model.
        module: The module.
        leaves: Its arguments, flat.
        tree: How they nest in (args, kwargs).
        tokens: Which leaf is the tokens, (B, N, C).
        result: What it returned, flat.
        result_tree: How that nests.
        result_tokens: Which leaf of the result has the shape of the tokens.
    """

    path: str
    module: nn.Module
    leaves: tuple[Any, ...]
    tree: Any
    tokens: int
    result: tuple[Any, ...]
    result_tree: Any
    result_tokens: int

    @property
    def x(self) -> Tensor:
        """The tokens that went in."""
        found: Tensor = self.leaves[self.tokens]
        return found

    @property
    def extras(self) -> tuple[int, ...]:
        """The other leaves that are tensors."""
        return tuple(
            position
            for position, leaf in enumerate(self.leaves)
            if isinstance(leaf, Tensor) and position != self.tokens
        )


def observe(
    model: FlatModel, inputs: Sequence[Tensor], wanted: Callable[[str], bool]
) -> tuple[Call, ...]:
    """Runs a model in evaluation mode and returns the calls on tokens, in their order of return.

    Args:
        model: The user's model, on flat inputs.
        inputs: What it is run on.
        wanted: Which modules, by name, to look at.
    """
    calls: list[Call] = []

    def noted(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            call = _read(path, module, args, kwargs, result)
            if call is not None:
                calls.append(call)

        return note

    with evaluation(model), torch.no_grad():  # around the hooks: what they keep is not put back
        hooks = [
            module.register_forward_hook(noted(path), with_kwargs=True)
            for path, module in model.model.named_modules()
            if path and wanted(path)
        ]
        try:
            model(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return tuple(calls)


def other_blocks(model: FlatModel, inputs: Sequence[Tensor]) -> list[str]:
    """Describes repeated modules whose inputs or outputs are not (batch, tokens, channels).

    A sentence for each container of two or more modules of one class that have parts of their own.
    """
    found: dict[str, str] = {}

    def noted(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            shapes = [
                next((tuple(one.shape) for one in leaves if isinstance(one, Tensor)), ())
                for leaves in (pytree.tree_leaves((args, kwargs)), pytree.tree_leaves(result))
            ]
            taken, given = (str(shape) if shape else "no tensor" for shape in shapes)
            found.setdefault(
                path,
                f"The blocks of '{path}' ({type(module).__name__}) take {taken} and give {given}.",
            )

        return note

    with evaluation(model), torch.no_grad():
        hooks = []
        for path, container in model.model.named_modules():
            parts = [one for one in container.children() if next(one.children(), None) is not None]
            if isinstance(container, nn.ModuleList | nn.Sequential) and len(parts) > 1:
                same = [one for one in parts if type(one) is type(parts[-1])]
                hooks += [one.register_forward_hook(noted(path), with_kwargs=True) for one in same]
        try:
            model(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return list(found.values())


def _read(path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Call | None:
    leaves, tree = pytree.tree_flatten((args, kwargs))
    results, result_tree = pytree.tree_flatten(result)
    tokens = next((i for i, leaf in enumerate(leaves) if _is_tokens(leaf)), None)
    if tokens is None:
        return None
    shape = leaves[tokens].shape
    same = [i for i, leaf in enumerate(results) if _is_tokens(leaf) and leaf.shape == shape]
    if not same:
        return None
    return Call(path, module, tuple(leaves), tree, tokens, tuple(results), result_tree, same[0])


def _is_tokens(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()
