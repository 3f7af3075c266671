"""The live model, and the process around it, are left exactly as they were."""

from __future__ import annotations

import array
import functools
import random
import weakref
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.thorough import thorough_but
from models.plain_vits import DEPTH, HEADS, IMAGE, PATCH, WIDTH, build, image
from torch import Tensor, nn

import tokexport
from tokexport.exporter.capture.trace import capture
from tokexport.exporter.eager.flat_model import FlatModel, call_spec
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.outputs import flatten
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import ModelNotSupportedError, UsageError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.system.process_state import process_unchanged


def look(one: Any, seen: dict[int, int] | None = None) -> Any:
    """Writes down all that an object holds, by identity where nothing is in it to be told."""
    seen = {} if seen is None else seen
    if isinstance(one, int | float | str | bytes | None):
        return one
    if id(one) in seen:
        return ("again", seen[id(one)])
    seen[id(one)] = len(seen)
    found: list[Any] = [type(one), id(one)]
    if isinstance(one, Tensor):
        found += [one.requires_grad, id(one.grad), one.data_ptr(), one.dtype]
        return (*found, one.detach().numpy().tobytes())
    if isinstance(one, np.ndarray):
        return (*found, one.tobytes())
    if isinstance(one, dict | UserDict):
        found.append([(look(key, seen), look(value, seen)) for key, value in one.items()])
    elif isinstance(one, list | tuple | deque | UserList):
        found += [[look(part, seen) for part in one], getattr(one, "maxlen", None)]
    elif isinstance(one, set | frozenset):
        found.append(sorted(map(repr, one)))
    if callable(one) and not isinstance(one, nn.Module):
        return tuple(found)
    if isinstance(one, (weakref.WeakKeyDictionary, torch.utils.hooks.RemovableHandle)):
        return tuple(found)
    attributes = getattr(one, "__dict__", {})
    return (*found, [(name, look(value, seen)) for name, value in attributes.items()])


def _transformers(kind: str, model: str, **options: Any) -> tuple[nn.Module, Any]:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=IMAGE,
        patch_size=PATCH,
        attn_implementation="eager",
        **options,
    )
    config.output_hidden_states = config.output_attentions = True
    return getattr(transformers, model)(config), {"pixel_values": image(1)}


class Intermediates(nn.Module):
    """timm's way to give what blocks in the middle give."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build("timm DeiT")

    def forward(self, x: Tensor) -> Any:
        return self.model.forward_intermediates(x, indices=[0, 1])


def _timm_features() -> tuple[nn.Module, Any]:
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "num_heads": HEADS}
    model = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(0, 1), depth=2, **sizes
    )
    return model, image(1)


class HookedByTimm(nn.Module):
    """timm's hooks on modules, which keep what they catch in dicts of their own."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models._features import FeatureHooks

        self.model = build("timm DeiT")
        names = ("blocks.0", "blocks.1")
        self.caught = FeatureHooks(names, self.model.named_modules())

    def forward(self, x: Tensor) -> Any:
        return self.model(x), list(self.caught.get_output(x.device).values())


def _open_clip() -> tuple[nn.Module, Any]:
    model = build("open_clip ViT")
    model.output_tokens = True  # type: ignore[assignment]
    return model, image(1)


def _torchvision() -> tuple[nn.Module, Any]:
    from torchvision.models.feature_extraction import create_feature_extractor

    layers = [f"encoder.layers.encoder_layer_{i}.add" for i in (0, DEPTH - 1)]
    return create_feature_extractor(build("torchvision ViT"), layers), image(1)


def _vit_pytorch(wrapper: str) -> tuple[nn.Module, Any]:
    import vit_pytorch
    import vit_pytorch.extractor
    import vit_pytorch.recorder

    torch.manual_seed(0)
    sizes = {"dim": WIDTH, "depth": 2, "heads": HEADS, "mlp_dim": WIDTH}
    vit = vit_pytorch.ViT(image_size=IMAGE, patch_size=PATCH, num_classes=10, **sizes)
    kinds = {
        "Recorder": vit_pytorch.recorder.Recorder,
        "Extractor": vit_pytorch.extractor.Extractor,
    }
    return kinds[wrapper](vit), image(1)


