"""Keeps the graph of every stage for comparison and, with --keep-stages, for the user."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx_ir as ir
from torch.export import ExportedProgram

from tokexport.exporter.backends.known import REFERENCE
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.capture.program_file import program_bytes
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.errors import WriteError
from tokexport.exporter.json_values import plain
from tokexport.exporter.system.output_folder import check_folder_place
from tokexport.exporter.system.scratch import RANDOM, HeldFolder, held_signals, sweep
from tokexport.graph_passes.onnx_passes.graph.source_lines import lines_by_node
from tokexport.graph_passes.pass_report import PassReport
from tokexport.runtimes.errors import (
    BuildError,
    OperatorRefusedError,
    RunError,
    RuntimeMissingError,
)

#: The only names that a folder of kept stages holds; replays lay in ``told`` before.
_STAGES = {
    *("captured.pt2", "rewritten.pt2", "passes.json"),
    *("emitted", "lowered", "replay", "told"),
}
_OF_A_BATCH = re.compile(r"batch-\d+")


def _of_no_stage(found: set[str]) -> list[str]:
    """Returns those files of a folder that no compile keeps there."""
    tops = {name: name.partition("/")[0] for name in found}
    return [
        name for name, top in tops.items() if top not in _STAGES and not _OF_A_BATCH.fullmatch(top)
    ]


class StageFolder:
    """A folder beside the output with one artifact per stage; it goes unless it is to be kept.

    ::

        OUTPUT.stages/captured.pt2, rewritten.pt2     loads with torch.export.load; the operators
                                                      of the second need tokexport
        OUTPUT.stages/passes.json                     what each pass changed, and left, and why
        OUTPUT.stages/emitted/model.onnx              with functions of domain tokexport
        OUTPUT.stages/lowered/model.onnx              what the target builds from
        OUTPUT.stages/replay                          emitted and lowered anew, with decisions as
                                                      inputs; only where a stage failed without
        OUTPUT.stages/batch-8                         the same of a further artifact
    """

    def __init__(self, config: CompileConfig) -> None:
        self._final = config.stages_folder
        self._keep = config.keep_stages
        self._force = config.force
        self._lines: dict[str, str] = {}
        self._path: Path | None = None
        self._held: HeldFolder | None = None

    def __enter__(self) -> Self:
        """Makes the folder.

        Raises:
            OutputExistsError: Kept stages of an earlier compile are there, and no ``force``.
            WriteError: The folder cannot be made.
        """
        try:
            if self._keep:
                self._make_room()
                self._final.mkdir()
                self._path = self._final
            else:
                parent, prefix = self._final.parent, f".{self._final.name}-"
                sweep(parent, f"{re.escape(prefix)}{RANDOM}")
                self._held = HeldFolder(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=parent)))
                self._path = self._held.path
        except OSError as error:
            raise WriteError(
                f"The stages cannot be written: {error.strerror}.",
                where=str(self._final),
                fix="Pass --output on a disk with room, in a folder you may write to.",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes the folder unless it is to be kept.

        An interrupted compile leaves nothing; nor does one that filled the disk.
        """
        ended = error is not None and not isinstance(error, Exception)
        if self._held is not None:
            self._held.take_away()
        elif ended or isinstance(error, OSError | WriteError):
            with held_signals():
                shutil.rmtree(self.path, ignore_errors=True)

    def _make_room(self) -> None:
        """Removes the kept stages of an earlier compile, and never anything else."""
        check_folder_place(self._final, "stages", self._force, _of_no_stage)
        if self._final.exists():
            shutil.rmtree(self._final)

    def within(self, name: str) -> Self:
        """Returns a folder in this one, for the stages of a further artifact of the same bundle."""
        inner = copy.copy(self)
        inner._path, inner._held, inner._lines = self.path / name, None, {}
        inner.path.mkdir()
        return inner

    @property
    def path(self) -> Path:
        """The folder while it is open."""
        assert self._path is not None
        return self._path

    @property
    def lines(self) -> Mapping[str, str]:
        """The user's line of every node of the stages so far, by its name and its values'."""
        return self._lines

    def save_program(self, stage: str, program: ExportedProgram) -> None:
        """Writes a traced graph where the user asked for the stages."""
        if not self._keep:
            return
        (self.path / f"{stage}.pt2").write_bytes(program_bytes(program))

    def save_passes(self, reports: Sequence[PassReport]) -> None:
        """Writes what the passes changed so far, if the user keeps the stages."""
        if not self._keep:
            return
        text = json.dumps(plain(reports), indent=2, ensure_ascii=False)
        path = self.path / "passes.json"
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    def save_onnx(self, stage: str, model: ir.Model) -> Path:
        """Writes an ONNX graph, which the next comparison runs from, and returns its path."""
        self._lines |= lines_by_node(model)
        folder = self.path / stage
        folder.mkdir()
        path = folder / REFERENCE.artifact
        save_onnx(model, path)
        return path

    @contextmanager
    def explain(self, lowered: Path | None = None) -> Iterator[None]:
        """Adds the user's line, and where ``lowered`` was left, to a failure at a node.

        Args:
            lowered: The ONNX file that the user gets where the target's runtime is missing.
        """
        try:
            yield
        except OperatorRefusedError as error:
            line = self._lines.get(error.node, "")
            place = error.where.replace(str(lowered), "the lowered ONNX")
            raise OperatorRefusedError(
                error.what,
                where=f"{place}, from {line}" if line else place,
                fix="Write that line with operators that the target has, or compile for another.",
                node=error.node,
                operator=error.operator,
            ) from error
        except (BuildError, RunError) as error:
            line = self._lines.get(error.node, "")
            if not line or line in error.where:
                raise
            located = copy.copy(error)
            located.where = f"{error.where}\nFrom {line}"
            raise located from error
        except RuntimeMissingError as error:
            if lowered is None:
                raise
            where = lowered
            if not self._keep:
                left = Path(tempfile.mkdtemp(prefix=f"{self._final.name}-", dir=self._final.parent))
                shutil.copytree(lowered.parent, left, dirs_exist_ok=True)
                where = left / lowered.name
            raise RuntimeMissingError(
                f"{error.what} The ONNX was written to {where}.", where=error.where, fix=error.fix
            ) from error
