"""Gives the methods that have trained parameters those of a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tokexport.exporter.errors import UsageError, listed
from tokexport.exporter.source.files.checkpoint import read_state_dict
from tokexport.graph_passes.reduction.surgery.reduced_block import TRAINED, ReducedBlock


def trained_names(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that the method brought into a model."""
    return [
        f"{path}.{TRAINED}.{name}"
        for path, block in model.named_modules()
        if isinstance(block, ReducedBlock) and TRAINED in block._modules
        for name in block.get_submodule(TRAINED).state_dict()
    ]


def load_trained(model: nn.Module, path: Path) -> None:
    """Loads the method's own parameters from a file that may hold the whole model's.

    Raises:
        UsageError: The method has none, or the file lacks one or holds one of another shape.
        SourceError: The file cannot be read.
    """
    names = trained_names(model)
    if not names:
        raise UsageError("The method has no trained parameters.", fix="Leave weights=… out.")
    if not path.is_file():
        raise UsageError("The method's weights are no file.", where=str(path))
    given = read_state_dict(path).tensors
    own = model.state_dict()
    misfits = [n for n in names if n not in given or given[n].shape != own[n].shape]
    if misfits:
        raise UsageError(
            f"The file does not hold the method's parameters: {listed(misfits, 4)}.",
            where=str(path),
            fix="Give what torch.save(reduced_model.state_dict(), path) wrote.",
        )
    with torch.no_grad():
        for name in names:
            own[name].copy_(given[name])
