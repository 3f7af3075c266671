"""Defines the options of a source, and what it is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import nn

    from tokexport.runtimes.pictures.preprocessing import Preprocessing


@dataclass(frozen=True)
class SourceOptions:
    """The options that name the user's model.

    Attributes:
        source: A file, a folder, ``package.module:factory`` or ``timm:NAME``.
        code_path: Folders searched for Python modules before the installed packages.
        checkpoint: A file of weights for a model that a factory or timm builds.
        builder: ``package.module:factory`` that builds the model of a checkpoint file.
        trust_pickle: Whether code inside the source may run.
    """

    source: str
    code_path: tuple[Path, ...] = ()
    checkpoint: Path | None = None
    builder: str | None = None
    trust_pickle: bool = False


class BundledSource(TypedDict):
    """Where the model of a bundle came from.

    Attributes:
        kind: One of ``saved-module``, ``exported-program``, ``factory``, ``checkpoint``, ``timm``,
            ``transformers``, and ``module`` for one that was in memory already.
        location: The file or folder, or the name the model was asked for by.
        sha256: The hash of what the model was read from, in hexadecimal.
    """

    kind: str
    location: str
    sha256: str


class ReportedSource(TypedDict):
    """Where a model came from.

    Attributes:
        kind: One of ``saved-module``, ``exported-program``, ``factory``, ``checkpoint``, ``timm``,
            ``transformers``, and ``module`` for one that was in memory already.
        location: The file or folder, or the name the model was asked for by.
        sha256: The hash of what the model was read from, in hexadecimal.
        notes: What the user should know about this reading, one sentence each.
    """

    kind: str
    location: str
    sha256: str
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Source:
    """A model as the user gave it, and what came with it.

    Attributes:
        model: The module, in the mode (training or evaluation) it was given in.
        example_args: Positional example inputs; None when none came with the source.
        example_kwargs: Example inputs by name; empty when there are none.
        kind: One of ``saved-module``, ``exported-program``, ``factory``, ``checkpoint``, ``timm``,
            ``transformers``, and ``module`` for one that was in memory already.
        location: The file or folder, or the name the model was asked for by.
        sha256: The hash of what the model was read from, in hexadecimal.
        preprocessing: How an image becomes the input, where the source says so.
        input_shapes: Each input's shape with batch 1, for sources that know the shapes and hold no
            data; in the order of the parameters of ``forward``.
        notes: What the user should know about this reading, one sentence each.
    """

    model: nn.Module
    example_args: tuple[Any, ...] | None
    example_kwargs: dict[str, Any]
    kind: str
    location: str
    sha256: str
    preprocessing: Preprocessing | None = None
    input_shapes: dict[str, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = field(default=())


def default_name(source: str, ending: str) -> str:
    """Returns the default name of an output: ``model.pt`` for ort becomes ``model-ort``."""
    stem = Path(source.rpartition(":")[2]).stem or "model"
    return f"{stem}-{ending}"