class HookedByClosures(nn.Module):
    """Hooks as people write them: what they catch lies in a variable around them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build("timm DeiT")
        caught: dict[str, Tensor] = {}
        runs = 0

        def catch(module: nn.Module, args: Any, output: Tensor) -> None:
            nonlocal runs
            runs += 1
            caught[f"run{runs}"] = output

        self.model.blocks[1].register_forward_hook(catch)
        self.read = lambda: (list(caught.values()), runs)

    def forward(self, x: Tensor) -> Any:
        logits = self.model(x)
        found, runs = self.read()
        return logits, found[-1] * runs


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "transformers ViT": lambda: _transformers("ViT", "ViTModel", intermediate_size=WIDTH),
    "transformers CLIP": lambda: _transformers(
        "CLIPVision", "CLIPVisionModel", intermediate_size=WIDTH, projection_dim=16
    ),
    "transformers DINOv2": lambda: _transformers("Dinov2", "Dinov2Model", mlp_ratio=2),
    "transformers BEiT": lambda: _transformers("Beit", "BeitModel", intermediate_size=WIDTH),
    "timm features": _timm_features,
    "timm intermediates": lambda: (Intermediates(), image(1)),
    "timm hooks": lambda: (HookedByTimm(), image(1)),
    "open_clip tokens": _open_clip,
    "torchvision extractor": _torchvision,
    "vit-pytorch Recorder": lambda: _vit_pytorch("Recorder"),
    "vit-pytorch Extractor": lambda: _vit_pytorch("Extractor"),
    "closures": lambda: (HookedByClosures(), image(1)),
}
#: One of each library goes the whole way; the others as far as the live model is touched.
WHOLE = {
    "transformers ViT",
    "timm features",
    "open_clip tokens",
    "torchvision extractor",
    "vit-pytorch Recorder",
}
#: One of each way to keep what is inside, by library; the others are its relatives.
FIRST = {
    *("timm features", "torchvision extractor", "vit-pytorch Extractor", "closures"),
}


def _answers(model: nn.Module, example: Any) -> dict[str, Tensor]:
    kwargs = example if isinstance(example, dict) else {}
    with torch.no_grad():
        result = model(**kwargs) if kwargs else model(example)
    return {name: tensor.clone() for name, tensor in flatten(result)[0].items()}


def _captured(model: nn.Module, example: Any) -> None:
    args, kwargs = ((), example) if isinstance(example, dict) else ((example,), {})
    flat = FlatModel(model, call_spec(model, args, kwargs))
    capture(flat, flat.spec.examples)


@pytest.mark.parametrize("name", thorough_but(FIRST, MODELS))
def test_an_encoder_that_gives_what_is_inside_it(name: str, tmp_path: Path) -> None:
    """It holds what it held, and answers as one that was never compiled, bit by bit."""
    twin, example = MODELS[name]()
    model, _ = MODELS[name]()
    model.eval()
    next(model.children()).train()  # a part in another mode than the rest
    before = look(model)
    if name in WHOLE:
        result = tokexport.compile(model, example, output=tmp_path / "bundle", timed=False)
        assert all(stage.passed for stage in result.report.stages)
    else:
        _captured(model, example)
    assert look(model) == before
    wanted, found = _answers(twin.eval(), example), _answers(model.eval(), example)
    assert list(found) == list(wanted)
    assert all(found[key].equal(wanted[key]) for key in wanted)

    after_a_run = look(model)  # the library has put its hooks in by now
    _captured(model, example)
    assert look(model) == after_a_run


class Entries(dict[str, Any]):
    """A dict of the person's own, with attributes, whose methods do other things."""

    note = "class"

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("nobody may")

    def clear(self) -> None:
        raise TypeError("nobody may")


class Row(list[Any]):
    """A list with attributes."""


class Group(set[Any]):
    """A set with attributes."""


class Queue(deque[Any]):
    """A deque with attributes."""


class Slots:
    __slots__ = ("left", "right")

    def __init__(self) -> None:
        self.left = [1]


class Parent(nn.Module):
    runs = 0
    shared: dict[str, int] = {}

    @functools.lru_cache  # noqa: B019
    def grid(self, size: int) -> Tensor:
        return torch.arange(size)


