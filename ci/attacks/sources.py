"""Attacks with crafted sources: files, folders, names and recipes that a user might be given.

Each is loaded as ``tokexport compile`` does it, without ``--trust-pickle``, while a hook listens
for what no source may do: reach the network, start a program, write outside of the temporary
folder, or import a module that is not installed. Factories are the user's own code, which runs.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import ClassVar, Final

from attacks.audit import Listener
from attacks.crafted_arrays import ARRAYS
from attacks.crafted_folders import FOLDERS
from attacks.crafted_names import NAMES, RECIPES
from attacks.crafted_pickles import CHECKPOINTS, MODULES
from attacks.crafted_programs import PROGRAMS
from attacks.honest_sources import Crafted, Honest
from attacks.kinds import Bench, Case, Kind, Outcome, clipped, drawn

#: How often each kind of source is drawn.
_SHARES: Final = (
    *((CHECKPOINTS, 8), (MODULES, 3), (PROGRAMS, 5), (FOLDERS, 6)),
    *((NAMES, 3), (RECIPES, 3), (ARRAYS, 4)),
)


class Sources(Kind):
    """Crafted sources."""

    name: ClassVar[str] = "sources"
    what: ClassVar[str] = (
        "Checkpoints, pickled modules, exported programs, transformers folders, names, recipes and "
        "files of inputs that are damaged, or crafted to run code, reach the network, write files, "
        "take memory without end or never end; none may, and each is refused clearly, or loaded."
    )
    planned: ClassVar[int] = 1000
    targets: ClassVar[tuple[str, ...]] = ("loading",)

    def prepare(self, folder: Path) -> None:
        """Saves the honest sources that are not there."""
        Honest(folder).save()

    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench."""
        return _Bench(Honest(folder))


class _Bench(Bench):
    """Loads sources.

    Args:
        honest: The sources that are damaged.
    """

    def __init__(self, honest: Honest) -> None:
        import torch
        from helpers.torchvision_ops import define_torchvision_operators

        define_torchvision_operators()
        self.on = f"torch {torch.__version__.partition('+')[0]}"
        self._honest = honest
        self._listener = Listener(Path(tempfile.gettempdir()))

    def honest(self) -> None:
        for one in self._honest.each():
            said = self._handed(one)
            if said is not None:
                raise RuntimeError(f"An honest source was refused: {one}: {said}")

    def case(self, seed: int, index: int, place: Path) -> Case:
        random = drawn("sources", seed, index)
        ways = [ways for ways, _ in _SHARES]
        (chosen,) = random.choices(ways, [share for _, share in _SHARES])
        crafted: Crafted = random.choice(chosen)(random, place, self._honest)
        return Case(crafted.what, lambda: self._outcome(crafted))

    def _outcome(self, crafted: Crafted) -> Outcome:
        from tokexport.exporter.cli.parts.messages import describe
        from tokexport.exporter.exit_codes import ExitCode
        from tokexport.runtimes.printable import printable

        with self._listener.listening() as heard, contextlib.chdir(tempfile.gettempdir()):
            error = self._handed(crafted)
        if heard and not crafted.own:
            return Outcome("wrong", clipped(f"{'; '.join(heard)}; then {error}"))
        if error is None:
            return Outcome("right")
        end = describe(error)
        parts = end["error"]
        said = "\n".join(part for part in (parts["what"], parts["where"], parts["fix"]) if part)
        if end["exit_code"] == ExitCode.INTERNAL or not said:
            return Outcome("raw", clipped(f"{type(error).__name__}: {said or error}"))
        if printable(said) != said or len(said) > 20_000:
            return Outcome("raw", clipped(f"{len(said)} characters: {said}"))
        return Outcome("refused", clipped(f"{type(error).__name__}: {said}"))

    def _handed(self, crafted: Crafted) -> BaseException | None:
        """Hands over what was crafted, as the command line does; returns what is raised."""
        from tokexport.exporter.inputs.batches import read_inputs
        from tokexport.exporter.recipe import parse_recipe
        from tokexport.exporter.source import SourceOptions, load_source
        from tokexport.runtimes.bundle.manifest import TensorSpec

        try:
            if crafted.source:
                source = load_source(SourceOptions(crafted.source, **crafted.options))
                if source.kind == "exported-program":
                    source.model(*(source.example_args or ()), **source.example_kwargs)
            if crafted.recipe is not None:
                parse_recipe(crafted.recipe)
            if crafted.inputs is not None:
                read_inputs(crafted.inputs, (TensorSpec("x", (2, 4), "float32"),), 2)
        except BaseException as error:
            return error
        return None


KIND: Final = Sources()
