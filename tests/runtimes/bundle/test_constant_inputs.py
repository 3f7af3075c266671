"""A runner takes a fixed input at its value alone, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info

from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError, InputMismatchError
from tokexport.runtimes.loading import load
from tokexport.runtimes.ort.runner import OrtRunner

GRID = np.array([[1, 4, 4]])
SHIFT = np.array([0.0, 0.1, -np.inf], np.float32)
FLAG = np.array(True)
CONSTANTS = tuple(
    ConstantInput.of(name, value)
    for name, value in {"grid": GRID, "shift": SHIFT, "flag": FLAG}.items()
)
X = {"x": np.ones((2, 3), np.float32)}


@pytest.fixture
def runner(save_model: Callable[..., Path]) -> OrtRunner:
    """X (2, 3) → 2 x, of a model that had a grid, a shift and a flag."""
    ends = [make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    runner = OrtRunner.from_file(
        save_model([make_node("Add", ["x", "x"], ["y"])], *map(list, zip(ends)))
    )
    runner.constants = CONSTANTS
    return runner


@pytest.mark.parametrize(
    "given", [{}, {"grid": GRID}, {"flag": FLAG, "shift": SHIFT, "grid": GRID.astype(">i8")}]
)
def test_it_may_be_left_out_or_given(runner: OrtRunner, given: dict[str, Any]) -> None:
    for run in (lambda: runner.run(given | X), runner.bound({**X, **given})):
        np.testing.assert_array_equal(run()["y"], 2 * X["x"])


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            {"grid": np.array([[1, 4, 6]])},
            ("grid is [[1, 4, 6]]", "for [[1, 4, 4]] only", "1 of 3"),
        ),
        ({"flag": np.array(False)}, ("flag is False", "for True only", "--constant flag=VALUE")),
        ({"shift": np.float32([0, 0.1, np.inf])}, ("[0.0, 0.1, inf]", "[0.0, 0.1, -inf] only")),
        ({"shift": np.float32([-0.0, 0.1, -np.inf])}, ("shift is [-0.0", "1 of 3")),
        ({"shift": np.float32([0, np.nan, 0])}, ("holds NaN",)),
        ({"grid": GRID.astype(np.int32)}, ("grid has dtype int32, and the model takes int64",)),
        ({"grid": GRID[0]}, ("grid has shape (3,)", "array[None]")),
        ({"grid": GRID.tolist()}, ("grid is a list",)),
        ({"grids": GRID}, ("unknown grids", "x float32 (2, 3)", "grid = [[1, 4, 4]]")),
    ],
)
def test_another_value_is_refused(
    runner: OrtRunner, given: dict[str, Any], parts: tuple[str, ...]
) -> None:
    for run in (runner.run, runner.bound):
        with pytest.raises(InputMismatchError) as caught:
            run(X | given)
        for part in parts:
            assert part in str(caught.value)


def test_of_a_large_value_the_first_place_is_told(runner: OrtRunner) -> None:
    mask = np.zeros((4, 50), bool)
    runner.constants = (ConstantInput.of("mask", mask),)
    other = mask.copy()
    other[2, 7:9] = True
    with pytest.raises(InputMismatchError, match=r"mask holds True at \(2, 7\), .* False there"):
        runner.run(X | {"mask": other})


def test_threads_are_refused_each_by_itself(runner: OrtRunner) -> None:
    found: dict[int, str] = {}

    def run(number: int) -> None:
        try:
            runner.run(X | {"grid": GRID + number % 2})
            found[number] = ""
        except InputMismatchError as error:
            found[number] = error.what

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [bool(found[number]) for number in range(8)] == [False, True] * 4


@pytest.mark.parametrize("value", [GRID, SHIFT, FLAG, np.float16(0.1), np.uint8([[7]])])
def test_a_value_is_the_same_out_of_json(value: Any) -> None:
    one = ConstantInput.of("one", np.asarray(value))
    written = {"name": one.name, "shape": one.shape, "dtype": one.dtype, "values": one.values}
    read = ConstantInput.from_json(json.loads(json.dumps(written, allow_nan=False)))
    assert read.array.dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(read.array, value)


ITEM = {"name": "grid", "shape": [1, 3], "dtype": "int64", "values": [[1, 4, 4]]}


def written(bundle: Path, **changes: Any) -> Path:
    data = json.loads((bundle / MANIFEST_NAME).read_text())
    (bundle / MANIFEST_NAME).write_text(json.dumps(data | changes))
    return bundle


def test_a_bundle_holds_it_and_one_of_before_has_none(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    assert read_manifest(bundle).constant_inputs == ()
    written(bundle, constant_inputs=[ITEM])
    (found,) = read_manifest(bundle).constant_inputs
    assert str(found) == "grid = [[1, 4, 4]]"
    with load(bundle) as runner:
        given = {"x": np.ones((2, 8), np.float32)}
        assert runner.run(given | {"grid": GRID}).keys() == runner.run(given).keys()
        with pytest.raises(InputMismatchError, match="grid is"):
            runner.run(given | {"grid": GRID + 1})


@pytest.mark.parametrize(
    "change",
    [
        {"values": [[1, 4]]},
        {"values": [[1, 4], [4]]},
        {"values": [[1, 4, "x"]]},
        {"values": [[1, 4, 2**70]]},
        {"values": None},
        {"values": json.loads("[" * 400 + "1" + "]" * 400)},
        {"dtype": "complex64"},
        {"shape": [3]},
    ],
)
def test_values_that_do_not_fit_are_no_manifest(
    make_bundle: Callable[..., Path], change: dict[str, Any]
) -> None:
    bundle = written(make_bundle(), constant_inputs=[ITEM | change])
    said = r"constant_inputs(\[0\].dtype)? should be|nests deeper than 64 levels"
    with pytest.raises(BundleError, match=said):
        read_manifest(bundle)
