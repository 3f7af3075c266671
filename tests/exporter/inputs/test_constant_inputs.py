"""Inputs that a person fixes are constants: read in the trace, and checked at each run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import TESTS, compile_model, refusal
from helpers.cli import tokexport as command
from helpers.thorough import thorough_but
from models import grid_towers as towers
from models import packed_towers
from torch import Tensor, nn

import tokexport
from tokexport.exporter.bench.entrants import named_arrays_of
from tokexport.exporter.bench.plain_export import export_plainly
from tokexport.exporter.bench.subject import Subject
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.outputs import flatten
from tokexport.exporter.errors import DataDependentError, InputError, UsageError
from tokexport.exporter.inputs.constant_inputs import (
    as_given,
    by_name,
    described,
    fitting,
    parse_constants,
)
from tokexport.exporter.inspection.inspect import inspect
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import InputMismatchError
from tokexport.runtimes.loading import load
from tokexport.runtimes.ort.runner import OrtRunner
from tokexport.runtimes.verification import verify_bundle

META = ("inputs_meta_count", "inputs_meta_stride", "inputs_meta_keep")
FLAGS = ("use_cls", "task", "scale")
CASES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "grid": (towers.grid_tower, ("grid_thw",)),
    "three grids": (towers.three_grids, ("grid_thw",)),
    "shapes": (partial(towers.naflex, 1), ("spatial_shapes",)),
    "three shapes": (towers.naflex, ("spatial_shapes",)),
    "shapes and mask": (towers.naflex, ("spatial_shapes", "mask")),
    "switches": (towers.switches, FLAGS),
    "switches, batch 3": (partial(towers.switches, 3), FLAGS),
    "frames": (towers.frames, META),
    "frames, batch 3": (partial(towers.frames, 3), META),
    "qwen2.5-vl": (packed_towers.qwen2_5_vl, ("grid_thw",)),
    "qwen3-vl": (packed_towers.qwen3_vl, ("grid_thw",)),
    "siglip2": (packed_towers.siglip2, ("spatial_shapes",)),
}
EVERY_RUN = [case for case in CASES if case not in ("qwen3-vl", "siglip2")]


@pytest.mark.parametrize("case", thorough_but(EVERY_RUN, CASES))
def test_the_trace_reads_them_and_answers_as_eager(case: str) -> None:
    factory, names = CASES[case]
    model, example = factory()
    flat, specs, batches = prepare(
        source_in_memory(model, copy.deepcopy(example)), InputConfig(constants=names)
    )
    assert not {spec.name for spec in specs} & {*names}
    traced = capture(flat, flat.spec.examples).module()
    for seed in range(2):
        given = [
            torch.randn(one.shape, generator=torch.Generator().manual_seed(seed))
            if one.is_floating_point()
            else one
            for one in flat.spec.examples
        ]
        args, kwargs = flat.spec.arguments(given, copy.deepcopy(dict(flat.spec.constants)))
        wanted = model(*args, **kwargs)
        for one, other in zip(flatten(wanted)[0].values(), traced(*given), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    assert all(f"{name} = " in batches.origin for name in names)


@pytest.fixture(scope="module", params=["ort", "openvino", "trt"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shapes in a batch, fixed with their mask by names."""
    model, example = towers.naflex()
    folder = tmp_path_factory.mktemp("constant") / request.param
    names = ["spatial_shapes", "mask"]
    tokexport.compile(model, example, request.param, output=folder, constants=names, timed=False)
    return folder


