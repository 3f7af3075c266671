"""Puts part of a model's preprocessing in front of it: the artifact takes bytes of pictures."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch

from tokexport.exporter.config import InputConfig, parse_embedded
from tokexport.exporter.eager.eager_form import eager_form
from tokexport.exporter.eager.example_inputs import example_call, numpy_name, picture_options
from tokexport.exporter.eager.flat_model import CallSpec, FlatModel, call_spec
from tokexport.exporter.eager.pixel_model import PixelModel
from tokexport.exporter.errors import InputError, UsageError
from tokexport.exporter.inputs.pictures import picture_input, require_size
from tokexport.exporter.source import Source
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.pictures.preprocessing import Preprocessing

Config = TypeVar("Config", bound=InputConfig)


def embedded(source: Source, config: Config, asked: str) -> tuple[Source, Config]:
    """Returns a source that takes pixels (N, H, W, 3) uint8, and the options of its inputs.

    Args:
        source: The model, as it was read or reduced.
        config: Its inputs, as the model without the steps takes them.
        asked: What goes into the artifact: ``normalise``, or the size of the pictures, ``480x640``.

    Raises:
        UsageError: The model takes no pictures alone, nothing says its preprocessing, or a part of
            it cannot be done exactly.
        PreprocessingError: Not all steps are known.
    """
    model = eager_form(source.model)
    if config.constants:
        raise UsageError(
            "--embed-preprocess goes with a model of one input, and --constant fixes another.",
            fix="Leave one of them out.",
        )
    args, kwargs = example_call(source, config, {})
    spec = call_spec(model, args, kwargs)
    specs = tuple(
        TensorSpec(name, tuple(one.shape), numpy_name(name, one))
        for name, one in zip(spec.names, spec.examples, strict=True)
    )
    left = _left(source, config, specs, asked)
    batch = config.batch or specs[0].shape[0]
    pixels = torch.zeros(batch, *left.size, 3, dtype=torch.uint8)
    wrapped = dataclasses.replace(
        source,
        model=PixelModel(model, spec, left),
        example_args=(pixels,),
        example_kwargs={},
        input_shapes=None,
        preprocessing=left,
    )
    return wrapped, dataclasses.replace(config, input_shape=None, preprocess=None)


def over_pixels(unreduced: FlatModel, source: Source, spec: CallSpec) -> FlatModel:
    """Returns the model without its reduction, on pixels as a source's model takes them.

    Args:
        unreduced: The model on flat inputs as it was read.
        source: What ``embedded`` returned.
        spec: How the model of that source is called.
    """
    assert isinstance(source.model, PixelModel)
    assert source.preprocessing is not None
    return FlatModel(PixelModel(unreduced.model, unreduced.spec, source.preprocessing), spec)


def _left(
    source: Source, config: InputConfig, specs: tuple[TensorSpec, ...], asked: str
) -> Preprocessing:
    """Returns the steps that are left to the runner, the others embedded."""
    spec = picture_input(specs)
    if spec.dtype != "float32":
        raise InputError(
            f"The model takes bytes already: {spec}.",
            fix="Leave --embed-preprocess out: its forward does the steps itself.",
        )
    steps = picture_options(source, config).steps(specs)
    if steps is None:
        raise UsageError(
            "Nothing says how a picture becomes the input of this model.",
            where=f"It takes {spec}.",
            fix="Pass the steps that it was trained with: --preprocess size=224,mean=imagenet",
        )
    steps.check()
    require_size(steps, spec)
    return steps.embedding(parse_embedded(asked))
