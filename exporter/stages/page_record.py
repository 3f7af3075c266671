"""Gathers in the stages of a compile what its page shows beside the report.

None of it is part of the proof, so whatever fails here is noted, and ends no compile.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx_ir as ir
from torch.export import ExportedProgram

from tokexport.exporter.backends.backend import PROFILED_RUNS
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.distribution import Distribution
from tokexport.exporter.report.block_parts import BlockCounts
from tokexport.exporter.report_page.drawing.drawn_tokens import DrawnTokens, drawn_tokens
from tokexport.exporter.report_page.page_data import BlockTimes, Failure, PageData
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.node_times import NodeTime

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
#: What runtimes and passes add to the name of a node.
_ADDED: Final = re.compile(r"(_nchwc|/.*)$")


class PageRecord:
    """What a page shows, as far as the stages have come.

    Args:
        enabled: Whether anything is gathered at all.

    Attributes:
        enabled: Whether anything is gathered, and a page is written.
        errors: How the errors are distributed, by stage and output.
    """

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled
        self._counts: BlockCounts | None = None
        self._blocks: dict[str, int | None] = {}
        self._times: BlockTimes | None = None
        self._drawn = DrawnTokens(None)
        self._why_not: dict[str, str] = {}
        self.errors: Mapping[str, Mapping[str, Distribution]] = {}

    def captured(self, program: ExportedProgram, images: int) -> None:
        """Counts what each block costs, before the program is rewritten in place."""
        with self._noted("blocks"):
            if self.enabled:
                self._counts = BlockCounts(program, images)

    def rewritten(self, batches: Batches, program: ExportedProgram) -> None:
        """Finds what was recognised, and which token holds which patch of some samples."""
        with self._noted("blocks"):
            if self._counts is not None:
                self._counts.look(program)
        with self._noted("tokens"):
            if self.enabled:
                self._drawn = drawn_tokens(program, batches)

    def emitted(self, model: ir.Model) -> None:
        """Remembers which block each node of the emitted graph belongs to."""
        if self._counts is None:
            return
        for node in model.graph:
            scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
            path = str(scopes[-2]) if len(scopes) > 1 else ""
            block = self._counts.position_of(path)
            for name in (node.name, *(value.name for value in node.outputs)):
                if name:
                    self._blocks[name] = block

    def timed(self, config: CompileConfig, folder: Path, batch: Mapping[str, Array]) -> None:
        """Times the nodes of the artifact, and puts them to their blocks."""
        if self._counts is None:
            return
        with self._noted("times"):
            backend = config.backend
            artifact = folder / backend.artifact
            nodes = backend.node_times(artifact, batch, config.precision, config.threads)
            if nodes is None:
                self._why_not["times"] = f"{backend.title} says no times of single nodes"
            elif not self._counts.paths:
                self._why_not["times"] = "the model has no repeated blocks that hold attention"
            else:
                self._times = self._by_block(nodes, len(self._counts.paths))

    def data(self, failure: Failure | None = None) -> PageData:
        """Returns what was gathered.

        Args:
            failure: Why the compile failed; None where it did not.
        """
        parts = getattr(self._counts, "parts", ())
        return PageData(
            blocks=parts[:-1],
            outside=parts[-1] if parts else None,
            times=self._times,
            times_why_not=self._why_not.get("times", ""),
            tokens=self._drawn.tokens,
            tokens_why_not=self._why_not.get("tokens", self._drawn.why_not),
            pictures=self._drawn.pictures,
            errors={stage: dict(outputs) for stage, outputs in self.errors.items()},
            failure=failure,
        )

    @contextmanager
    def _noted(self, part: str) -> Iterator[None]:
        """Notes why a part of the page is missing, where something raises."""
        try:
            yield
        except Exception as error:  # a page is worth no failed compile
            said = str(error).partition("\n")[0]
            self._why_not[part] = f"finding it failed ({type(error).__name__}: {said})"
            if part == "blocks":
                self._counts = None

    def _by_block(self, nodes: Sequence[NodeTime], count: int) -> BlockTimes:
        """Adds up nodes by block; what runs between two blocks counts with the one before it."""
        names = [_ADDED.sub("", node.name) for node in nodes]
        own = [self._blocks.get(name) for name in names]
        last = max((i for i, block in enumerate(own) if block is not None), default=-1)
        block_ms: list[float | None] = [None] * count
        outside = unnamed = 0.0
        current: int | None = None
        for i, node in enumerate(nodes):
            block = own[i]
            current = None if i > last else current if block is None else block
            if names[i] not in self._blocks and current is not None:
                unnamed += node.ms
            if current is None:
                outside += node.ms
            else:
                block_ms[current] = (block_ms[current] or 0.0) + node.ms
        total = sum(node.ms for node in nodes) or 1.0
        return BlockTimes(tuple(block_ms), outside, PROFILED_RUNS, unnamed / total)
