"""Takes the modules out of ``torch.compile``, so that a model is plain eager modules.

A compiled module answers as the one inside it, but torch runs it by another path: hooks on its
parts are not called as they were, and what is timed as eager would be compiled. A copy holds the
same tensors; the user's model is left as it was.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

from tokexport.exporter.errors import ModelNotSupportedError

_ORIGINAL = "_orig_mod"
_COMPILED_CALL = "_compiled_call_impl"


def eager_form(model: nn.Module) -> nn.Module:
    """Returns the model itself, or where parts of it are compiled, a copy on the same tensors.

    Raises:
        ModelNotSupportedError: Parts of it are compiled, and it cannot be copied.
    """
    while _is_compiled(model):
        model = model._modules[_ORIGINAL]  # type: ignore[assignment]
    if not any(_is_compiled(part) or _calls_compiled(part) for part in model.modules()):
        return model
    copied = copy_around_tensors(model)
    for part in copied.modules():
        if _calls_compiled(part):
            setattr(part, _COMPILED_CALL, None)
    for part in list(copied.modules()):
        for name, child in part._modules.items():
            while child is not None and _is_compiled(child):
                child = child._modules[_ORIGINAL]
            part._modules[name] = child
    return copied


def _is_compiled(module: nn.Module) -> bool:
    """Returns whether ``torch.compile`` returned a module, without loading its compiler."""
    return type(module).__name__ == "OptimizedModule" and _ORIGINAL in module._modules


def _calls_compiled(module: nn.Module) -> bool:
    """Returns whether ``module.compile()`` was called on a module."""
    return getattr(module, _COMPILED_CALL, None) is not None


def copy_around_tensors(model: nn.Module) -> nn.Module:
    """Copies the module tree and leaves every tensor where it is.

    A hook that holds a module of the tree, or a container of one, holds its copy in the copy.

    Raises:
        ModelNotSupportedError: Something in it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            memo[id(tensor)] = tensor
        for value in vars(module).values():
            if isinstance(value, Tensor):
                memo[id(value)] = value
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelNotSupportedError(
            f"The model cannot be copied: {type(error).__name__}: {error}",
            fix="Reducing a model, or taking it out of torch.compile, copies its modules: "
            "remove what cannot be copied, such as locks and open files.",
        ) from error
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in hooks.items():
                hooks[key] = _with_copies(hook, memo)
    return copied


def _with_copies(hook: Callable[..., Any], memo: dict[int, Any]) -> Callable[..., Any]:
    """Returns a function whose enclosed variables are the copies of what it enclosed."""
    if isinstance(hook, functools.partial):
        args = [memo.get(id(value), value) for value in hook.args]
        named = {name: memo.get(id(value), value) for name, value in hook.keywords.items()}
        return functools.partial(_with_copies(hook.func, memo), *args, **named)
    cells = getattr(hook, "__closure__", None)
    if not isinstance(hook, FunctionType) or not cells:
        return hook
    held = tuple(_cell_of_copy(cell, memo) for cell in cells)
    if all(one is other for one, other in zip(held, cells, strict=True)):
        return hook
    found = FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, held)
    found.__kwdefaults__ = hook.__kwdefaults__
    functools.update_wrapper(found, hook)
    return found


def _cell_of_copy(cell: CellType, memo: dict[int, Any]) -> CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return cell
    copied = memo.get(id(held), held)
    return cell if copied is held else CellType(copied)
