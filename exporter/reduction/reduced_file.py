"""Reduces the model of a source and saves it as an exported program that torch alone loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokexport.exporter.capture.program_file import program_bytes
from tokexport.exporter.config import ReduceConfig
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import run_reference, tensors_of
from tokexport.exporter.errors import UsageError
from tokexport.exporter.json_values import plain
from tokexport.exporter.progress import Checklist
from tokexport.exporter.reduction.dynamic_export import export_any_batch
from tokexport.exporter.reduction.reduced_source import reduced_source
from tokexport.exporter.reduction.reduction_report import ReductionReport
from tokexport.exporter.source import Source
from tokexport.exporter.system.output_file import check_place, written_whole


@dataclass(frozen=True)
class ReducedFile:
    """The result of ``tokexport reduce``.

    Attributes:
        source: What was reduced.
        output: The exported program.
        inputs: Where the inputs of the agreement come from, a clause.
        samples: How many there were.
        reduction: The reduction, and its cost.
    """

    source: str
    output: Path
    inputs: str
    samples: int
    reduction: ReductionReport

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found


def reduce_to_file(
    source: Source,
    output: Path,
    config: ReduceConfig,
    *,
    force: bool = False,
    progress: Checklist | None = None,
) -> ReducedFile:
    """Writes a program of plain ATen operators with a dynamic batch; the model is left as it was.

    Args:
        source: The model, as it was read.
        output: The file to write, NAME.pt2.
        config: The recipe, and what the model is run on.
        force: Whether a file at ``output`` may be replaced.
        progress: Shows the stages; silent without one.

    Raises:
        UsageError: The recipe, the inputs or the output do not fit.
        ModelNotSupportedError: The model cannot be reduced, or works for one batch only.
        tokexport.graph_passes.reduction.errors.SurgeryError: Its blocks cannot be taken apart.
        GateError: The surgery, or the export, changes what the model computes.
        WriteError: The file cannot be written.
    """
    if output.suffix != ".pt2":
        raise UsageError(
            f"The output is {output.name!r}, and an exported program is written.",
            fix="Name it .pt2: --output model.pt2",
        )
    check_place(output, force)
    checklist = progress or Checklist(Console(stderr=True), enabled=False)
    with checklist:
        with checklist.stage("reduce"):
            reduced = reduced_source(source, config, checklist.counted)
        flat = FlatModel(reduced.source.model, reduced.unreduced.spec)
        with checklist.stage("compare"):
            _, _, batches = prepare(reduced.source, config, checklist.counted)
            use = reduced.compared(run_reference(flat, batches).outputs, batches)
        with checklist.stage("export"):
            program = export_any_batch(flat, tensors_of(next(iter(batches))))
        with checklist.stage("save"):
            held = program_bytes(program)
            with written_whole(output) as partial:
                partial.write_bytes(held)
    return ReducedFile(source.location, output, batches.origin, batches.samples, use)


def render_reduced(done: ReducedFile, console: Console) -> None:
    """Prints the reduction, its cost, and where the program is."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (("inputs", done.inputs), *done.reduction.rows()):
        table.add_row(name, Text(value))
    console.print(table, highlight=False)
    for warning in done.reduction.warnings:
        console.print(Text.assemble(("warning  ", "yellow"), warning), soft_wrap=True)
    said = f"{done.output}  (any batch; torch.export.load needs torch alone)"
    console.print(Text.assemble(("\nprogram  ", "bold"), said), soft_wrap=True)
