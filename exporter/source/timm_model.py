"""Builds a model of timm by its name, without pretrained weights and without the network."""

from __future__ import annotations

import difflib
import re
from types import ModuleType
from typing import TYPE_CHECKING

from tokexport.exporter.errors import PackageMissingError, SourceError

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"
_INSTALL = "pip install 'tokexport[timm]'"


def build_timm_model(name: str) -> nn.Module:
    """Builds ``timm.create_model(name)`` with random weights, in evaluation mode.

    Args:
        name: The name of the architecture, with or without a pretrained tag.

    Raises:
        PackageMissingError: timm is not installed, or does not import.
        SourceError: timm does not have the model.
    """
    timm = _import_timm()
    architecture = name.partition(".")[0]
    # A colon would name a place to fetch from, for example a hub, also after an architecture.
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture[:80], timm.list_models(), n=5)
        raise SourceError(
            f"There is no model {name!r:.80} in timm {timm.__version__}.",
            fix=f"Near names: {', '.join(near)}."
            if near
            else "All of them: python -c 'import timm; print(timm.list_models())'",
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # an unknown tag
        raise SourceError(
            f"The model {name!r} of timm cannot be built: {error}",
            fix=f"Leave the tag out: {PREFIX}{architecture}",
        ) from error
    return model.eval()


def _import_timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise PackageMissingError(
            f"Building a model of timm needs {error.name!r}, which is not installed.",
            fix=_INSTALL,
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise PackageMissingError(
            f"The package timm does not import: {type(error).__name__}: {str(error).strip()}",
            fix="Install torch and torchvision from the same index: they must be of one build.",
        ) from error
    return timm  # type: ignore[no-any-return]
