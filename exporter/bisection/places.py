"""Finds the block and the user's line of a value, whatever stage it is of.

The traced graph knows both. The stages behind it keep the names of values that they leave; another
value has the place of the first one behind it that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from torch.export import ExportedProgram

from tokexport.exporter.graph_values.given_values import computed_values
from tokexport.graph_passes.analysis.blocks import Blocks, attention_blocks
from tokexport.graph_passes.analysis.macs import count_macs
from tokexport.graph_passes.onnx_passes.graph.source_lines import lines_by_node
from tokexport.graph_passes.stack_traces import source_line


@dataclass(frozen=True)
class Place:
    """Where a value comes from.

    Attributes:
        block: The block that it is computed in, a path as ``blocks.3``; '' outside of all.
        line: The user's innermost line, ``file:line, in function: code``; '' where not known.
    """

    block: str = ""
    line: str = ""


class Places:
    """The places of values, by name.

    Args:
        programs: Traced programs, the earliest last.
    """

    def __init__(self, programs: Iterable[ExportedProgram]) -> None:
        self._known: dict[str, Place] = {}
        for program in programs:
            counted = count_macs(program)
            blocks = Blocks(program, attention_blocks(program, counted))
            for node in program.graph.nodes:
                if node.op != "call_function":
                    continue
                position = blocks.block_of(node)
                block = "" if position is None else blocks.paths[position].removeprefix("model.")
                self._known.setdefault(node.name, Place(block, source_line(node)))

    def of(self, name: str) -> Place:
        """Returns the place of a value of a traced graph."""
        return self._known.get(name, Place())

    def of_model(self, model: ir.Model, lines: Mapping[str, str] | None = None) -> dict[str, Place]:
        """Returns the places of the values of an ONNX model.

        Args:
            model: The model.
            lines: The lines of its nodes, where it has lost them.
        """
        known = lines_by_node(model) if lines is None else lines
        found: dict[str, Place] = {}
        behind = Place()
        for name, value in reversed(computed_values(model).items()):
            node = value.producer()
            place = self._known.get(name)
            line = known.get(name) or (known.get(node.name or "") if node else "") or ""
            if place is None:
                place = Place(behind.block, line or behind.line)
            elif line and not place.line:
                place = Place(place.block, line)
            found[name] = behind = place
        return found
