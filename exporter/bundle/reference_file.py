"""Saves what a bundle is verified against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tokexport.exporter.errors import InternalError, listed


def save_reference(
    path: Path,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    tie_free: np.ndarray | None = None,
    of_gates: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Saves the reference that a bundle is verified against.

    Args:
        path: The ``.npz`` file.
        inputs: Each input's values, (batches, N, …), saved as ``inputs/NAME``.
        outputs: The reference's outputs on them, (batches, N, …), saved as ``outputs/NAME``.
        tie_free: Which samples (batches, N) are compared, saved as ``steady``; all without it.
        of_gates: What the gates need beside it, saved under the names they have.

    Raises:
        InternalError: An array holds python objects, or the numbers of batches differ.
    """
    arrays = {f"inputs/{name}": array for name, array in inputs.items()}
    arrays |= {f"outputs/{name}": array for name, array in outputs.items()}
    if tie_free is not None and not tie_free.all():
        arrays["steady"] = tie_free
    odd = [name for name, array in arrays.items() if array.dtype.hasobject or array.ndim == 0]
    if odd or len({len(array) for array in arrays.values()}) > 1:
        raise InternalError(
            "The reference is not one value per batch for every input and output.",
            where=listed([f"{n}: {a.dtype} {a.shape}" for n, a in arrays.items()]),
        )
    arrays |= of_gates or {}
    np.savez(path, **arrays)  # type: ignore[arg-type]
