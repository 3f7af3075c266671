"""OpenVINO divides integers exactly, up to the ends of int32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers.onnx_graphs import answers, operators, parsed
from hypothesis import given, settings
from hypothesis import strategies as st

from tokexport.graph_passes.onnx_passes.targets.correct_integer_division import (
    CorrectIntegerDivision,
)
from tokexport.runtimes.openvino.runner import OpenVinoRunner, convert

FORMS = {
    "Div": "y = Div (x, d)",
    "Mod": "y = Mod (x, d)",
    "Mod, of C": "y = Mod <fmod = 1> (x, d)",
}
TOPS = (0, 1, -1, 7, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, 2**30 + 5, 2**31 - 8, 2**31 - 1)
BOTTOMS = (1, 2, 3, 7, 255, 2**20, 2**24 + 1, 2**30 + 3, 2**31 - 1)
PAIRS = np.array([(s * a, t * b) for a in TOPS for b in BOTTOMS for s in (1, -1) for t in (1, -1)])


def wanted(form: str, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Returns what ONNX says: quotients towards zero, remainders of the divisor's sign, or C's."""
    floor = np.floor_divide(top, bottom)
    if form == "Mod":
        return top - floor * bottom
    towards_zero = floor + ((top - floor * bottom != 0) & ((top < 0) != (bottom < 0)))
    return towards_zero if form == "Div" else top - towards_zero * bottom


def model_of(form: str, dtype: str, count: int) -> ir.Model:
    return parsed(f"{dtype}[{count}] x, {dtype}[{count}] d", f"{dtype}[{count}] y", FORMS[form])


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OpenVinoRunner]:
    made = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp("division")
        model = model_of(form, "int64", len(PAIRS))
        assert CorrectIntegerDivision()(model).modified
        ir.save(model, folder / "model.onnx")
        convert(folder / "model.onnx", folder / "model.xml")
        made[form] = OpenVinoRunner.from_file(folder / "model.xml")
    return made


@pytest.mark.parametrize("form", FORMS)
def test_quotients_and_rests_are_exact_in_openvino(
    form: str, runners: dict[str, OpenVinoRunner]
) -> None:
    top, bottom = PAIRS.T.astype(np.int64)
    found = runners[form].run({"x": top.copy(), "d": bottom.copy()})["y"]
    np.testing.assert_array_equal(found, wanted(form, top, bottom))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_drawn_pairs_are_exact_in_openvino(seed: int, runners: dict[str, OpenVinoRunner]) -> None:
    random = np.random.default_rng(seed)
    size = 2.0 ** random.uniform(0, 31, (2, len(PAIRS)))
    top, bottom = (size * random.choice([-1, 1], size.shape)).astype(np.int64)
    bottom[bottom == 0] = 1
    for form, runner in runners.items():
        found = runner.run({"x": top, "d": bottom})["y"]
        np.testing.assert_array_equal(found, wanted(form, top, bottom))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_the_meaning_stays(form: str, dtype: str) -> None:
    model = model_of(form, dtype, len(PAIRS))
    top, bottom = PAIRS.T.astype(dtype)
    before = answers(model, {"x": top.copy(), "d": bottom.copy()})
    assert CorrectIntegerDivision()(model).modified
    (found,) = answers(model, {"x": top.copy(), "d": bottom.copy()})
    np.testing.assert_array_equal(found, before[0])
    assert operators(model)["Mod"] == 0


def test_quotients_of_floats_stay(tmp_path: Path) -> None:
    model = parsed("float[4] x, float[4] d", "float[4] y", FORMS["Div"])
    assert not CorrectIntegerDivision()(model).modified
    assert operators(model)["Div"] == 1
