"""Describes the machine and the software that a measurement was made on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokexport.runtimes.processor import usable_cores

PACKAGES = (
    "tokexport",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
)


def describe_machine(threads: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Describes the processor, the memory, the system and the versions of what ran.

    Args:
        threads: The number of threads each runtime was given, by the runtime's name.

    Returns:
        Plain values only, fit for JSON: ``processor``, ``cores`` (``logical`` ones of the machine,
        ``usable`` by this process), ``memory_bytes`` (None where the system does not say),
        ``system``, ``python``, ``packages`` (only those installed) and ``threads``.
    """
    return {
        "processor": _processor(),
        "cores": {"logical": os.cpu_count() or 1, "usable": usable_cores()},
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": installed_versions(),
        "threads": dict(threads or {}),
    }


def installed_versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed, read without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Returns the processor's model name, or the architecture where the system has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
