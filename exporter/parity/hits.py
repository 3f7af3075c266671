"""Finds the labelled samples that logits classify right; needs no torch."""

from __future__ import annotations

import numpy as np

from tokexport.exporter.errors import InputError
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.inputs.named_arrays import LABELS


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of samples whose largest logit is the label's.

    Args:
        logits: (batches, N, classes), batch after batch; rows beyond the labels are padding.
        labels: (samples,) integers, samples at most batches × N.

    Raises:
        InputError: The output has another shape, or a label names no class of it.
    """
    return float(hits(logits, labels).mean())


def hits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns of which samples (samples,) the largest logit is the label's; see ``accuracy``.

    Raises:
        InputError: The output has another shape, or a label names no class of it.
    """
    if logits.ndim != 3 or logits.shape[0] * logits.shape[1] < len(labels):
        raise InputError(
            f"Labels need an output of shape (N, classes), and it is {logits.shape[1:]}.",
            fix=f"Leave {LABELS!r} out of the inputs, or let the model return class logits.",
        )
    classes = logits.shape[-1]
    if labels.size and int(labels.max()) >= classes:
        row = int(np.argmax(labels >= classes))
        raise InputError(
            f"Label {labels[row]} is no class of an output of {classes} classes.",
            where=f"{LABELS}[{row}]",
            fix=f"Number the classes from 0 to {classes - 1}.",
        )
    chosen = logits.reshape(-1, classes)[: len(labels)].argmax(axis=-1)
    found: np.ndarray = chosen == labels
    return found


def class_warnings(batches: Batches, logits: np.ndarray) -> tuple[str, ...]:
    """Returns a warning where classes were numbered in sorted order, and the model has others.

    Args:
        batches: What the model ran on.
        logits: (…, classes), its first output.
    """
    count = batches.classes_by_place
    if not count or logits.shape[-1] == count:
        return ()
    return (
        f"The {count} classes of the pictures were numbered in sorted order, and the model has "
        f"{logits.shape[-1]}: the accuracy is right only if these are its first {count}. Name the "
        "subfolders by class numbers, or pass the names of all classes with --labels.",
    )
