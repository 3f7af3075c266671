"""Writes the files of a measurement into a folder: table, JSON and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tokexport.exporter.errors import WriteError
from tokexport.exporter.requirements import require_matplotlib
from tokexport.exporter.system.output_file import check_place, written_whole

_PLOTS: Final = ("png", "svg")
#: Wide enough that no line of a table is broken.
_WIDTH: Final = 200


@dataclass(frozen=True)
class ResultFiles:
    """The files of one measurement: ``NAME.txt``, ``NAME.json`` and, with a plot, its pictures.

    Attributes:
        folder: Where the files go; it is made where it is missing.
        name: What they are called.
        plot: Whether a plot is wanted.
    """

    folder: Path
    name: str
    plot: bool

    def check(self, force: bool) -> None:
        """Refuses, before anything is measured, what could not be written at the end.

        Args:
            force: Whether files of an earlier measurement may be replaced.

        Raises:
            OutputExistsError: A file is there, and no ``force``.
            WriteError: The folder is a file, or cannot be made.
            PackageMissingError: A plot is wanted, and matplotlib is not installed.
        """
        if self.plot:
            require_matplotlib()
        if self.folder.exists() and not self.folder.is_dir():
            raise WriteError("The output is a file.", where=str(self.folder), fix="Pass a folder.")
        if not self.folder.exists():
            check_place(self.folder, force)
            return
        for ending in ("txt", "json", *(_PLOTS if self.plot else ())):
            check_place(self._path(ending), force)

    def write(
        self,
        render: Callable[[Console], None],
        data: Mapping[str, Any],
        draw: Callable[[Path, str], None],
    ) -> list[Path]:
        """Writes the files, each whole or not at all, and returns their paths.

        Args:
            render: Prints the table.
            data: Plain values, for the JSON.
            draw: Draws the plot to a path, as ``png`` or ``svg``.

        Raises:
            WriteError: The disk takes no more, or the folder may not be written to.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise WriteError(
                f"The folder cannot be made: {error.strerror}.",
                where=str(self.folder),
                fix="Pass --output in a folder that you may write to.",
            ) from error
        written = [self._path("txt"), self._path("json")]
        with written_whole(written[0]) as partial, partial.open("w", encoding="utf-8") as file:
            render(Console(file=file, width=_WIDTH, force_terminal=False))
        with written_whole(written[1]) as partial:
            text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")
        for kind in _PLOTS if self.plot else ():
            with written_whole(self._path(kind)) as partial:
                draw(partial, kind)
            written.append(self._path(kind))
        return written

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"
