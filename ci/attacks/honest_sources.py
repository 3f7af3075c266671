"""Saves honest sources, one of each kind, which attacks on sources begin with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

#: The factory of the model that checkpoints are for, in the tests' folder.
BUILDER: Final = "models.source_tiny:build"


@dataclass(frozen=True)
class Crafted:
    """A crafted source and its options.

    Attributes:
        what: What is wrong with it, in a line.
        source: What is passed as the source.
        options: What is passed beside it: ``builder``, ``checkpoint``, ``code_path``.
        recipe: What ``--reduce`` is given.
        inputs: What ``--inputs`` is given, for an input x of shape (2, 4).
        own: Whether code of the user's own runs, which may do what it likes.
    """

    what: str
    source: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    inputs: Path | None = None
    own: bool = False


@dataclass(frozen=True)
class Honest:
    """Honest sources in a folder.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @property
    def state(self) -> Path:
        """A state dict, in the zip layout of torch."""
        return self.folder / "state.pt"

    @property
    def plain(self) -> Path:
        """The same in the layout before."""
        return self.folder / "plain.pt"

    @property
    def tensors(self) -> Path:
        """The same in safetensors."""
        return self.folder / "state.safetensors"

    @property
    def module(self) -> Path:
        """A pickled module."""
        return self.folder / "module.pt"

    @property
    def program(self) -> Path:
        """An exported program with a dynamic batch."""
        return self.folder / "program.pt2"

    @property
    def transformers(self) -> Path:
        """A transformers folder."""
        return self.folder / "vit"

    @property
    def inputs(self) -> Path:
        """Samples for an input x of four numbers."""
        return self.folder / "x.npz"

    def save(self) -> None:
        """Saves those that are not there."""
        if self.inputs.exists():
            return
        import torch
        from helpers.torchvision_ops import define_torchvision_operators
        from models.source_tiny import Tiny
        from safetensors.torch import save_file

        define_torchvision_operators()
        from transformers import ViTConfig, ViTForImageClassification

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        torch.manual_seed(0)
        model = Tiny()
        state = model.state_dict()
        torch.save({"model": state, "epoch": 3, "lr": 0.1}, self.state)
        torch.save(state, self.plain, _use_new_zipfile_serialization=False)
        save_file({name: value.clone() for name, value in state.items()}, self.tensors)
        torch.save(model, self.module)
        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(model, (torch.ones(2, 4),), dynamic_shapes=({0: batch},))
        torch.export.save(exported, self.program)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = ViTConfig(num_labels=4, intermediate_size=16, image_size=16, patch_size=8, **sizes)
        ViTForImageClassification(config).save_pretrained(self.transformers)
        np.savez(self.inputs, x=np.ones((4, 4), np.float32))

    def each(self) -> Iterator[Crafted]:
        """Yields every honest source as it is handed over."""
        for path in (self.state, self.plain, self.tensors):
            yield Crafted("a checkpoint", str(path), {"builder": BUILDER})
        yield Crafted("a program", str(self.program))
        yield Crafted("a folder", str(self.transformers))
        yield Crafted("a name", "timm:test_vit")
        yield Crafted("a recipe", recipe="tome:r=8")
        yield Crafted("inputs", inputs=self.inputs)


#: Makes what a case hands over: takes its numbers, an empty folder and the honest sources.
Craft = Callable[[Random, Path, Honest], Crafted]
