"""Finds the output that scores the classes of a model, and the names that go into its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inputs.class_numbers import one_line, read_class_names
from tokexport.exporter.parity.hits import class_warnings
from tokexport.exporter.source.class_names import class_names
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.class_scores import (
    INDEPENDENT,
    LOGITS,
    MOST_BYTES,
    MOST_CHARACTERS,
    MOST_LABELS,
    PROBABILITIES,
    ClassScores,
)

#: What the outputs of models of transformers call the scores.
_LOGITS: Final = "logits"
#: How far the sum of a picture's probabilities may be off 1.
_OFF_ONE: Final = 1e-3
_SIGMOIDS: Final = (torch.ops.aten.sigmoid.default, torch.ops.aten.hardsigmoid.default)
#: What leaves the numbers of an output as they are.
_SAME_NUMBERS: Final = frozenset(
    ("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "clone", "select")
    + ("slice", "contiguous", "alias", "detach", "_to_copy", "lift_fresh_copy")
)


@dataclass(frozen=True)
class BundledClasses:
    """What a manifest says of a model's classes.

    Attributes:
        scores: The output that scores them; None where none does.
        labels: The name of every class; None where nothing says them.
        warnings: What a reader has to know, a sentence each.
    """

    scores: ClassScores | None
    labels: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


def bundled_classes(
    model: nn.Module,
    graph: GraphModule,
    outputs: Mapping[str, Array],
    batches: Batches,
    asked: Path | None,
) -> BundledClasses:
    """Finds the output that scores the classes of a model, and their names.

    Names come from the file that the user gives, else from the model's configuration, else from
    the folders of pictures, where these are as many as the classes.

    Args:
        model: The model, as it was read.
        graph: Its trace, with the outputs in their order.
        outputs: What it gives in eager, (batches, N, …) by name.
        batches: What it ran on.
        asked: The file of names that the user gives; None without one.
    """
    names = class_names(model) if asked is None else read_class_names(asked)
    labels: tuple[str, ...] = () if names is None else names.labels
    size = batches.arrays[batches.names[0]].shape[1:2]
    name = _scores_output(model, outputs, size, len(labels))
    if name is None:
        said = () if asked is None else (f"{asked.name} names classes, and no output scores them.",)
        return BundledClasses(None, None, said)
    scores = ClassScores(name, _form(model, graph, outputs, name))
    count = outputs[name].shape[-1]
    if labels and len(labels) != count:
        said = () if asked is None else (_other_count(asked, len(labels), count),)
        return BundledClasses(scores, None, said)
    if not labels:
        labels = _of_folders(batches, outputs, count)
    return _shortened(scores, labels)


def _other_count(asked: Path, labels: int, count: int) -> str:
    return (
        f"{asked.name} names {labels} classes, and the model has {count}: the bundle holds no "
        "names of them."
    )


def _scores_output(
    model: nn.Module, outputs: Mapping[str, Array], size: tuple[int, ...], labels: int
) -> str | None:
    """Returns the output that scores the classes; None where none does, or several might."""
    fits = {
        name: array
        for name, array in outputs.items()
        if array.ndim == 3 and array.shape[1:2] == size and array.shape[-1] > 1
        if np.issubdtype(array.dtype, np.floating)
    }
    if isinstance(getattr(getattr(model, "config", None), "id2label", None), Mapping):
        return _LOGITS if _LOGITS in fits else None  # every configuration names two classes
    if getattr(model, "num_classes", None) == 0 and hasattr(model, "pretrained_cfg"):
        return None  # timm without a head: its output is features
    as_many = [name for name, array in fits.items() if array.shape[-1] == labels]
    if len(as_many) == 1:
        return as_many[0]
    if _LOGITS in fits or len(fits) == 1:
        return _LOGITS if _LOGITS in fits else next(iter(fits))
    first = next(iter(outputs), None)
    return first if first in fits else None


def _form(model: nn.Module, graph: GraphModule, outputs: Mapping[str, Array], name: str) -> str:
    """Returns what the numbers of an output are: a softmax or a sigmoid may be in the model."""
    values = outputs[name].astype(np.float64)
    sums = values.sum(axis=-1)
    if (values >= 0).all() and np.abs(sums - 1).max() <= _OFF_ONE:
        return PROBABILITIES
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if kind == "multi_label_classification" or _ends_in_sigmoid(graph, [*outputs].index(name)):
        return INDEPENDENT
    return LOGITS


def _ends_in_sigmoid(graph: GraphModule, place: int) -> bool:
    """Returns whether a sigmoid gives the numbers of an output."""
    (given,) = graph.graph.output_node().args
    nodes = list(given) if isinstance(given, list | tuple) else [given]
    node: Any = nodes[place] if place < len(nodes) else None
    while isinstance(node, Node) and _operator(node) in _SAME_NUMBERS:
        node = node.args[0]
    return isinstance(node, Node) and node.target in _SIGMOIDS


def _operator(node: Node) -> str:
    return str(getattr(node.target, "_opname", ""))


def _of_folders(batches: Batches, outputs: Mapping[str, Array], count: int) -> tuple[str, ...]:
    """Returns the names of the folders of pictures, where every class has one of its own."""
    named = {number: name for name, number in batches.classes.items()}
    if sorted(named) != list(range(count)) or len(batches.classes) != count:
        return ()
    if class_warnings(batches, next(iter(outputs.values()))):
        return ()
    labels = tuple(named[number] for number in range(count))
    return () if all(label.isdecimal() for label in labels) else labels


def _shortened(scores: ClassScores, labels: tuple[str, ...]) -> BundledClasses:
    """Returns the names in a line each, and short; none where they are too many."""
    lines = tuple(one_line(label) for label in labels)
    short = tuple(
        line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"
        for line in lines
    )
    size = sum(len(line.encode("utf-8", "backslashreplace")) for line in short)
    if len(short) > MOST_LABELS or size > MOST_BYTES:
        said = f"The names of the {len(short)} classes are too large for a manifest: none is in it."
        return BundledClasses(scores, None, (said,))
    return BundledClasses(scores, short or None)
