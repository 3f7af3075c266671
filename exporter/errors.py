"""Defines the errors of ``exporter``: what happened, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

#: What a user can do about a count that depends on the data.
FIXED_COUNTS: Final = (
    "Make the count a constant (top-k with a fixed k in place of a threshold, of nonzero or of "
    ".item()): keep = scores.topk(K).indices; live = mask.gather(1, keep); then add "
    "torch.where(live, 0.0, -inf) to the attention logits and count only live rows in means."
)


class ExporterError(Exception):
    """An error that the user can fix; it is shown without a traceback.

    Args:
        what: What happened, one sentence.
        where: The file, node, input or source line it happened at; empty if unknown.
        fix: What the user can do now; empty only when nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        """Returns the parts that are not empty, a line each."""
        return "\n".join(part for part in (self.what, self.where, self.fix) if part)


class UsageError(ExporterError):
    """An option, a file or an input is not what the command needs."""


class SourceError(UsageError):
    """The source cannot be read as a model."""


class UntrustedPickleError(SourceError):
    """Loading the source would run code that came with it."""


class InputError(UsageError):
    """The inputs do not fit the model: name, shape, dtype, or a value that is not finite."""


class ModelNotSupportedError(ExporterError):
    """The model cannot become a static graph: an operator, a shape, a count depending on data."""


class DataDependentError(ModelNotSupportedError):
    """A number of tokens, or a branch, depends on the values of the input."""


class EmptyOutputError(ModelNotSupportedError):
    """The model returns a tensor without a number in it."""


class NotRepeatableError(ModelNotSupportedError):
    """The model gives different outputs on the same input, so nothing can be proven equal to it."""


class NotFiniteError(ModelNotSupportedError):
    """The model's own outputs hold NaN on these inputs."""


class WriteError(ExporterError):
    """The result cannot be written: no space, no permission."""


class StandardOutputError(WriteError):
    """Standard output cannot be written, for example because its disk is full."""


class OtherModelError(UsageError):
    """A source takes or gives something else than the bundle that is held to it."""


class OutputExistsError(UsageError):
    """The output folder exists and may not be replaced."""


class PackageMissingError(ExporterError):
    """A package that this step needs is not installed."""


class GateError(ExporterError):
    """A gate failed: parity, speed, or a run that was required.

    ``report`` holds what was found until then, an ``exporter.report.Report``; None until a compile
    fills it in. ``batch`` is that of the artifact that failed, where a bundle was to have several.
    """

    report: Any = None
    batch: int | None = None


class InternalError(ExporterError):
    """A bug of tokexport, never the user's mistake."""


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Joins names for a message, at most ``limit`` of them, with the number left out."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
