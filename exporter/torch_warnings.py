"""Silences what torch says about itself while it traces and exports.

Users run with warnings as errors, and cannot fix a deprecation inside torch. And a trace that fails
ends in one message of tokexport, to which torch's log adds nothing.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

#: Category and the beginning of the message, as a regular expression.
_OURS_TO_SILENCE: Final[tuple[tuple[type[Warning], str], ...]] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"The tensor attributes? .* (was|were) assigned during export"),
    (DeprecationWarning, r"`torch\.jit\."),
    (FutureWarning, r"'(onnx|torch\.onnx)\."),
    (DeprecationWarning, r".*onnxscript"),
    (UserWarning, r"# 'dynamic_axes' is not recommended"),
    (UserWarning, r"Detected pickle protocol \d+ in the checkpoint"),
)


@contextmanager
def torch_warnings_silenced() -> Iterator[None]:
    """Ignores the named warnings of torch; every other one stays as it is."""
    with warnings.catch_warnings():
        for category, message in _OURS_TO_SILENCE:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


@contextmanager
def torch_log_silenced() -> Iterator[None]:
    """Keeps torch's log off stderr, and the graph that it prints when a trace fails.

    Only torch's own handlers are silenced: what the user's model prints or logs is shown.
    """
    import torch.export._trace as trace

    def drop(record: logging.LogRecord) -> bool:
        return False

    handlers = _torch_handlers()
    for handler in handlers:
        handler.addFilter(drop)
    names: dict[str, Any] = vars(trace)
    names["print"] = _print_nothing  # stands before the builtin in that one module
    try:
        yield
    finally:
        names.pop("print", None)
        for handler in handlers:
            handler.removeFilter(drop)


@contextmanager
def exporter_silenced() -> Iterator[None]:
    """Keeps the ONNX exporter's own progress lines off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _torch_handlers() -> list[logging.Handler]:
    """Returns the handlers that torch gave to its own loggers."""
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger)
    ]
    return [handler for logger in loggers for handler in logger.handlers]


def _print_nothing(*values: object, **options: object) -> None:
    """Stands in for print."""
