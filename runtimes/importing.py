"""Imports a runtime's Python package on first use, or says how to install it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from tokexport.runtimes.errors import RuntimeMissingError


def install_command(extra: str) -> str:
    """The command that installs one of this package's extras."""
    return f"pip install 'tokexport[{extra}]'"


def import_runtime(module: str, *, extra: str) -> ModuleType:
    """Imports a runtime's package.

    Args:
        module: The package's import name.
        extra: The extra of tokexport that installs it.

    Raises:
        RuntimeMissingError: It is not installed, or its own import fails.
    """
    try:
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


def is_installed(module: str) -> bool:
    """Whether a top-level package is there to be imported; nothing is imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
