"""Determines names, shapes and dtypes of a model's inputs, and the arrays it is proven on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.eager_form import eager_form
from tokexport.exporter.eager.flat_model import (
    CATCH_ALL,
    CallSpec,
    FlatModel,
    call_by_name,
    call_spec,
    forward_parameters,
)
from tokexport.exporter.eager.pixel_model import PixelModel
from tokexport.exporter.eager.reference import run_reference
from tokexport.exporter.errors import (
    InputError,
    ModelNotSupportedError,
    NotFiniteError,
    UsageError,
    listed,
)
from tokexport.exporter.inputs.batches import Batches, read_inputs, synthetic_inputs
from tokexport.exporter.inputs.constant_inputs import (
    as_given,
    by_name,
    described,
    fitting,
    require_known,
)
from tokexport.exporter.inputs.kinds import kind_of_inputs
from tokexport.exporter.inputs.named_arrays import LABELS, check_names, read_arrays
from tokexport.exporter.inputs.pictures import PictureOptions
from tokexport.exporter.inputs.samples import Watch, unwatched
from tokexport.exporter.source import Source
from tokexport.exporter.source.class_names import class_names
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.pictures.steps_text import parse_preprocessing

#: How many batches are drawn where no data is given: more than one, so that a value baked in from
#: the first shows in the second.
SYNTHETIC_BATCHES = 2
#: The kinds of parameters that can be given by name.
_BY_NAME = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


def prepare(
    source: Source, config: InputConfig, watch: Watch = unwatched
) -> tuple[FlatModel, tuple[TensorSpec, ...], Batches]:
    """Returns the model over named tensors, its inputs, and the batches to prove it on.

    Shapes come from ``--input-shape``, else from the source's example inputs, else from what the
    source knows of itself, else from the file of inputs; ``--batch`` replaces the leading number.

    Args:
        source: The model, as it was read.
        config: Its inputs.
        watch: Is called for the pictures that are decoded, to show progress.

    Raises:
        UsageError: Nothing says which inputs the model takes.
        InputError: The inputs do not fit the model.
    """
    source = dataclasses.replace(source, model=eager_form(source.model))
    _check_weights(source.model)
    asked = by_name(config.constants)
    args, kwargs = example_call(source, config, asked)
    more = _not_given(source.model, args, kwargs, asked)
    kwargs = kwargs | more
    spec = call_spec(source.model, args, kwargs)
    require_known(asked, spec.names, forward_parameters(source.model))
    examples = list(spec.examples)
    if not examples or not all(tensor.numel() for tensor in examples):
        raise InputError(
            "The example inputs hold no tensor." if not examples else "An example input is empty.",
            fix="Return (module, example_inputs) with torch tensors that hold numbers: "
            "torch.from_numpy converts numpy arrays.",
        )
    free = [one for name, one in zip(spec.names, examples, strict=True) if name not in asked]
    if config.batch is not None:
        examples = _rebatched(examples, config.batch, free[0].shape)
    spec, fixed = _fixing(spec, examples, asked)
    numbers = _python_numbers(source.model, {name: asked[name] for name in more})
    spec = dataclasses.replace(spec, numbers=numbers)
    examples = list(spec.examples)
    specs = tuple(
        TensorSpec(name, tuple(tensor.shape), numpy_name(name, tensor))
        for name, tensor in zip(spec.names, examples, strict=True)
    )
    model = FlatModel(source.model, spec)
    batches = _batches(source, config, model, specs, fixed, watch)
    said = f"; fixed: {', '.join(map(str, fixed))}" if fixed else ""
    return model, specs, dataclasses.replace(batches, origin=batches.origin + said)


def constants_of(model: FlatModel) -> tuple[ConstantInput, ...]:
    """Returns the inputs of a model that are fixed, with their values."""
    given = model.spec.constants.items()
    return tuple(described(name, value.numpy()) for name, value in given)


def picture_options(
    source: Source, config: InputConfig, watch: Watch = unwatched
) -> PictureOptions:
    """Returns how pictures become the input of a source's model.

    Args:
        source: The model, as it was read.
        config: The steps and names of classes that the user asks for.
        watch: Is called for the files, to show progress.
    """
    labels = None if config.labels is None else Path(config.labels)
    model, asked = source.model, config.preprocess
    if isinstance(model, PixelModel):  # its steps are made of those that were asked for
        model, asked = model.model, None
    known = partial(class_names, model)
    return PictureOptions(asked, source.preprocessing, labels, known, watch)


def _batches(
    source: Source,
    config: InputConfig,
    model: FlatModel,
    specs: tuple[TensorSpec, ...],
    fixed: tuple[ConstantInput, ...],
    watch: Watch,
) -> Batches:
    """Reads or draws what the model is proven on."""
    pictures = picture_options(source, config, watch)
    pictures.steps(specs)  # refuses steps that are asked for and do not fit
    batch = specs[0].shape[0] if specs[0].shape else 1
    if config.inputs is not None:
        return read_inputs(Path(config.inputs), specs, batch, config.samples, fixed, pictures)
    drawn = synthetic_inputs(specs, SYNTHETIC_BATCHES, config.seed)
    if source.example_args is None and not source.example_kwargs:
        return drawn
    examples = list(model.spec.examples)
    return _with_example(model, _with_example_integers(drawn, specs, examples), examples)


def _not_given(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], asked: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Returns constants that no example has and a parameter of ``forward`` takes, by its name."""
    parameters = forward_parameters(model)
    given = {*list(parameters)[: len(args)], *kwargs}
    found = {}
    for name, value in asked.items():
        named = name in parameters and parameters[name].kind.name in _BY_NAME
        if named and name not in given and value is not None:
            found[name] = torch.from_numpy(as_given(name, value))
    return found


