"""Finds the first node of an ONNX file that gives something else on the right inputs.

Every value that the stage before computes under the same name is given to its readers, and
computed beside: then an error shows at the node that makes it, and nowhere behind. A node is blamed
where rounding does not explain its error, and where the outputs of the model come nearer to the
right ones once its right value is given to its readers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from tokexport.exporter.graph_values.given_values import (
    computed_values,
    expose,
    give,
    maker_of,
    operator_of,
    part_for,
)
from tokexport.exporter.graph_values.local_errors import (
    Difference,
    compared,
    distance,
    moved_inputs,
)
from tokexport.exporter.graph_values.run_model import run_each
from tokexport.exporter.graph_values.suspect import Suspect, Values
from tokexport.graph_passes.onnx_passes.graph.source_lines import node_name
from tokexport.runtimes.arrays import Array

#: How much nearer to the right outputs a right value has to bring them, as a share of the error.
NEARER: Final = 0.95
#: For how many nodes that is tried.
_TRIED: Final = 12


class OnnxSearch:
    """Looks for the node of an ONNX file that is off.

    Args:
        path: The file.
        inputs: The inputs of the model, by batch.
        known: What the stage before computes, by batch.
        outputs: The right outputs, by batch.
        precision: What the file computes in.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Values],
        known: Sequence[Values],
        outputs: Sequence[Values],
        precision: str = "fp32",
    ) -> None:
        self._path, self._precision = path, precision
        self._inputs, self._known, self._outputs = inputs, known, outputs

    def first(self) -> Suspect | None:
        """Returns the first node that is off and matters; None if none is."""
        suspects = [*self._suspects()]
        for suspect in suspects[:_TRIED]:
            if self._matters(suspect):
                return suspect
        return suspects[0] if suspects else None

    def _suspects(self) -> Iterator[Suspect]:
        """Yields the nodes that are off, in the order of the graph."""
        flagged: dict[str, int] = {}  # the batch that each is off in
        order: list[str] = []
        for batch, (inputs, known) in enumerate(zip(self._inputs, self._known, strict=True)):
            model = ir.load(self._path)
            order = [name for name in computed_values(model) if name in known]
            named = give(model, known)
            model.graph.outputs.clear()
            expose(model, order)
            fed = {**inputs, **{given: known[name] for name, given in named.items()}}
            (found,) = run_each(model, [fed])
            for name in order:
                if name not in flagged and self._compared(known[name], found[name]).is_fault:
                    flagged[name] = batch
        for name in order:
            if name in flagged and (suspect := self._confirmed(name, flagged[name])):
                yield suspect

    def _confirmed(self, name: str, batch: int) -> Suspect | None:
        """Runs the nodes before a value, its inputs moved too; None if that explains it."""
        known = {**self._known[batch], **self._inputs[batch]}
        model = ir.load(self._path)
        maker = maker_of(model, name)
        operator, node = operator_of(maker), node_name(maker)
        part = part_for(model, [name], self._known[batch])
        inputs = part.fed(known)
        runs = run_each(part.model, moved_inputs(inputs, self._precision))
        moved = [one[name] for one in runs]
        difference = self._compared(known[name], moved[0], moved)
        if not difference.is_fault:
            return None
        return Suspect(
            value=name,
            node=node,
            operator=operator,
            nodes=part.nodes,
            difference=difference,
            part=part,
            inputs=inputs,
            expected={name: known[name]},
            found={name: moved[0]},
            why="On the right inputs it gives something else than the stage before it.",
            fed=self._inputs[batch],
        )

    def _compared(self, expected: Array, found: Array, moved: Sequence[Array] = ()) -> Difference:
        return compared(expected, found, moved, self._precision)

    def _matters(self, suspect: Suspect) -> bool:
        """Returns whether the outputs come nearer where the right value is given."""
        name = suspect.value
        for inputs, known, right in zip(self._inputs, self._known, self._outputs, strict=True):
            (before,) = run_each(ir.load(self._path), [inputs])
            if name in right:
                return distance({name: right[name]}, before) > 0
            model = ir.load(self._path)
            named = give(model, {name: known[name]})
            if not named:
                return False
            (healed,) = run_each(model, [{**inputs, named[name]: known[name]}])
            if distance(right, healed) <= NEARER * distance(right, before):
                return True
        return False
