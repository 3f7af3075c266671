"""Every input goes where its name says, whatever order anything came in."""

from __future__ import annotations

import functools
import random
import tempfile
import zipfile
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from helpers.thorough import thorough_but
from hypothesis import given, settings
from hypothesis import strategies as st
from models.named_inputs import mixed_up, pixels_and_words, sample
from torch import Tensor, nn

import tokexport
from tokexport.exporter.bench.plain_export import export_plainly
from tokexport.exporter.bench.subject import Subject
from tokexport.exporter.bundle.run_bundle import run_bundle
from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.errors import InputError, UsageError
from tokexport.exporter.inputs.batches import read_inputs
from tokexport.exporter.inputs.named_arrays import read_arrays
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.loading import load
from tokexport.runtimes.ort.runner import OrtRunner

SHIFT = 1000.0


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Record:
    first: Any
    second: Any


@dataclass(frozen=True)
class Frozen:
    first: Any
    second: Any


@dataclass(slots=True)
class Slotted:
    first: Any
    second: Any


class Listed(list[Any]):
    """A list of the person's own, with an attribute."""


class Attributes(dict[str, Any]):
    """A dict whose entries are its attributes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Plain:
    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second


class Everything(nn.Module):
    """Notes what arrives at each kind of parameter, and takes it out of what it was given."""

    def forward(
        self, a: Any, /, b: Any, c: Any = None, *more: Any, d: Any, e: Any = None, **rest: Any
    ) -> Tensor:
        self.got = {"a": a, "b": b, "c": c, "more": more, "d": d, "e": e, "rest": dict(rest)}
        self.got = _held(self.got)
        for emptied in (a, b, c, d, e, rest):
            if isinstance(emptied, dict | list):
                emptied.clear()
        return torch.zeros(1)


def _held(value: Any) -> Any:
    """Writes a structure as plain dicts, lists and numbers, each tensor as the number in it."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, dict):
        return {key: _held(part) for key, part in value.items()}
    if isinstance(value, Pair | Record | Frozen | Slotted | Plain):
        return {name: _held(getattr(value, name)) for name in _fields(value)}
    if isinstance(value, list | tuple | deque):
        return [_held(part) for part in value]
    return value


def _fields(value: Any) -> tuple[str, str]:
    return ("left", "right") if isinstance(value, Pair) else ("first", "second")


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Names what is in a structure that ``_held`` wrote; the oracle of the property."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _flat(part, f"{name}_{key}")


def _shifted(value: Any) -> Any:
    if isinstance(value, float):
        return value + SHIFT
    if isinstance(value, dict):
        return {key: _shifted(part) for key, part in value.items()}
    return [_shifted(part) for part in value] if isinstance(value, list) else value


