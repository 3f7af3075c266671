"""Remembers what is known of tensors for as long as nothing changes their numbers.

Torch counts the changes of a tensor, and counts them for all views of it; so whatever changes one,
by whatever name (a method, ``out``, ``inplace=True``, a list of tensors), makes what was known of
it and of its views void. A tensor taken by ``.data`` has a count of its own and the same storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from tokexport.graph_passes.torch_passes.graph.calls import base_name

T = TypeVar("T")
#: What holds no tensor.
_PLAIN: Final = (str, int, float, NoneType, torch.dtype, torch.device)


class FollowedTensors(Generic[T]):
    """Holds a value for each of some tensors, until the tensor's numbers change."""

    def __init__(self) -> None:
        self._entries: Any = WeakTensorKeyDictionary()

    def get(self, tensor: Any) -> T | None:
        """Returns the value of a tensor; None if it has none or its numbers changed."""
        entry = self._entries.get(tensor) if isinstance(tensor, Tensor) else None
        if entry is None or entry[1] != version_of(tensor):
            return None
        found: T = entry[0]
        return found

    def set(self, tensor: Tensor, value: T) -> None:
        """Records the value of a tensor as it is now."""
        version = version_of(tensor)
        if version is not None:
            self._entries[tensor] = value, version

    def forget(self, changed: Sequence[Tensor]) -> None:
        """Forgets the values of all tensors that share their numbers with some that changed."""
        for tensor, _ in self.sharing(changed):
            del self._entries[tensor]

    def sharing(self, changed: Sequence[Tensor]) -> list[tuple[Tensor, T]]:
        """Returns the tensors that share their numbers with some, and the values they have."""
        if not changed:
            return []
        storages = {_storage_of(one) for one in changed}
        entries = [(tensor, value) for tensor, (value, _) in self._entries.items()]
        return [each for each in entries if _storage_of(each[0]) in storages]

    def known(self) -> frozenset[int]:
        """Returns the identities of the tensors whose values are not void."""
        return frozenset(
            id(tensor)
            for tensor, (_, version) in self._entries.items()
            if version == version_of(tensor)
        )


def version_of(tensor: Tensor) -> int | None:
    """Returns how often a tensor was changed; None where torch does not count changes."""
    with torch._C.DisableTorchFunction():
        return None if tensor.is_inference() else int(tensor._version)


def versions_of(tree: Any) -> list[tuple[Tensor, int | None]]:
    """Returns the tensors in what a call takes, and how often each was changed."""
    return [(one, version_of(one)) for one in tensors_in(tree)]


def changed_since(
    versions: Sequence[tuple[Tensor, int | None]], func: Any, args: Any, kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Returns the tensors that a call changed.

    Args:
        versions: Its tensors and their versions before it.
        func: The function, as ``__torch_function__`` is given it.
        args: What it took.
        kwargs: What it took by name.
    """
    found = {id(one): one for one, version in versions if version_of(one) != version}
    found |= {id(one): one for one in tensors_in(kwargs.get("out"))}
    name = base_name(func)
    replaced = name == "__set__" and getattr(func.__self__, "__name__", "") == "data"
    if in_place(name) or replaced:  # neither lists of tensors nor other data are counted
        found |= {id(one): one for one in tensors_in(args[:1])}
    return list(found.values())


def in_place(name: str) -> bool:
    """Returns whether a method of this name changes its tensor, as ``add_`` does."""
    return name.endswith("_") and not name.endswith("__")


def tensors_in(tree: Any) -> list[Tensor]:
    """Returns the tensors in what a call takes or gives, in the order of its leaves.

    A tracer asks for each call of a model; most hold tensors, numbers and tuples alone.
    """
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, _PLAIN):
        return []
    if isinstance(tree, tuple | list):
        return [found for one in tree for found in tensors_in(one)]
    if isinstance(tree, dict):
        return [found for one in tree.values() for found in tensors_in(one)]
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, Tensor)]


def _storage_of(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)