class Holder(Parent):
    """Holds one of each thing that forward could change; ``change`` changes them all."""

    def __init__(self) -> None:
        super().__init__()
        self.ordered = OrderedDict(a=1, b=2, c=3)
        self.counter = Counter("aab")
        self.default: defaultdict[str, list[int]] = defaultdict(list, a=[1])
        self.queue = deque([1, 2, 3], maxlen=3)
        self.entries = Entries(a=[1])
        self.row, self.group, self.line = Row([[1]]), Group([1]), Queue([1], 4)
        self.row.note = self.group.note = self.line.note = "kept"  # type: ignore[attr-defined]
        self.entries.own = [1]  # type: ignore[attr-defined]
        self.user = UserDict(a=[1])
        self.users = UserList([1, [2]])
        self.space = SimpleNamespace(a=[1])
        self.slots = Slots()
        self.numbers, self.bytes = np.arange(3.0), bytearray(b"abc")
        self.array = array.array("d", [1.0, 2.0])
        self.key = Slots.__new__(type("Key", (), {}))
        self.weak = weakref.WeakKeyDictionary({self.key: [1]})
        self.draw = (torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1))
        self.hidden = [nn.Linear(2, 2)]  # no child that torch knows of
        self.layer = nn.Linear(2, 2)
        self.plain = torch.ones(2)
        self.register_buffer("steps", torch.zeros(1), persistent=False)
        self.partial = functools.partial(dict, values=[1])
        state = [1]

        def closed() -> list[int]:
            nonlocal state
            state = [*state, 2]
            return state

        closed.calls = 0  # type: ignore[attr-defined]
        self.closed = closed

    def change(self) -> None:
        self.ordered.move_to_end("a")
        del self.ordered["b"]
        self.counter["a"] += 5
        self.default["new"].append(1)
        self.default["a"].append(2)
        self.default.default_factory = None
        self.queue.append(4)
        dict.__setitem__(self.entries, "b", 2)
        self.entries["a"].append(2)
        self.entries.own.append(2)  # type: ignore[attr-defined]
        self.entries.other = 1  # type: ignore[attr-defined]
        self.row[0].append(2)
        self.row.insert(0, 0)
        self.group.add(2)
        self.line.extend([2, 3, 4, 5])
        self.row.note = self.group.note = self.line.note = "lost"  # type: ignore[attr-defined]
        self.user["b"] = 2
        self.user["a"].append(2)
        self.users.append(3)
        self.space.a.append(2)
        self.space.b = 1
        self.slots.left.append(2)
        self.slots.right = 1
        self.numbers += 1
        self.bytes.append(1)
        self.array[0] = 7.0
        self.weak[self.key].append(2)
        self.weak[self.layer] = 1  # type: ignore[index]
        torch.rand(3, generator=self.draw[0])
        self.draw[1].random()
        self.draw[2].random()
        self.hidden[0].bias = None  # type: ignore[assignment]
        self.hidden[0].training = False
        self.layer.register_forward_hook(lambda *given: None)
        self.layer.register_forward_pre_hook(lambda *given: None, with_kwargs=True)
        self.layer.weight.requires_grad_(False)
        self.layer.bias.grad = torch.ones(2)
        self.layer.bias.data = torch.ones(2)
        self.layer.weight.note = 1  # type: ignore[attr-defined]
        self.plain.add_(1)
        with torch.no_grad():
            self.get_buffer("steps").add_(1)
        self.register_buffer("more", torch.zeros(1), persistent=False)
        self.partial.keywords["values"].append(2)
        self.closed()
        self.closed.calls += 1  # type: ignore[attr-defined]
        self.layer.train()
        type(self).shared["new"] = 1
        type(self).runs = 1
        type(self).added = 1  # type: ignore[attr-defined]
        Parent.runs = 2
        self.grid(3)
        self.__class__ = type("Patched", (Holder,), {})
        nn.modules.module.register_module_forward_hook(lambda *given: None)


