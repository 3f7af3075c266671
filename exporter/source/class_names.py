"""Reads the names that a model's own configuration has for its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from tokexport.exporter.inputs.class_numbers import ClassNames, once

#: The names that transformers gives classes of which it knows none.
_NO_NAME: Final = re.compile(r"LABEL_\d+")


def class_names(model: nn.Module) -> ClassNames | None:
    """Returns the names of a model's classes; None where its configuration has none.

    A model of transformers has them in its configuration. One of timm with as many classes as
    ImageNet has those of ImageNet: the synsets, n01440764, and their words.
    """
    return _of_transformers(model) or _of_timm(model)


def _of_transformers(model: nn.Module) -> ClassNames | None:
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping):
        return None
    pairs = [(str(name), int(number)) for number, name in names.items()]
    if all(_NO_NAME.fullmatch(name) for name, _ in pairs):
        return None
    return _named(pairs)


def _named(pairs: list[tuple[str, int]]) -> ClassNames:
    """Returns the names that a configuration gives its classes, shown as they are."""
    labels = {number: name for name, number in pairs}
    return ClassNames.of(once(_with_parts(pairs)), "the model's configuration", labels=labels)


def _of_timm(model: nn.Module) -> ClassNames | None:
    config: Any = getattr(model, "pretrained_cfg", None)
    count = getattr(model, "num_classes", None)
    if not isinstance(config, Mapping) or not isinstance(count, int):
        return None
    if config.get("label_names"):
        pairs = [(str(name), number) for number, name in enumerate(config["label_names"])]
        return _named(pairs)
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    labels = {number: info.index_to_description(number) for number in range(count)}
    pairs = [(info.index_to_label_name(number), number) for number in labels]
    pairs += _with_parts([(label, number) for number, label in labels.items()])
    return ClassNames.of(once(pairs), "ImageNet", labels=labels)


def _with_parts(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Adds the parts of names that hold several, ``tench, Tinca tinca``."""
    parts = [(part, number) for name, number in pairs if ", " in name for part in name.split(", ")]
    return [*pairs, *parts]
