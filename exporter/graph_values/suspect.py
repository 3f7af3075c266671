"""Describes the node that is blamed, with what it takes, gives and should give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokexport.exporter.graph_values.given_values import Part
from tokexport.exporter.graph_values.local_errors import Difference
from tokexport.runtimes.arrays import Array

#: The values of one batch, by name.
Values = Mapping[str, Array]


@dataclass(frozen=True)
class Suspect:
    """A value whose error is not explained by those of what it is computed from.

    Attributes:
        value: Its name.
        node: The node that gives it.
        operator: The operator of the node.
        nodes: The nodes between it and the values that are known before it, itself among them.
        difference: How far it is from what it should be.
        part: These nodes as a model; None where they cannot be written as one.
        inputs: What the part takes, by the name of its input.
        expected: What it should give, by name.
        found: What it gives there, by name.
        why: What singles it out, a sentence.
        fed: The inputs of the whole model that it was seen on.
        native: Whether the native kernels take part.
    """

    value: str
    node: str
    operator: str
    nodes: tuple[str, ...]
    difference: Difference
    part: Part | None
    inputs: Values
    expected: Values
    found: Values
    why: str
    fed: Values
    native: bool = False
