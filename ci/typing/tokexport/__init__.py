"""Ships token-reduced Vision Transformers, and proves what it shipped.

``tokexport.compile`` and ``tokexport.reduce`` need torch and onnx, and find them when first named;
``tokexport.runtimes`` needs numpy and the runtime of the bundle, nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokexport.exporter.compile import CompileResult, compile
    from tokexport.exporter.reduction.reduce import reduce

__all__ = ["CompileResult", "compile", "reduce"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what compiles a model when it is first asked for.

    Raises:
        PackageMissingError: torch, onnx or another package that compiling needs is missing.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokexport.exporter.requirements import require_compile_packages

    require_compile_packages()
    from tokexport.exporter import compile as compiling
    from tokexport.exporter.reduction import reduce as reducing

    return getattr(reducing if name == "reduce" else compiling, name)
