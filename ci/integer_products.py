"""Multiplies in 8-bit integers with ONNX Runtime, and prints how far that is from exact integers.

    python ci/integer_products.py FOLDER    product.onnx and product.npz of ci/arm_checks.py

Needs numpy and onnxruntime alone. The distances are root mean squares, as shares of that of the
product: from the one with one range for the whole input, which DynamicQuantizeLinear states, from
that with a range for each of its rows, and from the product in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def quantised(x: np.ndarray, axis: int | None) -> np.ndarray:
    """Returns x (M, K) on 256 steps of its range, over all of it or along an axis, in float64."""
    low = np.minimum(x.min(axis=axis, keepdims=True), 0)
    high = np.maximum(x.max(axis=axis, keepdims=True), 0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    found: np.ndarray = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    return found


def root_mean_square(array: np.ndarray) -> float:
    """Returns the root of the mean of an array's squares."""
    return float(np.sqrt(np.square(array).mean()))


def main() -> None:
    """Runs the product, and prints the distances as a line of JSON."""
    folder = Path(sys.argv[1])
    with np.load(folder / "product.npz") as arrays:
        x, weights = arrays["x"], arrays["integers"] * arrays["scales"].astype(np.float64)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "product.onnx", options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": x})
    exact = x.astype(np.float64)
    whole = quantised(exact, None) @ weights
    wanted = {
        "whole": whole,
        "rows": quantised(exact, -1) @ weights,
        "float32": exact @ weights,
    }
    off = {name: root_mean_square(found - y) for name, y in wanted.items()}
    print(json.dumps({name: one / root_mean_square(whole) for name, one in off.items()}))


if __name__ == "__main__":
    main()