def test_a_bundle_says_which_inputs_are_fixed(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert [spec.name for spec in manifest.inputs] == ["pixel_values"]
    assert [one.name for one in manifest.constant_inputs] == ["mask", "spatial_shapes"]
    assert manifest.constant_inputs[1].values == [[3, 4], [4, 2], [2, 5]]
    assert manifest.constant_inputs[1].dtype == "int64"
    report = json.loads((bundle / "report.json").read_text())
    assert report["constant_inputs"][1]["values"] == [[3, 4], [4, 2], [2, 5]]
    assert "spatial_shapes = [[3, 4], [4, 2], [2, 5]]" in report["inputs"].partition("; fixed: ")[2]
    assert "another seed" in report["edges"]["held"]
    assert not report["edges"]["ranges"]


def test_a_runner_takes_that_value_only(bundle: Path) -> None:
    if read_manifest(bundle).target == "trt":  # built, and there is no GPU to run it
        return
    assert verify_bundle(bundle).passed
    model, example = towers.naflex()
    given = {name: one.numpy() for name, one in example.items()}
    wanted = model(**example).detach().numpy()
    with load(bundle) as runner:
        assert [one.name for one in runner.constants] == ["mask", "spatial_shapes"]
        np.testing.assert_allclose(runner.run(given)["output"], wanted, atol=1e-5)
        alone = {"pixel_values": given["pixel_values"]}
        np.testing.assert_allclose(runner.run(alone)["output"], wanted, atol=1e-5)
        other = np.array([[3, 4], [4, 2], [2, 6]])
        with pytest.raises(
            InputMismatchError, match=r"spatial_shapes is .*\[2, 6\]\], and the art"
        ):
            runner.run(given | {"spatial_shapes": other})


def test_the_command_takes_values_and_samples_of_them(tmp_path: Path) -> None:
    patches = np.random.default_rng(0).standard_normal((48, 12), dtype=np.float32)
    np.savez(tmp_path / "x.npz", pixel_values=patches, grid_thw=np.array([[1, 4, 6]]))
    done = compile_model(
        "models.grid_towers:grid_tower",
        tmp_path / "out",
        *("--code-path", TESTS, "--constant", "grid_thw=[[1, 4, 6]]"),
        *("--inputs", tmp_path / "x.npz", "--json"),
    )
    assert done.code == 0, done
    assert done.json["constant_inputs"] == [
        {"name": "grid_thw", "shape": [1, 3], "dtype": "int64", "values": [[1, 4, 6]]}
    ]
    ran = ("run", tmp_path / "out", "--inputs", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert command(*ran).code == 0
    wanted = towers.grid_tower()[0](torch.from_numpy(patches[24:]), torch.tensor([[1, 4, 6]]))
    with np.load(tmp_path / "y.npz") as file:
        np.testing.assert_allclose(file["output"][1], wanted.detach().numpy(), atol=1e-5)
    np.savez(tmp_path / "x.npz", pixel_values=patches, grid_thw=np.array([[1, 6, 4]]))
    refused = command(*ran, "--force")
    assert refused.code == 2
    assert "Constant input 'grid_thw' is [[1, 6, 4]] in the file, and is fixed at [[1, 4, 6]]" in (
        refused.said
    )


def test_a_saved_folder_takes_samples_and_a_grid(tmp_path: Path) -> None:
    model, example = packed_towers.qwen2_5_vl()
    model.save_pretrained(tmp_path / "folder")  # type: ignore[operator]
    patches, grid = example["hidden_states"], example["grid_thw"]
    samples = torch.randn(2, *patches.shape, generator=torch.Generator().manual_seed(3))
    arrays = {"hidden_states": samples.flatten(0, 1).numpy(), "grid_thw": grid.numpy()}
    np.savez(tmp_path / "x.npz", **arrays)
    done = compile_model(
        *(tmp_path / "folder", tmp_path / "out", "--inputs", tmp_path / "x.npz", "--json"),
        *("--constant", f"grid_thw={json.dumps(grid.tolist())}", "--batch", 40),
    )
    assert done.code == 0, done
    assert done.json["constant_inputs"][0]["values"] == grid.tolist()
    assert (done.json["samples"], done.json["edges"]["ranges"]) == (80, {})
    assert verify_bundle(tmp_path / "out").passed
    fresh = torch.randn(patches.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = flatten(model(fresh, grid_thw=grid))[0]
    with load(tmp_path / "out") as runner:
        found = runner.run({"hidden_states": fresh.numpy(), "grid_thw": grid.numpy()})
    assert {*found} == {*wanted}
    for name, one in wanted.items():
        np.testing.assert_allclose(found[name], one.numpy(), atol=1e-5)


def test_inspect_takes_them() -> None:
    model, example = towers.grid_tower()
    found = inspect(model, example, targets=(), constants="grid_thw")
    assert [str(one) for one in found.constant_inputs] == ["grid_thw = [[1, 4, 6]]"]
    assert found.inputs == {"pixel_values": (24, 12)}


@pytest.mark.parametrize(
    "call",
    [
        ("inspect",),
        ("bench", "--targets", "ort", "--output"),
        ("sweep", "--reduce", "tome", "--values", "1", "--target", "ort", "--output"),
    ],
    ids=lambda call: call[0],
)
def test_every_command_that_traces_takes_them(call: tuple[str, ...], tmp_path: Path) -> None:
    output = (tmp_path / "out",) if call[-1] == "--output" else ()
    options = ("--code-path", TESTS, "--constant", "grid_twh")
    answer = command(call[0], "models.grid_towers:grid_tower", *call[1:], *output, *options)
    refusal(answer, 2, tmp_path, "--constant names 'grid_twh'", "Did you mean 'grid_thw'?")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("grid_twh",), ("no input of that name", "pixel_values, grid_thw", "mean 'grid_thw'")),
        (("depth=3",), ("no input of that name", "Name one of these")),
        (("grid_thw=[[1,4",), ("grid_thw is '[[1,4', no number and no list", "as JSON")),
        (("grid_thw=",), ("is '', no number",)),
        (("grid_thw=null",), ("is 'null', no number",)),
        (("grid_thw=[1,4,6]",), ("has shape (3,), and the model takes (1, 3)",)),
        (("grid_thw=[[1,4,6],[1]]",), ("rows of different lengths",)),
        (("grid_thw=[[1,4,6.5]]",), ("is int64, which does not hold 6.5", "whole numbers")),
        (("grid_thw=[[1,4,9223372036854775808]]",), ("which does not hold 9223372036854775808",)),
        (('grid_thw=[["a","b","c"]]',), ("no array of numbers",)),
        (("grid_thw", "grid_thw=[[1,4,6]]"), ("names 'grid_thw' twice",)),
        (("=3",), ("has no name",)),
        (("grid_thw", "pixel_values"), ("Every input is a constant",)),
    ],
)
def test_what_is_no_constant(
    given: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    options = [word for one in given for word in ("--constant", one)]
    source = "models.grid_towers:grid_tower"
    answer = compile_model(source, tmp_path / "out", "--code-path", TESTS, *options)
    refusal(answer, 2, tmp_path, *parts)


class Shifted(nn.Module):
    """Reads no number of what is fixed, so that a plain export takes it as an input."""

    def forward(self, shift: Tensor, x: Tensor) -> Tensor:
        return x * 2 + shift


def test_a_plain_export_takes_them_as_any_other_input(tmp_path: Path) -> None:
    source = source_in_memory(Shifted(), (torch.ones(1, 4), torch.randn(1, 4)))
    subject = Subject(source, InputConfig(constants={"shift": [[1, 2, 3, 4]]}))
    export_plainly(subject, tmp_path / "plain.onnx")
    with OrtRunner.from_file(tmp_path / "plain.onnx") as runner:
        for batch, wanted in zip(subject.batches, subject.expected["output"], strict=True):
            found = runner.run(named_arrays_of(runner, subject, batch))
            np.testing.assert_allclose(*found.values(), wanted, atol=1e-6)


class Plain(nn.Module):
    """Takes an image and a setting that is no tensor in the example."""

    def forward(self, x: Tensor, factor: Any = 2, *, shift: Any = None) -> Tensor:
        y = x * (2 if factor > 1 else 3)
        return y if shift is None else y + int(shift)


def test_an_input_without_an_example_needs_a_value(tmp_path: Path) -> None:
    config = InputConfig(input_shape=(1, 4), constants={"factor": 3.0, "shift": 4})
    flat, specs, _ = prepare(source_in_memory(Plain(), None), config)
    assert [spec.name for spec in specs] == ["x"]
    assert {name: one.dtype for name, one in flat.spec.constants.items()} == {
        "factor": torch.float32,
        "shift": torch.int64,
    }
    traced = capture(flat, flat.spec.examples).module()
    assert torch.equal(traced(torch.ones(1, 4))[0], torch.full((1, 4), 6.0))
    with pytest.raises(UsageError, match="'shift', which is given no tensor"):
        prepare(source_in_memory(Plain(), None), InputConfig(input_shape=(1, 4), constants="shift"))
    example = (torch.ones(1, 4), 3)
    with pytest.raises(UsageError, match="is a constant already"):
        prepare(source_in_memory(Plain(), example), InputConfig(constants={"factor": 3}))


def test_a_batch_repeats_the_example_and_takes_a_value_as_it_is() -> None:
    source = source_in_memory(*towers.naflex(1))
    fixed = partial(InputConfig, batch=3)
    flat, specs, _ = prepare(source, fixed(constants=["spatial_shapes"]))
    assert flat.spec.constants["spatial_shapes"].tolist() == [[3, 4]] * 3
    assert specs[0].shape == (3, 12, 12)
    shapes = [[3, 4], [4, 2], [2, 5]]
    flat, _, _ = prepare(source, fixed(constants={"spatial_shapes": torch.tensor(shapes)}))
    assert flat.spec.constants["spatial_shapes"].tolist() == shapes
    with pytest.raises(InputError, match=r"shape \(2, 2\), and the model takes \(1, 2\) or \(3, 2"):
        prepare(source, fixed(constants={"spatial_shapes": shapes[:2]}))
    flag_first = source_in_memory(*towers.switches())
    _, specs, _ = prepare(flag_first, InputConfig(batch=2, constants=FLAGS))
    assert [spec.shape for spec in specs] == [(2, 9, 6)]


def file(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


PATCHES = np.random.default_rng(0).standard_normal((7, 12, 12), dtype=np.float32)
SHAPES = np.array([[3, 4], [4, 2], [2, 5]])
MASK = (np.arange(12) < SHAPES.prod(1, keepdims=True)).astype(np.int32)


@pytest.mark.parametrize(
    "held",
    [
        {},
        {"spatial_shapes": SHAPES},
        {"spatial_shapes": SHAPES.astype(np.int32), "mask": MASK[[0, 1, 2, 0, 1, 2, 0]]},
    ],
)
def test_a_file_may_hold_their_value(held: Mapping[str, Any], tmp_path: Path) -> None:
    config = InputConfig(
        inputs=file(tmp_path / "x.npz", pixel_values=PATCHES, **held),
        samples=5,
        constants=("spatial_shapes", "mask"),
    )
    _, specs, batches = prepare(source_in_memory(*towers.naflex()), config)
    assert batches.names == ("pixel_values",)
    assert batches.samples == 5
    assert batches.origin.startswith("5 of 7 samples of x.npz; fixed: mask = ")


@pytest.mark.parametrize(
    ("held", "parts"),
    [
        (SHAPES[[0, 2, 1]], ("spatial_shapes[1, 0]: 2, not 4", "is fixed at [[3, 4], [4, 2]")),
        (SHAPES[[0, 1, 2, 0, 1, 2, 1]], ("spatial_shapes[6, 0]: 4, not 3",)),
        (SHAPES[:2], ("is int64 of shape (2, 2) in the file, and the model takes int64 of shape",)),
    ],
)
def test_a_file_with_another_value_is_refused(
    held: np.ndarray, parts: tuple[str, ...], tmp_path: Path
) -> None:
    path = file(tmp_path / "x.npz", pixel_values=PATCHES, mask=MASK, spatial_shapes=held)
    config = InputConfig(inputs=path, constants=("spatial_shapes", "mask"))
    with pytest.raises(InputError) as caught:
        prepare(source_in_memory(*towers.naflex()), config)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_tells_the_shapes_tells_the_value(tmp_path: Path) -> None:
    model, _ = towers.naflex()
    once = file(tmp_path / "a.npz", pixel_values=PATCHES, mask=MASK[:1], spatial_shapes=SHAPES[:1])
    for constants in (["spatial_shapes", "mask"], {"spatial_shapes": [[3, 4]], "mask": None}):
        config = InputConfig(inputs=once, constants=constants)
        flat, specs, _ = prepare(source_in_memory(model, None), config)
        assert [spec.shape for spec in specs] == [(1, 12, 12)]
        assert flat.spec.constants["spatial_shapes"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("case", "named"),
    thorough_but(
        [("grid", "grid_thw"), ("shapes", "spatial_shapes")],
        [("grid", "grid_thw"), ("shapes", "spatial_shapes"), ("three grids", "grid_thw")],
    ),
)
def test_a_refusal_names_the_input_that_helps(case: str, named: str) -> None:
    model, example = CASES[case][0]()
    flat, _, _ = prepare(source_in_memory(model, example), InputConfig())
    with pytest.raises(DataDependentError) as caught:
        capture(flat, flat.spec.examples)
    assert caught.value.fix.startswith(f"Pass --constant {named}, if it never changes: ")


def test_a_refusal_names_all_where_only_all_help() -> None:
    flat, _, _ = prepare(source_in_memory(*towers.switches()), InputConfig())
    with pytest.raises(DataDependentError) as caught:
        capture(flat, flat.spec.examples)
    options = "--constant use_cls --constant task --constant scale"
    assert caught.value.fix.startswith(f"Pass {options}, if they never change: ")


class OfTheImage(nn.Module):
    """Counts what the image holds; the numbers beside it help nobody."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x[: int((x[:, 0] > 0).sum())].sum(0) + ids


def test_a_refusal_names_none_where_none_helps() -> None:
    example = torch.randn(5, 3), torch.tensor([1, 2, 3])
    flat, _, _ = prepare(source_in_memory(OfTheImage(), example), InputConfig())
    with pytest.raises(DataDependentError) as caught:
        capture(flat, flat.spec.examples)
    assert "--constant" not in caught.value.fix


def test_names_and_values_are_read() -> None:
    read = parse_constants(
        ["grid=[[1,4,4]]", "flag=True", "mode", "scale = 2.5e-1", "inf=Infinity"]
    )
    assert read == {
        "grid": [[1, 4, 4]],
        "flag": True,
        "mode": None,
        "scale": 0.25,
        "inf": float("inf"),
    }
    assert by_name("grid") == by_name({"grid"}) == by_name(["grid"]) == {"grid": None}
    assert by_name(None) == {}
    with pytest.raises(UsageError, match="constant inputs are 3"):
        by_name([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (3.0, "int64", 3),
        (True, "int32", 1),
        (1, "bool", True),
        (0.1, "float32", np.float32(0.1)),
        (2**24, "float32", 2.0**24),
        (float("-inf"), "float16", -np.inf),
        (torch.tensor(2.5, dtype=torch.bfloat16), "float32", 2.5),
        (2**64 - 1, "uint64", 2**64 - 1),
    ],
)
def test_a_value_takes_the_type_of_the_example(value: Any, dtype: str, wanted: Any) -> None:
    found = fitting("one", value, ((),), dtype)
    assert found.dtype == dtype
    assert found == wanted


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((2.5, "int64"), (2, "bool"), (-1, "uint8"), (300, "uint8"), (2**24 + 1, "float32")),
        *((1e40, "float32"), (float("inf"), "int64"), (2**64, "int64"), (0.5, "bool")),
        (2**63, "int64"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(value: Any, dtype: str) -> None:
    with pytest.raises(InputError, match=rf"'one' is {dtype}, which does not hold "):
        fitting("one", value, ((),), dtype)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(2**16 + 1, np.uint8), "holds 65537 numbers"),
        (np.array([0.5, np.nan]), "holds NaN"),
        (np.zeros(2, np.complex64), "is complex64"),
    ],
)
def test_what_no_manifest_holds_is_refused(value: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=f"'one' {said}"):
        described("one", value)


def test_a_value_without_an_example_has_the_type_of_torch() -> None:
    for value in (3, [[1, 2]], True, 0.5, torch.tensor([1], dtype=torch.int32), np.float64(2)):
        wanted = torch.as_tensor(value)
        if isinstance(value, float) and not isinstance(value, np.floating):
            wanted = torch.tensor(value)
        assert str(wanted.dtype) == f"torch.{as_given('one', value).dtype.name}"


class TakesNumbers(nn.Module):
    def forward(self, x: Tensor, keep: int = 4, halved: bool = False) -> Tensor:
        found = x[:, :keep] * (2 if isinstance(keep, int) else 3)
        return found / 2 if halved is True else found


def test_a_default_number_is_passed_as_one() -> None:
    source = source_in_memory(TakesNumbers(), {"x": torch.ones(2, 6)})
    flat, _, batches = prepare(source, InputConfig(constants={"keep": 3, "halved": True}))
    (found,) = flat(torch.ones(2, 6))
    assert torch.equal(found, torch.ones(2, 3))
    assert batches.names == ("x",)