def _python_numbers(model: nn.Module, asked: Mapping[str, Any]) -> dict[str, bool | int | float]:
    """Returns the constants whose default in ``forward`` is a Python number.

    A tensor in their place would take other branches: ``if flag is True``, ``isinstance(keep,
    int)``.
    """
    defaults = {name: one.default for name, one in forward_parameters(model).items()}
    return {
        name: value
        for name, value in asked.items()
        if isinstance(value, bool | int | float)
        and isinstance(defaults.get(name), bool | int | float)
    }


def _fixing(
    spec: CallSpec, examples: list[Tensor], asked: Mapping[str, Any]
) -> tuple[CallSpec, tuple[ConstantInput, ...]]:
    """Fixes the constants of a call, and replaces the examples of the other inputs.

    A given value is taken as it is; the example's own value includes the batch.
    """
    values = {}
    examined = zip(spec.names, spec.examples, examples, strict=True)
    for name, given, example in examined:
        if name not in asked:
            continue
        dtype, value = numpy_name(name, example), asked[name]
        shapes = [tuple(given.shape), tuple(example.shape)]
        array = example.detach().numpy() if value is None else fitting(name, value, shapes, dtype)
        values[name] = torch.from_numpy(np.array(described(name, array).array))
    left = dataclasses.replace(spec, examples=tuple(examples)).fixing(values)
    return left, tuple(described(name, one.numpy()) for name, one in values.items())


