"""Imports Pillow on first use; the error says how to install it."""

from __future__ import annotations

from types import ModuleType

from tokexport.runtimes.importing import import_runtime


def pillow_image() -> ModuleType:
    """Imports and returns the module ``PIL.Image``.

    Raises:
        RuntimeMissingError: Pillow is not installed, or its own import fails.
    """
    import_runtime("PIL", extra="pictures")
    return import_runtime("PIL.Image", extra="pictures")
