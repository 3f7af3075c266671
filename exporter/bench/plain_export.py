"""Exports the model as it is in eager with PyTorch's own exporter."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Final

import torch

from tokexport.exporter.bench.subject import Subject
from tokexport.exporter.build.emit import stable_sort
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.torch_warnings import exporter_silenced, torch_log_silenced

#: The note on an export that needed help.
HELPED: Final = "with tokexport's translation of aten.sort.stable, which torch.onnx.export lacks"
#: The longest reason that is shown.
_LONGEST: Final = 200


def export_plainly(subject: Subject, path: Path) -> str:
    """Writes ``torch.onnx.export(model, args, dynamo=True)`` with its defaults.

    torch translates ``sort`` and not ``sort(stable=True)``, which the models of ``--reduce`` call:
    so that they have something to be held against, an export refused for it is helped with the
    translation of that one operator.

    An export may leave a model broken whose modules share state; that is put back.

    Args:
        subject: The model.
        path: The file to write; its weights lie beside it.

    Returns:
        What to say of it: that it was helped, or nothing.

    Raises:
        Exception: Whatever torch raises where it refuses the model.
    """
    try:
        _export(subject, path, {})
    except Exception as error:
        said = str(first_cause(error))
        if "aten.sort" not in said or "stable" not in said:
            raise
    else:
        return ""
    table = {torch.ops.aten.sort.stable: stable_sort}
    _export(subject, path, {"custom_translation_table": table})
    return HELPED


def _export(subject: Subject, path: Path, options: dict[str, Any]) -> None:
    args, kwargs = subject.arguments
    model = subject.source.model
    with (
        evaluation(model),
        torch.no_grad(),
        warnings.catch_warnings(),
        exporter_silenced(),
        torch_log_silenced(),
    ):
        warnings.simplefilter("ignore")  # what torch says of a model is not what is measured here
        torch.onnx.export(
            model, args, str(path), kwargs=kwargs, dynamo=True, verbose=False, **options
        )


def first_cause(error: BaseException) -> BaseException:
    """Returns the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def reason_of(error: BaseException) -> str:
    """Returns the first cause of an error, in one line."""
    error = first_cause(error)
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    line = (
        f"{type(error).__name__}: {said.splitlines()[0].strip()}" if said else type(error).__name__
    )
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
