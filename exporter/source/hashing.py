"""Hashes the files or state of a source, for the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokexport.exporter.errors import UsageError
from tokexport.runtimes.bundle.bundle_files import hash_file

if TYPE_CHECKING:
    from torch import Tensor, nn


def hash_files(paths: Sequence[Path]) -> str:
    """Returns the SHA-256 over the names and contents of files, whatever order they come in."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(f"{path.name}\0{hash_file(path)}\0".encode())
    return whole.hexdigest()


def hash_model(model: nn.Module, name: str) -> str:
    """Returns the SHA-256 over a name and a model's state: names, types, shapes and values.

    Raises:
        UsageError: A weight is lazy, and has neither shape nor values yet.
    """
    import torch
    from torch.nn.parameter import is_lazy

    whole = hashlib.sha256(f"{name}\0".encode())
    for key, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            whole.update(f"{key}\0{type(value).__name__}\0".encode())
            continue
        if is_lazy(value):
            raise UsageError(
                f"Weight '{key}' has no shape before the model first runs.",
                fix="Run the model once on an example input, and compile it then.",
            )
        whole.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        whole.update(bytes_of(value))
    return whole.hexdigest()


def bytes_of(value: Tensor) -> memoryview:
    """Returns the values of a tensor, in their order, as bytes."""
    import torch

    # a conjugate or a negative may be a view that only says so
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")
