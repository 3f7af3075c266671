from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info

from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import InputMismatchError, RunError
from tokexport.runtimes.ort.runner import OrtRunner


@pytest.fixture
def runner(save_model: Callable[..., Path]) -> Iterator[Runner]:
    """Image (1, 2, 3) float32, index (1,) int64, gain () float32 → y = gather(image) * gain."""
    path = save_model(
        [
            make_node("Gather", ["image", "index"], ["row"], axis=1),
            make_node("Mul", ["row", "gain"], ["y"]),
        ],
        [
            make_tensor_value_info("image", TensorProto.FLOAT, [1, 2, 3]),
            make_tensor_value_info("index", TensorProto.INT64, [1]),
            make_tensor_value_info("gain", TensorProto.FLOAT, []),
        ],
        [make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3])],
    )
    with OrtRunner.from_file(path, threads=1) as runner:
        yield runner


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {
        "gain": np.array(2.0, np.float32),
        "index": np.array([1]),
        "image": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    }


def test_inputs_and_outputs_are_known_before_the_first_run(runner: Runner) -> None:
    assert [str(spec) for spec in runner.inputs] == [
        "image float32 (1, 2, 3)",
        "index int64 (1,)",
        "gain float32 ()",
    ]
    assert [str(spec) for spec in runner.outputs] == ["y float32 (1, 1, 3)"]


def test_a_run_takes_arrays_by_name_in_any_order(
    runner: Runner, arrays: dict[str, np.ndarray]
) -> None:
    np.testing.assert_array_equal(runner.run(arrays)["y"], [[[6.0, 8.0, 10.0]]])


def test_strided_and_read_only_arrays_are_taken(
    runner: Runner, arrays: dict[str, np.ndarray]
) -> None:
    wide = np.zeros((1, 2, 6), np.float32)
    wide[..., ::2] = arrays["image"]
    wide.flags.writeable = False
    result = runner.run(arrays | {"image": wide[..., ::2]})
    np.testing.assert_array_equal(result["y"], [[[6.0, 8.0, 10.0]]])


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"gain": None}, "missing gain", "Pass exactly these: image float32"),
        ({"extra": np.zeros(1)}, "unknown extra", "Pass exactly these: image float32"),
        ({"image": np.zeros((1, 2, 3))}, "dtype float64, and the model takes float32", "astype"),
        ({"index": np.array([1], np.int32)}, "dtype int32, and the model takes int64", "astype"),
        ({"image": np.zeros((2, 2, 3), np.float32)}, r"shape \(2, 2, 3\), and", "fixed when"),
        ({"image": np.zeros((2, 3), np.float32)}, r"shape \(2, 3\), and the model", "array\\[None"),
        ({"gain": np.ones(1, np.float32)}, r"shape \(1,\), and the model takes \(\)", "fixed when"),
        ({"image": np.full((1, 2, 3), np.nan, np.float32)}, r"NaN, first at \(0, 0, 0\)", "Check"),
        ({"gain": np.array(np.nan, np.float32)}, r"gain holds NaN, first at \(\)", "Check"),
        ({"image": [[[1.0] * 3] * 2]}, "image is a list, not a numpy array", "numpy"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    runner: Runner,
    arrays: dict[str, np.ndarray],
    change: dict[str, np.ndarray | None],
    what: str,
    fix: str,
) -> None:
    given = {name: array for name, array in (arrays | change).items() if array is not None}
    with pytest.raises(InputMismatchError, match=what) as caught:
        runner.run(given)
    assert re.search(fix, caught.value.fix)


def test_the_place_of_a_nan_is_named(runner: Runner, arrays: dict[str, np.ndarray]) -> None:
    arrays["image"][0, 1, 2] = np.nan
    with pytest.raises(InputMismatchError, match=r"first at \(0, 1, 2\)"):
        runner.run(arrays)


def test_infinities_are_taken(runner: Runner, arrays: dict[str, np.ndarray]) -> None:
    arrays["image"][0, 1, 0] = -np.inf
    assert runner.run(arrays)["y"][0, 0, 0] == -np.inf


def test_a_failure_inside_the_runtime_names_the_node(
    runner: Runner, arrays: dict[str, np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="indices element out of data bounds"):
        runner.run(arrays | {"index": np.array([7])})
    assert capfd.readouterr().err == ""


def test_a_closed_runner_refuses_to_run_and_closes_again_quietly(
    runner: Runner, arrays: dict[str, np.ndarray]
) -> None:
    with runner:
        runner.run(arrays)
    runner.close()
    with pytest.raises(RunError, match="runner is closed"):
        runner.run(arrays)
    with pytest.raises(RunError, match="runner is closed"), runner:
        pass


def test_what_is_bound_is_checked_once_and_runs_again_and_again(
    runner: Runner, arrays: dict[str, np.ndarray]
) -> None:
    run = runner.bound(arrays)
    np.testing.assert_array_equal(run()["y"], [[[6.0, 8.0, 10.0]]])
    arrays["image"] += 1
    np.testing.assert_array_equal(run()["y"], runner.run(arrays)["y"])
    with pytest.raises(InputMismatchError, match="missing gain"):
        runner.bound({name: array for name, array in arrays.items() if name != "gain"})
    runner.close()
    with pytest.raises(RunError, match="closed"):
        run()
