"""Restores the user's model after it was run or traced.

Class-patched models keep a schedule and the token sizes in one dict that all blocks share and that
forward pops from; libraries put hooks on modules when they first run, and note it in an attribute.
Tracing leaves its own copies there, and breaks the model in eager from then on. Here every
attribute gets back the very object that it held, and every container and object below the model to
what it held; so are the attributes of the classes of its modules.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tokexport.exporter.eager.object_memory import ObjectMemory
from tokexport.exporter.eager.run_counters import RunCounters

#: What Python itself puts into a class when it is first asked for.
_OF_PYTHON: Final = {
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    *("__doc__", "__dict__", "__weakref__", "_abc_impl"),
}
_NOT_OURS: Final = {"torch", "abc", "typing", "builtins"}


@dataclass(frozen=True)
class Evaluation:
    """A module tree in evaluation mode, and its state before.

    Attributes:
        memory: What the tree held, however deep.
    """

    memory: ObjectMemory
    _modules: list[nn.Module]
    _attributes: dict[type, dict[str, Any]]
    _caches: list[tuple[Any, int]]

    def begin_again(self) -> None:
        """Restores everything but the mode, so that the next run starts as the first one did."""
        self._give_back()
        self._set_mode()

    def counters(self) -> RunCounters:
        """Returns the counters of the tree: the numbers that grow as it runs."""
        return RunCounters(self.memory, list(self._attributes))

    def _set_mode(self) -> None:
        for module in self._modules:
            module.training = False

    def _give_back(self) -> None:
        self.memory.give_back()
        for kind, held in self._attributes.items():
            _give_back_attributes(kind, held)
        for cache, size in self._caches:
            if cache.cache_info().currsize != size:
                cache.cache_clear()  # a trace's entries are useless to others


@contextmanager
def evaluation(model: nn.Module, *, weights: bool = False) -> Iterator[Evaluation]:
    """Puts the module tree in evaluation mode, and restores everything on leaving.

    The flags are set one by one: the module of an exported program refuses ``eval()``. Recording a
    large model takes as long as some of its layers, so several runs share one context.

    Args:
        model: The module; what it holds, however deep, is remembered by its content.
        weights: Whether the values of the parameters are kept a second time and put back too.
    """
    modules = list(model.modules())
    classes = _classes_of(modules)
    attributes = {kind: dict(vars(kind)) for kind in classes}
    memory = ObjectMemory(weights=weights)
    memory.take([model, *_hooks_on_all_modules()])
    memory.take(value for held in attributes.values() for value in held.values())
    entered = Evaluation(memory, modules, attributes, _caches(classes))
    entered._set_mode()
    try:
        yield entered
    finally:
        entered._give_back()


def _classes_of(modules: list[nn.Module]) -> list[type]:
    """Returns the classes of modules and their bases, those of torch left out."""
    found = dict.fromkeys(base for kind in {*map(type, modules)} for base in kind.__mro__)
    return [kind for kind in found if kind.__module__.partition(".")[0] not in _NOT_OURS]


def _give_back_attributes(kind: type, held: dict[str, Any]) -> None:
    now = dict(vars(kind))
    for name in (now.keys() | held.keys()) - _OF_PYTHON:
        if name not in held:
            delattr(kind, name)
        elif now.get(name, held) is not held[name]:
            setattr(kind, name, held[name])


def _hooks_on_all_modules() -> list[Any]:
    """Returns the tables in which torch keeps the hooks that every module calls."""
    names = (name for name in vars(torch_module) if name.startswith("_global_"))
    return [getattr(torch_module, name) for name in names if "hook" in name]


def _caches(classes: list[type]) -> list[tuple[Any, int]]:
    """Returns the caches of functions in the classes and beside them, and how much is in each."""
    places: list[Mapping[str, Any]] = [vars(kind) for kind in classes]
    names = {kind.__module__ for kind in classes} - {"__main__"}
    places += [vars(sys.modules[name]) for name in names if name in sys.modules]
    values = (value for place in places for value in place.values())
    caches = {
        id(value): value for value in values if isinstance(value, functools._lru_cache_wrapper)
    }
    return [(cache, cache.cache_info().currsize) for cache in caches.values()]


def parameter_versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns identity and in-place version of every parameter and buffer, by name."""
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: (id(tensor), tensor._version)
        for name, tensor in tensors.items()
        if not tensor.is_inference()
    }
