"""Compiles under limits: no rights, full disks, little memory, few files, one core, little time.

Each case forks a process that has imported everything, limits it, and has it compile a tiny model,
or run or verify its bundle. It may be slower or refused clearly; it is never wrong, leaves never
half a bundle, and shows no traceback.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar, Final

import numpy as np
from attacks import constraints
from attacks.forked import (
    ENDING,
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

_MB: Final = 1 << 20
#: How much longer than an honest compile one may take on less.
_SECONDS: Final = 60.0
#: Exit codes that are of the project's table, and no bug.
_CODES: Final = (0, 1, 2, 3, 4, 5, 6, 130)


class Limits(Kind):
    """Compiles under limits."""

    name: ClassVar[str] = "limits"
    what: ClassVar[str] = (
        "A compile, a run or a verification of a tiny model with a home, a temporary folder or an "
        "output that may not be written, a disk that is read-only or full at some stage, limits on "
        "memory, sizes of files, open files or time, one core, or a standard output that takes "
        "nothing."
    )
    planned: ClassVar[int] = 120
    length: ClassVar[int] = 40
    seconds: ClassVar[float] = 200.0
    spare_mb: ClassVar[int] = 500
    targets: ClassVar[tuple[str, ...]] = ("ort",)

    def open(self, target: str, folder: Path) -> Bench:
        """Returns the bench."""
        return _Bench(folder)


@dataclass
class _Scene:
    """The folders of a process, and its limits.

    Attributes:
        place: The folder of the case, with ``outputs``, ``home`` and ``temporary`` in it.
        what: What is taken, for the table.
        take: Takes it, in the process.
        mounts: Disks to take away behind it.
        after: Seconds after which it is asked to end.
        may_die: Whether a signal of the system may end it.
    """

    place: Path
    what: str = ""
    take: Callable[[], None] = lambda: None
    mounts: list[Path] = field(default_factory=list)
    after: float | None = None
    may_die: bool = False

    @property
    def output(self) -> Path:
        """The path of the bundle."""
        return self.place / "outputs" / "out"


def _modes(random: Random, scene: _Scene) -> None:
    """Removes the right to write, or to read, a folder."""
    names = random.choice((("outputs",), ("home",), ("temporary",), ("home", "temporary")))
    mode = random.choice((0o500, 0o500, 0o000))
    scene.what = f"{' and '.join(names)} of mode {mode:o}"

    def take() -> None:
        for name in names:
            (scene.place / name).chmod(mode)
        constraints.keep_to_modes()

    scene.take = take


def _no_place(random: Random, scene: _Scene) -> None:
    """Names a home or temporary folder that is not there, or is a file."""
    variable, name = random.choice((("HOME", "home"), ("TMPDIR", "temporary"), ("TMPDIR", "x")))
    way = random.choice(("gone", "file", "unset"))
    scene.what = f"{variable} is {way}"
    path = scene.place / name

    def take() -> None:
        if way == "unset":
            os.environ.pop(variable, None)
            return
        shutil.rmtree(path, ignore_errors=True)
        if way == "file":
            path.touch()
        os.environ[variable] = str(path)

    scene.take = take


def _full(random: Random, scene: _Scene) -> None:
    """Puts a small disk at the output, or at the temporary folder."""
    name = random.choice(("outputs", "outputs", "outputs", "temporary", "home"))
    size = random.choice((4, 8, 16, 24, 32, 48, 64, 96, 128, 256)) << 10
    read_only = random.random() < 0.15
    place = scene.place / name
    scene.what = f"{name} on a {'read-only disk' if read_only else f'disk of {size >> 10} kB'}"
    kept = scene.place / "kept"
    shutil.copytree(place, kept)
    constraints.mount_disk(place, size, read_only=read_only)
    scene.mounts.append(place)
    if not read_only:
        try:
            shutil.copytree(kept, place, dirs_exist_ok=True)
        except (OSError, shutil.Error):  # it has no room for the earlier bundle
            shutil.rmtree(place / "out", ignore_errors=True)
    shutil.rmtree(kept)


def _memory(random: Random, scene: _Scene) -> None:
    """Leaves little memory beyond what is taken before anything began."""
    more = random.choice((64, 128, 256, 512, 1024, 4096)) * _MB
    scene.what = f"{more // _MB} MB of memory more"
    scene.take = lambda: constraints.limit_memory(more)


def _limit(random: Random, scene: _Scene) -> None:
    """Limits the size of files, or how many more can be opened."""
    kind, most = random.choice(
        (
            *((resource.RLIMIT_FSIZE, size) for size in (0, 100, 1000, 4000, 16_000, 64_000)),
            *((resource.RLIMIT_NOFILE, count) for count in (1, 2, 4, 8, 16, 32)),
            *((resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, 1 << 20)),
        )
    )
    names = {resource.RLIMIT_FSIZE: "bytes of a file", resource.RLIMIT_NOFILE: "more open files"}
    scene.what = f"{most} {names.get(kind, 'of another limit')}"

    def take() -> None:
        held = len(os.listdir("/proc/self/fd")) if kind == resource.RLIMIT_NOFILE else 0
        constraints.limit(kind, most + held)

    scene.take = take


def _time(random: Random, scene: _Scene) -> None:
    """Gives a second of the processor, or asks to end after a while, as ``timeout`` does."""
    if random.random() < 0.3:
        scene.what, scene.may_die = "one second of the processor", True
        used = int(time.process_time()) + 1
        scene.take = lambda: constraints.limit(resource.RLIMIT_CPU, used)
    else:
        scene.after = random.choice((0.5, 1.0, 2.0, 3.0))
        scene.what = f"SIGTERM after {scene.after} s"


def _cores(random: Random, scene: _Scene) -> None:
    """Gives one core, and little of it."""
    core = random.choice(sorted(os.sched_getaffinity(0)))
    scene.what = "one core"
    scene.take = lambda: os.sched_setaffinity(0, {core})


def _streams(random: Random, scene: _Scene) -> None:
    """Closes a stream, or puts a full disk behind it."""
    number, way = random.choice(((1, "full"), (1, "closed"), (2, "full"), (0, "closed")))
    scene.what = f"stream {number} {way}"

    def take() -> None:
        if way == "closed":
            os.close(number)
            return
        handle = os.open("/dev/full", os.O_WRONLY)
        os.dup2(handle, number)
        os.close(handle)

    scene.take = take


_WAYS: Final = (
    *(_modes, _modes, _no_place, _full, _full, _full, _full, _memory, _memory, _limit, _limit),
    *(_limit, _time, _cores, _streams),
)
_NO_MOUNTS: Final = tuple(way for way in _WAYS if way is not _full)


class _Bench(Bench):
    """Runs commands under limits.

    Args:
        folder: Where the bundle that is there before lies.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        self.on = f"torch {torch.__version__.partition('+')[0]}"
        self._ways = _WAYS if constraints.part_mounts() else _NO_MOUNTS
        if self._ways is _NO_MOUNTS:
            self.on += ", without disks: this user may mount none"
        self._old = compile_old(folder)
        self._was_honest = False
        self._inputs = folder / "x.npz"
        np.savez(self._inputs, x=np.ones((4, 4), np.float32))

    def honest(self) -> None:
        if self._was_honest:  # its memory is that of other processes
            return
        self._was_honest = True
        place = self._old.parent / "honest"
        place.mkdir(exist_ok=True)
        pid = forked(lambda: compile_tiny(place / "out", "--force"), place / "said.txt")
        if ended(pid, _SECONDS) != 0:
            raise RuntimeError(f"An honest compile failed: {read(place / 'said.txt')}")

    def case(self, seed: int, index: int, place: Path) -> Case:
        random = drawn("limits", seed, index)
        scene = _Scene(place)
        for name in ("outputs", "home", "temporary"):
            (place / name).mkdir()
        (command,) = random.choices(("compile", "stages", "run", "verify"), (8, 2, 1, 1))
        force = random.random() < 0.5 or command in ("run", "verify")
        if force:
            shutil.copytree(self._old, scene.output)
        random.choice(self._ways)(random, scene)
        do = self._command(command, scene, force)
        what = f"{command}{', --force' if force else ''}: {scene.what}"
        return Case(what, lambda: self._outcome(scene, do, force))

    def _command(self, name: str, scene: _Scene, force: bool) -> Callable[[], int]:
        """Returns what the process does once something was taken from it."""
        more = (["--force"] if force else []) + (["--keep-stages"] if name == "stages" else [])

        def do() -> int:
            import tempfile

            os.environ |= {
                "HOME": str(scene.place / "home"),
                "TMPDIR": str(scene.place / "temporary"),
            }
            tempfile.tempdir = None
            scene.take()
            if name in ("compile", "stages"):
                return compile_tiny(scene.output, *more)
            from tokexport.exporter.cli.app import main

            result = scene.place / "outputs" / "y.npz"
            given = ["--inputs", str(self._inputs), "--output", str(result)]
            given = given if name == "run" else []
            sys.argv = ["tokexport", name, str(scene.output), *given]
            return code_of(main)

        return do

    def _outcome(self, scene: _Scene, do: Callable[[], int], force: bool) -> Outcome:
        said_at = scene.place / "said.txt"
        before = state_of(scene.output, self._old)
        try:
            pid = forked(do, said_at)
            if scene.after is not None:
                time.sleep(scene.after)
                os.kill(pid, signal.SIGTERM)
            code = ended(pid, _SECONDS + ENDING)
            if code is None:
                return Outcome("hung", "the process went on")
            goes_on = session(pid)
            for name in ("outputs", "home", "temporary"):
                with contextlib.suppress(OSError):  # it is gone, or on a read-only disk
                    (scene.place / name).chmod(0o700)
            state = state_of(scene.output, self._old)
            left = [] if code < 0 else self._left(scene)
        finally:
            for place in scene.mounts:
                constraints.unmount(place)
        return self._judged(scene, code, read(said_at), (before, state), [*left, *goes_on])

    def _left(self, scene: _Scene) -> list[str]:
        """Returns what should have been removed."""
        temporary = scene.place / "temporary"
        scratch = [path.name for path in temporary.glob("tokexport-scratch-*")]
        kept = ("out.stages", "y.npz")
        return [name for name in beside(scene.output) if name not in kept] + scratch

    def _judged(
        self, scene: _Scene, code: int, said: str, states: tuple[str, str], left: list[str]
    ) -> Outcome:
        from tokexport.runtimes.printable import printable

        before, state = states
        result = f"exit code {code}, {before} → {state}, left {left}: {said.strip()}"
        if code < 0 and not scene.may_die:
            return Outcome("crashed", clipped(result))
        if "Traceback" in said or (code >= 0 and code not in _CODES):
            return Outcome("raw", clipped(result))
        if printable(said) != said:
            return Outcome("raw", clipped(f"a terminal would obey: {result}"))
        if state not in (before, "new") or left:
            return Outcome("wrong", clipped(result))
        if code == 0:
            return Outcome("right", f"{before} → {state}")
        return Outcome("refused", clipped(result))


KIND: Final = Limits()
