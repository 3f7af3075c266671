"""Leaves the person's model as it was, whatever running or tracing it did to its attributes.

Class-patched models keep a schedule and the token sizes in one dict that all blocks share and that
forward pops from. Tracing gives every block a copy of that dict of its own, and the model is broken
in eager from then on. Here every attribute is put back to the very object it was, and every plain
container or object in it to what it held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_CONTAINERS = (dict, list, set, deque)
#: Packages whose objects are not the person's own state.
_LIBRARIES = {"builtins", "numpy", "torch", "types", "functools", "inspect"}


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Puts the module tree in evaluation mode, and everything back as it was on leaving.

    The flags are set one by one: the module of an exported program refuses ``eval()``.
    """
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    contents: dict[int, tuple[Any, Any]] = {}
    for _, values in attributes:
        for value in values.values():
            _remember(value, contents)
    for module, _ in attributes:
        module.training = False
    try:
        yield
    finally:
        for module, values in attributes:
            module.__dict__.clear()
            module.__dict__.update(values)
        for container, content in contents.values():
            container.clear()
            if isinstance(container, list | deque):
                container.extend(content)
            else:
                container.update(content)


def _remember(value: Any, contents: dict[int, tuple[Any, Any]]) -> None:
    """Copies a container's content, and that of the containers in it, once each."""
    ahead = [value]  # however deep they nest
    while ahead:
        one = ahead.pop()
        if type(one) is tuple:
            ahead.extend(one)
            continue
        if _is_plain_object(one):
            one = vars(one)
        if not isinstance(one, _CONTAINERS) or id(one) in contents:
            continue
        contents[id(one)] = (one, one.copy())
        ahead.extend(one.values() if isinstance(one, dict) else one)


def _is_plain_object(value: Any) -> bool:
    """Tells whether a value is an object of the person's, whose attributes may be state."""
    kind = type(value)
    if isinstance(value, type | nn.Module | Tensor) or not hasattr(value, "__dict__"):
        return False
    return kind.__module__.partition(".")[0] not in _LIBRARIES or kind.__name__ == "SimpleNamespace"


def parameter_versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns identity and in-place version of every parameter and buffer, by name."""
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: (id(tensor), tensor._version)
        for name, tensor in tensors.items()
        if not tensor.is_inference()
    }
