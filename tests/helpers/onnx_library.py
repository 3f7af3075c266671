"""Lets torch's exporter read its library of ONNX functions once for all models of a process.

Each export parses the sources of some five hundred functions anew, which takes longer than all else
that the compile of a small model does.
"""

from __future__ import annotations

import functools

import pytest


def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every export its own registry of the same functions."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib)

    def copied(opset_version: int) -> ONNXRegistry:
        library = read(opset_version)
        registry = ONNXRegistry()
        registry._opset_version = library._opset_version
        registry.functions = {name: [*found] for name, found in library.functions.items()}
        return registry

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