def _check_weights(model: nn.Module) -> None:
    """Refuses a model on an accelerator or in another precision: the reference is fp32 eager."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise UsageError(
                f"The model is on {tensor.device}.",
                where=f"Weight '{name}'.",
                fix="Pass model.cpu(): the reference is the model on the CPU in fp32.",
            )
        doubled = tensor.dtype == torch.float64 and isinstance(tensor, nn.Parameter)
        if tensor.is_floating_point() and (tensor.dtype.itemsize < 4 or doubled):
            raise UsageError(
                f"The model is in {str(tensor.dtype).removeprefix('torch.')}.",
                where=f"Weight '{name}'.",
                fix="Give model.float(): the reference is the model in fp32; --precision says what "
                "the artifact runs in.",
            )


def example_call(
    source: Source, config: InputConfig, asked: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns example arguments of ``forward``; those made here hold zeros.

    Args:
        source: The model, as it was read.
        config: Its inputs.
        asked: The inputs that are to be constants, by name: they may be left out.

    Raises:
        UsageError: Nothing says which inputs the model takes.
    """
    given = source.example_args is not None or bool(source.example_kwargs)
    if config.input_shape is not None:
        if given:
            return _reshaped(source, config.input_shape, asked)
        return _only_input(source.model, torch.zeros(config.input_shape), asked)
    if given:
        return source.example_args or (), source.example_kwargs
    if source.input_shapes:
        if len(source.input_shapes) == 1 and next(iter(source.input_shapes)) == _first(
            source.model
        ):
            return (torch.zeros(next(iter(source.input_shapes.values()))),), {}
        return (), {name: torch.zeros(shape) for name, shape in source.input_shapes.items()}
    if config.inputs is not None and kind_of_inputs(Path(config.inputs)).of_pictures:
        height, width = _picture_size(source, config)
        return _only_input(source.model, torch.zeros(1, 3, height, width), asked)
    if config.inputs is not None:
        return _call_of_file(source.model, Path(config.inputs), asked)
    raise UsageError(
        "Nothing says which inputs the model takes.",
        where=f"Its forward takes {listed(_required(source.model)) or 'anything'}.",
        fix="Pass --input-shape 1,3,224,224 or --inputs data.npz, or let a factory return "
        "(module, example_inputs).",
    )


def _picture_size(source: Source, config: InputConfig) -> tuple[int, int]:
    """Returns height and width of the input for pictures, where nothing but their steps says it."""
    if config.preprocess is not None:
        return parse_preprocessing(config.preprocess).size
    if source.preprocessing is not None:
        return source.preprocessing.size
    raise UsageError(
        "Nothing says which size the pictures are to have for this model, nor how they become its "
        "input.",
        fix="Pass both: --preprocess size=224,crop=0.9,mean=imagenet,interpolation=bicubic",
    )


