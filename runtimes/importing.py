"""Imports a runtime's Python package on first use; the error says how to install it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from tokexport.runtimes.errors import RuntimeMissingError

#: The variable that keeps ONNX Runtime from recording and sending usage statistics.
_NO_STATISTICS: Final = "ORT_DISABLE_TELEMETRY"


def install_command(extra: str) -> str:
    """The command that installs one of this package's extras."""
    return f"pip install 'tokexport[{extra}]'"


def import_runtime(module: str, *, extra: str) -> ModuleType:
    """Imports a runtime's package, without the usage statistics that its import would start.

    Args:
        module: The package's import name.
        extra: The extra of tokexport that installs it.

    Raises:
        RuntimeMissingError: It is not installed, or its own import fails.
    """
    try:
        with _no_statistics():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        said = "" if missing == module else f" (it needs {missing})"
        raise RuntimeMissingError(
            f"The package '{module}' is not installed{said}.",
            fix=f"Install it: {install_command(extra)}",
        ) from error
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(
            f"The package '{module}' is installed, but does not import.",
            where=str(error),
            fix=f"Install it anew: {install_command(extra)} --force-reinstall",
        ) from error


@contextmanager
def _no_statistics() -> Iterator[None]:
    """Sets the variable for a block, unless the user has set it."""
    if _NO_STATISTICS in os.environ:
        yield
        return
    os.environ[_NO_STATISTICS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_NO_STATISTICS, None)


def is_installed(module: str) -> bool:
    """Returns whether a top-level package is installed, without importing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
