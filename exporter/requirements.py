"""Refuses a command early if a package that it needs is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from tokexport.exporter.errors import PackageMissingError

#: The packages that compile a model; a device that runs bundles needs none of them.
COMPILE_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")

#: The packages that write a page of HTML.
PAGE_PACKAGES = ("jinja2", "matplotlib")


def require_compile_packages() -> None:
    """Raises PackageMissingError, with the install command, if one is not installed."""
    missing = [name for name in COMPILE_PACKAGES if find_spec(name) is None]
    if missing:
        raise PackageMissingError(
            f"Compiling a model needs {', '.join(missing)}, which this Python does not have.",
            fix="pip install 'tokexport[compile]'",
        )


def require_matplotlib() -> None:
    """Raises PackageMissingError, with the install command, if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PackageMissingError(
            f"Drawing the plot needs {error.name or 'matplotlib'}, which is not installed.",
            fix="pip install 'tokexport[plot]', or pass --no-plot.",
        ) from error


def require_jinja2() -> None:
    """Raises PackageMissingError, with the install command, if jinja2 is not installed."""
    _require_for_page("jinja2")


def require_page_packages() -> None:
    """Raises PackageMissingError, with the install command, if a page cannot be written here."""
    for name in PAGE_PACKAGES:
        _require_for_page(name)


def _require_for_page(name: str) -> None:
    if find_spec(name) is None:
        raise PackageMissingError(
            f"Writing an HTML page needs {name}, which is not installed.",
            fix="pip install 'tokexport[report]'",
        )