def _reshaped(
    source: Source, shape: tuple[int, ...], asked: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gives the source's only example input another shape; its dtype and its place are kept."""
    spec = call_spec(source.model, source.example_args or (), source.example_kwargs)
    pairs = list(zip(spec.names, spec.examples, strict=True))
    free = [name for name, _ in pairs if name not in asked]
    if len(free) > 1:
        raise UsageError(
            f"--input-shape describes one input, and the source has {len(free)}.",
            fix="Leave it out: the source's own example inputs say the shapes.",
        )
    return spec.arguments(
        [torch.zeros(shape, dtype=one.dtype) if name in free else one for name, one in pairs]
    )


def _call_of_file(
    model: nn.Module, path: Path, asked: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Takes shapes and dtypes from the arrays of a file, one sample each, by their names.

    A constant is in the file once, or once for each sample.
    """
    found = read_arrays(path)
    if not isinstance(found, dict):
        return (_one_sample(found),), {}
    arrays = {name: array for name, array in found.items() if name != LABELS}
    parameters = forward_parameters(model)
    if all(one.kind not in CATCH_ALL for one in parameters.values()):
        missing = [name for name in _required(model) if name not in arrays and name not in asked]
        unknown = [name for name in arrays if name not in parameters]
        check_names([*parameters], missing, unknown, path)
    counts = {len(array) for name, array in arrays.items() if array.ndim and name not in asked}
    return call_by_name(
        model,
        {
            name: torch.from_numpy(np.ascontiguousarray(array))
            if name in asked and (not array.ndim or len(array) not in counts)
            else _one_sample(array)
            for name, array in arrays.items()
        },
    )


def _one_sample(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub" or array.ndim == 0 or not len(array):
        raise InputError(
            f"An array of dtype {array.dtype} and shape {array.shape} is no batch of inputs.",
            fix="Save numbers with the samples along the leading axis.",
        )
    return torch.from_numpy(np.ascontiguousarray(array[:1]))


def _required(model: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in forward_parameters(model).items()
        if parameter.default is parameter.empty and parameter.kind not in CATCH_ALL
    ]


def _first(model: nn.Module) -> str:
    return next(iter(forward_parameters(model)), "")


def _only_input(
    model: nn.Module, example: Tensor, asked: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments by which ``forward`` takes its one input."""
    required = [name for name in _required(model) if name not in asked]
    if len(required) > 1:
        raise UsageError(
            f"--input-shape describes one input, and forward takes {listed(required)}.",
            fix="Let a factory return (module, example_inputs), or pass --inputs with one array "
            "per input.",
        )
    by_name_only = required and forward_parameters(model)[required[0]].kind.name == "KEYWORD_ONLY"
    if by_name_only or (required and asked):
        return (), {required[0]: example}
    return (example,), {}


def _rebatched(examples: list[Tensor], batch: int, first: tuple[int, ...]) -> list[Tensor]:
    """Repeats or cuts the leading axis of every tensor that shares that of the first input."""
    if not first:
        raise UsageError(
            "--batch needs an input with a leading axis, and this one is a scalar.",
            fix="Leave --batch out.",
        )
    size = first[0]
    repeats = -(-batch // size)
    return [
        torch.cat([tensor] * repeats)[:batch] if tensor.shape[:1] == (size,) else tensor
        for tensor in examples
    ]


def numpy_name(name: str, tensor: Tensor) -> str:
    """Returns the name of an example's numpy dtype.

    Raises:
        InputError: It has none.
    """
    try:
        return str(np.dtype(str(tensor.dtype).removeprefix("torch.")))
    except TypeError as error:
        raise InputError(
            f"Input '{name}' is {tensor.dtype}, which has no numpy form.",
            fix="Give the model and its inputs in float32.",
        ) from error


def _with_example(model: FlatModel, drawn: Batches, examples: list[Tensor]) -> Batches:
    """Adds the example inputs as a batch, unless the model gives NaN on them.

    Users look at the outputs of these inputs; but many are zeros that only give a shape. Where no
    other inputs were drawn, they are the only batch.

    Raises:
        ModelNotSupportedError: The model fails on them, and they are not zeros alone.
    """
    example = {
        name: tensor.detach().numpy()[None]
        for name, tensor in zip(drawn.names, examples, strict=True)
    }
    try:
        run_reference(model, dataclasses.replace(drawn, arrays=example, samples=1), twice=False)
    except NotFiniteError:
        said = f"{drawn.origin}; not the example inputs: the model gives NaN on them"
        return dataclasses.replace(drawn, origin=said)
    except ModelNotSupportedError as error:
        if not any(tensor.any() for tensor in examples):  # they only give a shape
            said = f"{drawn.origin}; not the example inputs: {error.what.rstrip('.')}"
            return dataclasses.replace(drawn, origin=said)
        if error.where.startswith("Inputs: "):
            error.where = f"They are the example inputs.\n{error.where}"
        raise
    if all(np.array_equal(drawn.arrays[name][0], example[name][0]) for name in drawn.names):
        size = drawn.samples // len(drawn)
        return dataclasses.replace(drawn, arrays=example, samples=size, origin="the example inputs")
    arrays = {name: np.concatenate([drawn.arrays[name], example[name]]) for name in drawn.names}
    return dataclasses.replace(
        drawn,
        arrays=arrays,
        samples=drawn.samples + drawn.samples // len(drawn),
        origin=f"{drawn.origin}; and the example inputs",
        kinds=("drawn",) * len(drawn) + ("the example inputs",),
    )


def _is_image(tensor: Tensor) -> bool:
    """Returns whether an input holds bytes of pixels, which take all 256 values."""
    return tensor.dtype == torch.uint8 and tensor.ndim > 2


def _with_example_integers(
    drawn: Batches, specs: tuple[TensorSpec, ...], examples: list[Tensor]
) -> Batches:
    """Keeps the example's own integers, which may be indices; only floats are drawn."""
    arrays = dict(drawn.arrays)
    kept = []
    for spec, tensor in zip(specs, examples, strict=True):
        if not tensor.is_floating_point() and not _is_image(tensor):
            arrays[spec.name] = np.stack([tensor.numpy()] * len(drawn))
            kept.append(spec.name)
    if not kept:
        return drawn
    return dataclasses.replace(
        drawn, arrays=arrays, origin=f"{drawn.origin}; {listed(kept)} from the example inputs"
    )