def _structures() -> st.SearchStrategy[Any]:
    """Nested values; each True is to become a tensor."""
    keys = st.sampled_from(["x", "image", "z", "b", "mask"])
    leaves = st.sampled_from([True, True, True, None, 7])

    def nested(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        dicts = st.dictionaries(keys, parts, max_size=4)
        pairs = [st.builds(kind, parts, parts) for kind in (Pair, Record, Frozen, Slotted, Plain)]
        sequences = st.lists(parts, max_size=3)
        return st.one_of(
            dicts,
            dicts.map(OrderedDict),
            dicts.map(lambda one: defaultdict(list, one)),
            dicts.map(Attributes),
            *(sequences.map(kind) for kind in (list, tuple, deque, Listed)),
            *pairs,
        )

    return st.recursive(leaves, nested, max_leaves=6)


def _permuted(value: Any, draw: random.Random) -> Any:
    """Returns a structure whose dicts were filled in another order; nothing else differs."""
    if isinstance(value, dict):
        items = [(key, _permuted(part, draw)) for key, part in value.items()]
        draw.shuffle(items)
        if isinstance(value, defaultdict):
            return defaultdict(list, items)
        return type(value)(items)
    if isinstance(value, Pair | Record | Frozen | Slotted | Plain):
        return type(value)(*(_permuted(getattr(value, name), draw) for name in _fields(value)))
    if isinstance(value, list | tuple | deque):
        return type(value)(_permuted(part, draw) for part in value)
    return value


def _with_tensors(value: Any, count: Iterator[int]) -> Any:
    if value is True:
        return torch.tensor(float(next(count)))
    if isinstance(value, dict):
        made = {key: _with_tensors(part, count) for key, part in value.items()}
        return defaultdict(list, made) if isinstance(value, defaultdict) else type(value)(made)
    if isinstance(value, Pair | Record | Frozen | Slotted | Plain):
        return type(value)(*(_with_tensors(getattr(value, n), count) for n in _fields(value)))
    if isinstance(value, list | tuple | deque):
        return type(value)(_with_tensors(part, count) for part in value)
    return value


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {"a": _structures(), "b": _structures(), "d": _structures()},
        optional={
            "c": _structures(),
            "e": _structures(),
            "more": st.lists(_structures(), min_size=2, max_size=3),
            "p": _structures(),
            "q": _structures(),
        },
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_every_leaf_gets_the_array_of_its_name(
    drawn: dict[str, Any], by_name: bool, draw: random.Random
) -> None:
    """Permutes arguments, nested dicts and the arrays of a file: each leaf gets what it should."""
    values = {
        key: _with_tensors(drawn[key], iter(range(i * 100, 10**6)))
        for i, key in enumerate(sorted(drawn))
    }
    more = tuple(values.pop("more", ()))
    model = Everything()
    specs = []
    for _ in range(2):
        one = {key: _permuted(value, draw) for key, value in values.items()}
        args = [one.pop("a")]
        if more or not by_name:  # what follows an argument by position is by position too
            args += [one.pop("b"), *([one.pop("c", None)] if more or "c" in one else ())]
        kwargs = list(one.items())
        draw.shuffle(kwargs)
        specs.append(call_spec(model, (*args, *more), dict(kwargs)))
    first, second = specs
    assert first.names == second.names

    expected = {"a": None, "b": None, "c": None, "d": None, "e": None} | {
        key: _held(value) for key, value in values.items() if key in "abcde"
    }
    expected["rest"] = {key: _held(value) for key, value in values.items() if key in "pq"}
    expected["more"] = _held(more)
    named = [*_flat({key: v for key, v in expected.items() if key not in ("rest", "more")}, "")]
    named += [*_flat(expected["rest"], "")]
    named = [(name.removeprefix("_"), value) for name, value in named]
    named += [*_flat(expected["more"], "more")]
    assert sorted(first.names) == sorted(name for name, _ in named)
    if not named:
        return

    draw.shuffle(named)
    arrays = {name: np.float32(value + SHIFT) for name, value in named}
    tensors = [TensorSpec(name, (), "float32") for name in first.names]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        np.savez(path, **arrays)
        batches = read_inputs(path, tensors, 1)
    for spec in specs:
        flat = FlatModel(model, spec)
        for _ in range(2):  # what forward takes out is there again
            flat(*tensors_of(next(iter(batches))))
            assert model.got == _shifted(expected)


def _model(forward: Any) -> nn.Module:
    return type("Model", (nn.Module,), {"forward": forward})()


ONE, TWO, THREE = torch.ones(2, 3), torch.full((2, 4), 2.0), torch.full((2, 5), 3.0)


def test_forward_says_the_order() -> None:
    def forward(self: Any, x: Any, y: Any = None, *, key: Any = None, **rest: Any) -> Any: ...

    model = _model(forward)
    one = call_spec(model, (), {"zeta": ONE, "key": TWO, "alpha": ONE, "y": THREE, "x": ONE})
    other = call_spec(model, (ONE,), {"y": THREE, "alpha": ONE, "zeta": ONE, "key": TWO})
    assert one.names == other.names == ("x", "y", "key", "alpha", "zeta")
    assert [tuple(each.shape) for each in one.examples] == [(2, 3), (2, 5), (2, 4), (2, 3), (2, 3)]


def test_a_forward_that_patches_another_keeps_its_names() -> None:
    class Base(nn.Module):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            return image - mask

    class Patched(Base):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            self.size = kwargs.pop("size", None)
            return super().forward(*args, **kwargs)

    spec = call_spec(Patched(), (), {"mask": ONE, "image": ONE * 5})
    assert spec.names == ("image", "mask")
    assert FlatModel(Patched(), spec)(ONE * 7, ONE)[0].equal(ONE * 6)
    more = call_spec(Patched(), (ONE,), {"size": TWO, "mask": ONE})  # the base takes no size
    assert sorted(more.names) == ["input", "mask", "size"]
    model = Patched()
    FlatModel(model, more)(*(ONE if name != "size" else TWO * 2 for name in more.names))
    assert model.size.equal(TWO * 2)


def test_a_decorator_may_take_more_than_what_it_wraps() -> None:
    def inner(self: Any, image: Tensor, mask: Tensor) -> Tensor:
        return image - mask

    @functools.wraps(inner)
    def outer(self: Any, *args: Any, scale: Tensor | None = None, **kwargs: Any) -> Tensor:
        return inner(self, *args, **kwargs) * scale

    spec = call_spec(_model(outer), (), {"scale": ONE * 3, "mask": ONE, "image": ONE * 2})
    assert sorted(spec.names) == ["image", "mask", "scale"]
    given = {"scale": ONE * 10, "mask": ONE, "image": ONE * 4}
    assert FlatModel(_model(outer), spec)(*(given[name] for name in spec.names))[0].equal(ONE * 30)


@pytest.mark.parametrize(
    "make",
    [
        transformers.BatchFeature,
        lambda one: transformers.modeling_outputs.BaseModelOutput(**one),
        UserDict,
        lambda one: SimpleNamespace(**one),
    ],
)
def test_classes_of_libraries_are_filled_anew(make: Any) -> None:
    def forward(self: Any, batch: Any) -> Any:
        kind = "attribute" if isinstance(batch, SimpleNamespace) else "entry"
        found = [
            getattr(batch, name) if kind == "attribute" else batch[name]
            for name in ("last_hidden_state", "attentions")
        ]
        return found[0] - found[1]

    one = make({"last_hidden_state": ONE, "attentions": ONE})
    other = make({"attentions": ONE, "last_hidden_state": ONE})
    spec, again = (call_spec(_model(forward), (each,), {}) for each in (one, other))
    assert spec.names == again.names
    given = {"batch_last_hidden_state": ONE * 9, "batch_attentions": ONE * 2}
    for each in (spec, again):
        answer = FlatModel(_model(forward), each)(*(given[name] for name in each.names))
        assert answer[0].equal(ONE * 7)


def test_an_object_that_holds_itself_is_refused_with_tensors_only() -> None:
    def forward(self: Any, x: Tensor, extra: Any) -> Tensor:
        return x

    alone = Plain(None, 3)
    alone.first = alone
    assert call_spec(_model(forward), (ONE, alone), {}).names == ("x",)
    alone.second = ONE
    with pytest.raises(InputError, match="'extra' holds tensors and itself"):
        call_spec(_model(forward), (ONE, alone), {})


def test_names_that_meet_are_refused() -> None:
    def forward(self: Any, a: Any, a_b: Any) -> Any: ...

    with pytest.raises(InputError, match="Two inputs of the model would be called 'a_b'"):
        call_spec(_model(forward), ({"b": ONE}, ONE), {})


def test_a_batch_of_a_library_is_given_by_name(tmp_path: Path) -> None:
    def forward(self: Any, pixel_values: Tensor, mask: Tensor) -> Tensor:
        return pixel_values * mask

    batch = transformers.BatchFeature({"mask": TWO * 0, "pixel_values": TWO})
    source = source_in_memory(_model(forward), batch)
    _, specs, _ = prepare(source, InputConfig())
    assert [spec.name for spec in specs] == ["pixel_values", "mask"]
    with pytest.raises(UsageError, match="The example inputs are a int"):
        source_in_memory(_model(forward), 5)


def test_a_file_alone_names_the_inputs(tmp_path: Path) -> None:
    def forward(self: Any, a: Tensor, /, b: Tensor, *others: Tensor, key: Tensor) -> Tensor:
        return (a - b) * key + sum(o * 10**i for i, o in enumerate(others, 3))

    model = _model(forward)
    names = ("others_1", "key", "b", "others_0", "a")
    arrays = {name: np.full((4, 2), i, np.float32) for i, name in enumerate(names)}
    np.savez(tmp_path / "x.npz", **arrays)
    flat, specs, batches = prepare(
        source_in_memory(model, None), InputConfig(inputs=str(tmp_path / "x.npz"))
    )
    assert [spec.name for spec in specs] == ["a", "b", "others_0", "others_1", "key"]
    (answer,) = flat(*tensors_of(next(iter(batches))))
    assert answer.unique().tolist() == [(4 - 2) * 1 + 3 * 1000 + 0 * 10000]

    np.savez(tmp_path / "y.npz", input=arrays["b"])
    catch_all = _model(lambda self, *args: args[0] * 2)
    _, specs, _ = prepare(
        source_in_memory(catch_all, None), InputConfig(inputs=str(tmp_path / "y.npz"))
    )
    assert [spec.name for spec in specs] == ["input"]


def test_a_lone_array_of_another_name_is_refused(tmp_path: Path) -> None:
    model, example = _model(lambda self, image: image * 2), torch.ones(1, 4)
    x = np.ones((3, 4), np.float32)
    for name in ("arr_0", "pictures"):
        np.savez(tmp_path / "x.npz", **{name: x})
        for shown in (example, None):
            config = InputConfig(inputs=str(tmp_path / "x.npz"))
            with pytest.raises(InputError) as caught:
                prepare(source_in_memory(model, shown), config)
            assert f"missing: image; unknown: {name}" in str(caught.value)
            assert "numpy.savez(path, image=…)" in str(caught.value)
    np.save(tmp_path / "x.npy", x)
    _, specs, _ = prepare(
        source_in_memory(model, None), InputConfig(inputs=str(tmp_path / "x.npy"))
    )
    assert [spec.name for spec in specs] == ["image"]


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.write(tmp_path / "x.npy", "x.npy")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(InputError, match="holds two arrays named 'x'"):
        read_arrays(tmp_path / "x.npz")


def test_an_exported_program_takes_its_inputs_by_name() -> None:
    def forward(self: Any, image: Tensor, *, mask: Tensor, views: dict[str, Tensor]) -> Tensor:
        return image * 100 + mask * 10 + views["b"] - views["a"]

    # Of one tensor in two places torch.export makes one input.
    kwargs = {"views": {"b": ONE * 2, "a": ONE * 3}, "mask": ONE * 4}
    program = torch.export.export(_model(forward), (ONE,), kwargs=kwargs)
    loaded = program.module(check_guards=False)
    given = {"image": ONE, "mask": ONE * 2, "views_a": ONE * 3, "views_b": ONE * 7}
    for order in (["views", "mask"], ["mask", "views"]):
        spec = call_spec(loaded, (ONE,), {name: kwargs[name] for name in order})
        assert sorted(spec.names) == sorted(given)
        assert FlatModel(loaded, spec)(*(given[n] for n in spec.names))[0].equal(ONE * 124)


def test_a_plain_export_is_timed_on_its_inputs_by_name(tmp_path: Path) -> None:
    def forward(self: Any, image: Tensor, mask: Tensor, views: dict[str, Tensor]) -> Tensor:
        return image * mask + views["a"] / (views["b"] + 9)

    sizes = {name: torch.randn(1, 4) for name in ("b", "image", "a", "mask")}
    views = {name: sizes.pop(name) for name in ("b", "a")}
    kwargs = {"views": views, "mask": sizes["mask"], "image": sizes["image"]}
    subject = Subject(source_in_memory(_model(forward), kwargs), InputConfig())
    export_plainly(subject, tmp_path / "plain.onnx")
    with OrtRunner.from_file(tmp_path / "plain.onnx") as runner:
        own = [spec.name for spec in runner.inputs]
        for batch, wanted in zip(subject.batches, subject.expected["output"], strict=True):
            pairs = zip(own, subject.names_as_called, strict=True)
            found = runner.run({name: batch[given] for name, given in pairs})
            np.testing.assert_allclose(*found.values(), wanted, atol=1e-6)


@pytest.fixture(scope="module")
def wanted() -> dict[int, tuple[dict[str, Tensor], Array]]:
    """Inputs that no compile saw, and what eager answers to them, by batch."""
    model = pixels_and_words()
    with torch.no_grad():
        return {batch: (fresh := sample(batch, 5), model(**fresh).numpy()) for batch in (1, 3)}


@pytest.mark.parametrize(
    ("target", "batch"),
    thorough_but([("openvino", 3)], [("ort", 1), ("ort", 3), ("openvino", 3), ("trt", 1)]),
)
def test_a_bundle_answers_by_name(
    target: str, batch: int, tmp_path: Path, wanted: Any, without_gpu: None
) -> None:
    """Example inputs in one wrong order, the file in another, and the answers are eager's."""
    model = pixels_and_words()
    seen = {name: tensor.numpy() for name, tensor in sample(2 * batch, 3).items()}
    np.savez(tmp_path / "seen.npz", **dict(reversed(seen.items())))
    result = tokexport.compile(
        model,
        mixed_up(sample(batch, 0)),
        target,
        output=tmp_path / "bundle",
        inputs=tmp_path / "seen.npz",
        timed=False,
    )
    names = [spec.name for spec in read_manifest(result.bundle).inputs]
    assert names == ["pixel_values", "input_ids", "attention_mask", "token_type_ids"]
    with np.load(result.bundle / "reference.npz") as kept:
        for name in names:
            np.testing.assert_array_equal(kept[f"inputs/{name}"][0], seen[name][:batch])
    if target == "trt":
        assert result.status == "BUILT, NOT RUN"
        return
    fresh, answer = wanted[batch]
    with load(result.bundle) as runner:
        found = runner.run({name: t.numpy() for name, t in mixed_up(fresh).items()})
    np.testing.assert_allclose(found["output"], answer, atol=2e-5)
    arrays = {name: tensor.numpy() for name, tensor in mixed_up(fresh).items()}
    np.savez(tmp_path / "fresh.npz", **arrays)
    run_bundle(result.bundle, tmp_path / "fresh.npz", tmp_path / "y.npz")
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["output"], answer, atol=2e-5)
