"""Kills processes that compile a tiny model, and checks what they leave.

Each case forks a process that has imported everything, has it compile or only put a bundle in its
place, and sends a signal: after a time by chance, or at a call of the file system by chance. Then
it looks at what is there, has a new process begin where the next compile would, and looks again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from attacks.forked import (
    ENDING,
    OUTSIDE,
    beside,
    code_of,
    compile_old,
    compile_tiny,
    ended,
    forked,
    read,
    session,
    state_of,
)
from attacks.kinds import Bench, Case, Kind, Outcome, clipped, drawn

#: Which signal ends a process, and how often.
_SIGNALS: Final = {signal.SIGKILL: 12, signal.SIGINT: 2, signal.SIGTERM: 2}
#: Parts of the cases that compile, and that only put a bundle in its place.
_COMPILED: Final = 0.35
#: Calls of the file system, as Python's audit hooks name them.
_CALLS: Final = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.", "os.scandir")
_MOST_CALLS: Final = 60
_INTERRUPTED: Final = 130
#: What an interrupted process may say; only of a bundle that is whole.
_NOTHING_LEFT: Final = "Nothing was left behind."
_WHOLE: Final = "The bundle is whole, at "


class Kills(Kind):
    """Kills while a bundle is made."""

    name: ClassVar[str] = "kills"
    what: ClassVar[str] = (
        "A process that compiles a tiny model, or only puts its bundle in place, with and without "
        "`--force` over an earlier one, is ended by SIGKILL, SIGINT or SIGTERM by chance: after a "
        "time or at a call of the file system. Then there is the old bundle whole, the new one or "
        "none, an interrupted process said which, none goes on, and the next run takes away every "
        "hidden folder."
    )
    planned: ClassVar[int] = 300
    seconds: ClassVar[float] = 120.0
    targets: ClassVar[tuple[str, ...]] = ("ort",)

    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench."""
        return _Bench(folder)