def _look_closer(model: Holder) -> Any:
    cells = [cell.cell_contents for cell in model.closed.__closure__]
    return (
        look(model),
        [look(value) for value in cells],
        model.default.default_factory,
        [getattr(model.slots, name, "none") for name in ("left", "right")],
        list(model.slots.left),
        {key: str(value) for key, value in model.weak.items()},
        model.bytes.hex(),
        model.array.tolist(),
        look(model.partial.keywords),
        vars(model.closed).copy(),
        model.draw[0].get_state().tolist(),
        str(model.draw[1].bit_generator.state),
        model.draw[2].getstate(),
        vars(model.layer.weight).copy(),
        {name: value for name, value in vars(Parent).items() if name != "__doc__"},
        dict(Parent.shared),
        Parent.grid.cache_info().currsize,
        sorted(vars(Holder)),
        len(nn.modules.module._global_forward_hooks),
    )


def test_all_that_a_model_can_hold_is_put_back() -> None:
    model = Holder()
    model.layer.eval()
    before = _look_closer(model)
    with evaluation(model):
        model.change()
        assert _look_closer(model) != before
    now = _look_closer(model)
    assert [one for one, other in zip(before, now, strict=True) if one != other] == []
    with evaluation(model):
        pass
    assert _look_closer(model) == before


def test_every_run_of_one_evaluation_meets_what_the_first_one_met() -> None:
    model = Holder()
    with evaluation(model) as entered:
        first = _look_closer(model)
        for _ in range(2):
            model.change()
            model.layer.train()
            entered.begin_again()
            assert _look_closer(model) == first
            assert not model.layer.training
    assert model.layer.training


