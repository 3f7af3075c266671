"""Run by Python at its start: prepares torchvision and the timing, and imports nothing itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class BeforeTorchvision:
    """A finder that finds nothing, and defines torchvision's operators when it is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns None: the usual finders go on."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            from helpers.torchvision_ops import define_torchvision_operators

            define_torchvision_operators()
        return None


class ShortTiming:
    """A finder that lets every compile time as few pairs as it can: no test reads a time."""

    short = {
        "tokexport.exporter.speed.against_eager": {"SPEED_SECONDS": 0.01, "TRIAL_SECONDS": 0.01},
        "tokexport.exporter.speed.interleaved": {"SETTLE_S": 0.0},
    }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns what the other finders find, with other numbers once it has run."""
        if name not in self.short:
            return None
        others = (each for each in sys.meta_path if each is not self)
        spec = next(filter(None, (each.find_spec(name, path, target) for each in others)))
        loader: Any = spec.loader
        execute = loader.exec_module

        def shortened(module: ModuleType) -> None:
            execute(module)
            vars(module).update(self.short[name])

        loader.exec_module = shortened
        return spec


sys.meta_path[:0] = [BeforeTorchvision(), ShortTiming()]