class _Bench(Bench):
    """Kills forked processes.

    Args:
        folder: Where the bundle that is there before lies.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        self.on = f"torch {torch.__version__.partition('+')[0]}"
        shutil.rmtree(folder, ignore_errors=True)
        self._old = compile_old(folder)
        self._took = 0.0

    def honest(self) -> None:
        if self._took:  # its memory is that of other processes
            return
        begin = time.monotonic()
        place = self._old.parent / "honest"
        place.mkdir(exist_ok=True)
        pid = forked(lambda: compile_tiny(place / "out", "--force"), place / "said.txt")
        code = ended(pid, 100.0)
        if code != 0:
            raise RuntimeError(f"An honest compile ended with {code}: {read(place / 'said.txt')}")
        self._took = time.monotonic() - begin

    def case(self, seed: int, index: int, place: Path) -> Case:
        random = drawn("kills", seed, index)
        (number,) = random.choices([*_SIGNALS], [*_SIGNALS.values()])
        force = random.random() < 0.6
        output = place / "outputs" / "out"
        output.parent.mkdir()
        os.environ["TMPDIR"] = str(place / "temporary")
        (place / "temporary").mkdir()
        if force:
            shutil.copytree(self._old, output)
        if random.random() < _COMPILED:
            after = random.random() * 1.05 * self._took
            how, do = "compiling", partial(compile_tiny, output, *(["--force"] if force else []))
            when = f"after {after:.2f} of {self._took:.2f} s"
        else:
            how, do = "putting in place", partial(_put_in_place, self._old, output, force)
            after, when = random.random() * 0.03, ""
            if random.random() < 0.6:
                call, after = random.randrange(_MOST_CALLS), 0.0
                do, when = partial(_killed_at, call, number, do), f"at call {call}"
            when = when or f"after {1e3 * after:.1f} ms"
        what = f"{signal.Signals(number).name} while {how}, {when}{', --force' if force else ''}"
        return Case(what, lambda: self._outcome(place, output, do, number, after, force))

    def _outcome(
        self,
        place: Path,
        output: Path,
        do: Callable[[], int],
        number: int,
        after: float,
        force: bool,
    ) -> Outcome:
        said_at = place / "said.txt"
        pid = forked(do, said_at)
        time.sleep(after)
        if after:
            os.kill(pid, number)
        code = ended(pid, ENDING + self._took)
        if code is None:
            return Outcome("hung", "the process went on")
        if goes_on := session(pid):
            return Outcome("wrong", f"processes go on: {goes_on}")
        said = read(said_at)
        if "Traceback" in said or code == 70:
            return Outcome("raw", clipped(f"exit code {code}: {said}"))
        state, hidden = state_of(output, self._old), beside(output)
        if wrong := _wrong(code, number, said, state, hidden, force):
            return Outcome(
                "wrong", clipped(f"{wrong}; {state}, {hidden}, exit code {code}: {said}")
            )
        anew = ended(forked(lambda: _begin_anew(output), place / "next.txt"), ENDING)
        if anew != 0:
            return Outcome("wrong", clipped(f"the next run: {read(place / 'next.txt')}"))
        left = [path.name for path in (place / "temporary").glob("tokexport-*")]
        then, hidden = state_of(output, self._old), [*beside(output), *left]
        if hidden or then != state and (state, then) != ("aside", "old"):
            return Outcome("wrong", f"after the next run: {then} instead of {state}, {hidden}")
        return Outcome("right", f"exit code {code}, {state}")


def _wrong(code: int, number: int, said: str, state: str, hidden: list[str], force: bool) -> str:
    """Returns what is wrong after a process; '' for nothing."""
    may_be = ("old", "new", "aside") if force else ("none", "new", "old")
    if state not in may_be:
        return "the bundle is gone or damaged"
    if code in (-signal.SIGKILL, OUTSIDE):
        return ""
    if hidden:
        return "folders were left"
    if code == 0:
        return "" if state in ("new", "old") else "it passed without a bundle"
    if code != _INTERRUPTED:
        return f"the signal {number} gave another exit code"
    if not said.strip():  # before the command began
        return "" if force or state == "none" else "it says nothing of its bundle"
    if _WHOLE in said:
        return "" if state != "none" else "it says that a bundle is whole"
    return (
        "" if _NOTHING_LEFT in said and (force or state == "none") else "it does not say the truth"
    )


def _put_in_place(old: Path, output: Path, force: bool) -> int:
    """Writes a bundle of another's files as compile does."""
    import dataclasses

    from tokexport.exporter.build.stage_folder import StageFolder
    from tokexport.exporter.bundle.bundle_folder import BundleWriter
    from tokexport.exporter.cli.parts.messages import report_errors
    from tokexport.exporter.config import compile_config
    from tokexport.runtimes.bundle.manifest_reader import read_manifest

    def write() -> None:
        with report_errors(False):
            config = compile_config("ort", output, {"force": force})
            manifest = dataclasses.replace(read_manifest(old), created="2000-01-01T00:00:00+00:00")
            with BundleWriter(output, force) as bundle, StageFolder(config) as kept:
                (kept.path / "lowered").mkdir()
                for name in manifest.files:
                    shutil.copy(old / name, kept.path / "lowered" / name)
                    shutil.copy(old / name, bundle.path / name)
                bundle.commit(manifest)

    return code_of(write)


def _begin_anew(output: Path) -> int:
    """Begins a compile for the output, and ends it before it writes anything."""
    from tokexport.exporter.build.stage_folder import StageFolder
    from tokexport.exporter.bundle.bundle_folder import BundleWriter
    from tokexport.exporter.config import compile_config
    from tokexport.exporter.system.scratch import scratch_folder

    config = compile_config("ort", output, {"force": True})
    with BundleWriter(output, True), StageFolder(config), scratch_folder():
        pass
    return 0


def _killed_at(call: int, number: int, do: Callable[[], int]) -> int:
    """Does something, and has this process end itself at a call of the file system."""
    seen = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event.startswith(_CALLS):
            seen += 1
            if seen == call:
                os.kill(os.getpid(), number)

    sys.addaudithook(hear)
    return do()


KIND: Final = Kills()