class Recounts(nn.Module):
    """Keeps a count and its last answer, and gives both."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = [0]
        self.last = torch.zeros(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.runs[0] += 1
        self.last += x.sum(dim=0)
        return x + self.runs[0], self.last


def test_every_batch_of_the_reference_begins_with_the_model_as_it_was() -> None:
    model = Recounts()
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    batches = Batches(("x",), {"x": x}, 8, None, "")
    flat = FlatModel(model, call_spec(model, (torch.zeros(2, 3),), {}))
    added, last = run_reference(flat, batches, twice=False).outputs.values()
    np.testing.assert_array_equal(added, x + 1)
    np.testing.assert_allclose(last, x.sum(axis=1), rtol=1e-6)
    assert (model.runs, model.last.tolist()) == ([0], [0.0] * 3)
    with pytest.raises(ModelNotSupportedError, match="depends on the runs before it"):
        run_reference(flat, batches)
    assert (model.runs, model.last.tolist()) == ([0], [0.0] * 3)


class First(nn.Module):
    """Subtracts what it first saw, or what is the same of all that it may see."""

    def __init__(self, seen: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.seen, self.first = seen, None

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = self.seen(x)
        return x - self.first


@pytest.mark.parametrize("batches", [1, 3])
def test_what_is_kept_of_the_first_input_is_refused(batches: int) -> None:
    x = np.random.default_rng(0).standard_normal((batches, 2, 3)).astype(np.float32)
    given = Batches(("x",), {"x": x}, 2 * batches, None, "")
    by_shape = First(lambda x: torch.arange(x.shape[1]))
    flat = FlatModel(by_shape, call_spec(by_shape, (torch.zeros(2, 3),), {}))
    np.testing.assert_allclose(
        run_reference(flat, given).outputs["output"], x - np.arange(3), rtol=1e-6
    )
    by_mean = First(lambda x: x.mean(0))
    flat = FlatModel(by_mean, call_spec(by_mean, (torch.zeros(2, 3),), {}))
    with pytest.raises(ModelNotSupportedError, match="depends on the runs before it"):
        run_reference(flat, given)
    assert by_mean.first is None


_SEEN: dict[tuple[int, ...], Tensor] = {}
_RUNS = 0


def _remembered(x: Tensor) -> Tensor:
    global _RUNS
    _RUNS += 1
    return _SEEN.setdefault(tuple(x.shape), x.mean(0))


class FirstOfItsShape(nn.Module):
    """Keeps what it first saw beside its class."""

    def forward(self, x: Tensor) -> Tensor:
        return x - _remembered(x)


def test_variables_beside_a_class_are_state_of_a_model() -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    model = FirstOfItsShape()
    with evaluation(model) as entered:
        for batch in x:
            entered.begin_again()
            given = torch.from_numpy(batch)
            torch.testing.assert_close(model(given), given - given.mean(0))
            assert (len(_SEEN), _RUNS) == (1, 1)
    assert not _SEEN
    assert _RUNS == 0
    flat = FlatModel(model, call_spec(model, (torch.zeros(2, 3),), {}))
    with pytest.raises(ModelNotSupportedError, match="depends on the runs before it"):
        run_reference(flat, Batches(("x",), {"x": x}, 4, None, ""))


class Writes(nn.Module):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x.mul_(2) + 1


def test_a_model_may_write_into_its_input() -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    flat = FlatModel(Writes(), call_spec(Writes(), (torch.zeros(2, 3),), {}))
    found = run_reference(flat, Batches(("x",), {"x": x}, 4, None, "")).outputs["output"]
    np.testing.assert_allclose(found, x * [0, 2, 2] + 1, rtol=1e-6)
    given = torch.from_numpy(x[1].copy())
    (traced,) = capture(flat, [torch.zeros(2, 3)]).module()(given)
    np.testing.assert_array_equal(traced, found[1])
    np.testing.assert_array_equal(given, x[1])


def test_a_lazy_weight_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="Weight 'weight' has no shape before the model first"):
        tokexport.compile(nn.LazyLinear(3), torch.zeros(1, 2), output="never")


def test_what_dies_in_a_weak_container_breaks_nothing() -> None:
    model = Holder()
    model.lost = weakref.WeakSet([model.layer])  # type: ignore[assignment]
    model.named = weakref.WeakValueDictionary(a=model.layer)  # type: ignore[assignment]
    with evaluation(model):
        del model.layer
        model.key = None
    assert model.layer in model.lost
    assert model.named["a"] is model.layer
    assert model.weak[model.key] == [1]


@pytest.mark.parametrize("way", ["in place", "data", "storage"])
@pytest.mark.parametrize("which", ["weight", "count"])
def test_a_model_that_rewrites_its_tensors_is_refused_and_put_back(
    way: str, which: str, tmp_path: Path
) -> None:
    class Rewrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("count", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            one = getattr(self, which)
            if way == "in place":
                one.add_(1)
            elif way == "data":
                one.data.add_(1)
            else:
                one.data = one.data + 1
            return x * self.weight * self.count

    model = Rewrites().eval()
    with pytest.raises(ModelNotSupportedError, match="rewrites its own weights") as caught:
        tokexport.compile(model, torch.ones(1, 3), output=tmp_path / "b", timed=False)
    assert caught.value.where == f"Changed: model.{which}."
    assert model.weight.tolist() == [1.0] * 3
    assert model.get_buffer("count").tolist() == [1.0] * 3


class Meddles(nn.Module):
    """Changes what belongs to the whole process."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("high")
        torch.backends.mha.set_fastpath_enabled(False)
        return x * 2


def _process() -> list[str]:
    reads: list[Callable[[], Any]] = [
        lambda: torch.get_rng_state().tolist(),
        lambda: [
            part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()
        ],
        random.getstate,
        torch.is_grad_enabled,
        torch.get_default_dtype,
        torch.get_num_threads,
        torch.are_deterministic_algorithms_enabled,
        torch.is_deterministic_algorithms_warn_only_enabled,
        torch.get_float32_matmul_precision,
        torch.backends.mha.get_fastpath_enabled,
        lambda: torch.is_autocast_enabled("cpu"),
        lambda: torch.get_autocast_dtype("cpu"),
    ]
    return [str(read()) for read in reads]


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    before = _process()
    tokexport.compile(Meddles(), torch.ones(1, 3), output=tmp_path / "bundle", timed=False)
    assert _process() == before
    with process_unchanged():
        Meddles()(torch.ones(1))
        torch.set_default_dtype(torch.float64)
        torch.set_autocast_enabled("cpu", True)
        torch.set_num_threads(torch.get_num_threads() + 1)
        assert all(one != other for one, other in zip(_process()[:3], before, strict=False))
    assert _process() == before
