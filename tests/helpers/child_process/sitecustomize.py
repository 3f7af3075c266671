"""Run by Python at its start: prepares torchvision, and imports nothing itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


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


sys.meta_path.insert(0, BeforeTorchvision())
