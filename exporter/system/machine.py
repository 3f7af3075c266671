"""Describes the machine and the software that a measurement was made on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

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


class Cores(TypedDict):
    """The cores of a machine.

    Attributes:
        logical: How many the machine has.
        usable: How many of them this process may use.
    """

    logical: int
    usable: int


class Machine(TypedDict):
    """A machine, and the software on it.

    Attributes:
        processor: The processor's model name, or the architecture where the system has no name.
        cores: Its cores.
        memory_bytes: Its memory; None where the system does not say.
        system: The operating system and its version.
        python: The version of Python.
        packages: The versions of the packages that matter here, those that are installed, by name.
        threads: The number of threads each runtime was given, by the runtime's name.
    """

    processor: str
    cores: Cores
    memory_bytes: int | None
    system: str
    python: str
    packages: dict[str, str]
    threads: dict[str, int]


def describe_machine(threads: Mapping[str, int] | None = None) -> Machine:
    """Describes the processor, the memory, the system and the versions of what ran.

    Args:
        threads: The number of threads each runtime was given, by the runtime's name.

    Returns:
        Plain values only, fit for JSON.
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
