"""What a model-local ONNX function takes and gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """The inputs, outputs and attributes of a function.

    Attributes:
        inputs: Name and kind of each input: T a float tensor, I an int64 and B an int8 one.
        outputs: The same of each output.
        attributes: Name and type of each attribute: ``ints`` or ``float``.
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    attributes: tuple[tuple[str, str], ...] = ()
