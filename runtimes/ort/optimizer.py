"""Optimises an ONNX file with the transformer optimizer that comes inside onnxruntime's wheel."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tokexport.runtimes.errors import BuildError
from tokexport.runtimes.importing import import_runtime


def optimise_vit(onnx_path: Path, output: Path, *, heads: int = 0, hidden: int = 0) -> None:
    """Runs ``onnxruntime.transformers.optimizer`` with model type ``vit`` and writes the result.

    Args:
        onnx_path: The model; its external data lies beside it.
        output: The file to write.
        heads: Attention heads; 0 lets the optimizer look for them.
        hidden: Channels of a token; 0 lets the optimizer look for them.

    Raises:
        RuntimeMissingError: onnxruntime, or a package that its optimizer imports, is not installed.
        BuildError: The optimizer fails on the model.
    """
    why = ""
    said_aside = io.StringIO()  # it prints and logs each fusion that it does not find
    with warnings.catch_warnings(), redirect_stdout(said_aside), redirect_stderr(said_aside):
        warnings.simplefilter("ignore")  # onnxruntime's own, in its tools
        optimizer = import_runtime("onnxruntime.transformers.optimizer", extra="ort")
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            optimised: Any = optimizer.optimize_model(
                str(onnx_path), model_type="vit", num_heads=heads, hidden_size=hidden
            )
            optimised.save_model_to_file(str(output), use_external_data_format=False)
        except Exception as error:  # its modules raise errors of many classes
            # Raised below: this error refers to a temporary folder, which would warn when it is
            # freed.
            why = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        finally:
            logging.disable(disabled)
    if why:
        raise BuildError(f"The optimizer failed: {why}", where=str(onnx_path))
