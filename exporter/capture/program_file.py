"""Writes a traced program as ``torch.export.save`` does, and whole where its tensors are views."""

from __future__ import annotations

import io
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokexport.exporter.torch_warnings import torch_warnings_silenced


def program_bytes(program: ExportedProgram) -> memoryview:
    """Returns the file of a program.

    torch's writer takes the storage of a tensor for its numbers: weights and constants that are a
    part of a larger one, or another order of it, get one of their own in the program first. And it
    ends the process where the disk is full, so that it does not get to write there.
    """
    _own_storages(program.state_dict)
    _own_storages(program.constants)
    held = io.BytesIO()
    with torch_warnings_silenced():
        torch.export.save(program, held)
    return held.getbuffer()


def _own_storages(tensors: MutableMapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or _is_whole(tensor):
            continue
        own: Tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(tensor, nn.Parameter):
            own = nn.Parameter(own, tensor.requires_grad)
        tensors[name] = own


def _is_whole(tensor: Tensor) -> bool:
    """Returns whether a tensor is all of its storage, in the order of that."""
    if tensor.layout != torch.strided:
        return True
    size = tensor.numel() * tensor.element_size()
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == size
