"""Forks processes from one that has imported everything, and waits for them."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from attacks.honest_sources import BUILDER

#: The exit code of a process that a signal met before or behind the command.
OUTSIDE: Final = 99
#: Seconds after which a process that was sent a signal has to be gone, and all that it started.
ENDING: Final = 30.0


def compile_old(folder: Path) -> Path:
    """Compiles the earlier bundle, and prepares this process for forks."""
    import torch
    from models.source_tiny import Tiny
    from typer.testing import CliRunner

    import tokexport
    from tokexport.exporter.cli.app import app
    from tokexport.exporter.speed import time_limits
    from tokexport.exporter.worker.process import WORKER

    os.environ[time_limits.VARIABLE] = "0"
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / "old"
    example = torch.ones(2, 4)
    tokexport.compile(Tiny().eval(), example, "ort", output=old, timed=False, force=True)
    CliRunner().invoke(app, ["doctor", "--help"])
    WORKER.stop()  # a forked process starts its own
    return old


def state_of(output: Path, old: Path) -> str:
    """Returns what lies at an output: none, old, new, aside for a new one, or damaged."""
    from tokexport.runtimes.bundle.bundle_files import check_files
    from tokexport.runtimes.bundle.manifest_reader import read_manifest
    from tokexport.runtimes.errors import RuntimesError

    if not output.exists():
        aside = [name for name in beside(output) if ".old-" in name]
        return "aside" if aside else "none"
    try:
        check_files(output, read_manifest(output))
    except RuntimesError as error:
        return f"damaged: {error}"
    same = (output / "manifest.json").read_bytes() == (old / "manifest.json").read_bytes()
    return "old" if same else "new"


def beside(output: Path) -> list[str]:
    """Returns what lies beside a bundle."""
    return [path.name for path in output.parent.iterdir() if path.name != output.name]


def forked(do: Callable[[], int], said: Path) -> int:
    """Starts a process that does something, in a session of its own; returns its number then."""
    ready, begins = os.pipe()
    pid = os.fork()
    if pid:
        os.close(begins)
        os.read(ready, 1)
        os.close(ready)
        return pid
    code = OUTSIDE
    try:
        os.setsid()
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _interrupt)
        os.write(begins, b"1")
        code = do()
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def compile_tiny(output: Path, *more: str) -> int:
    """Compiles a tiny model as the command line does; returns its exit code."""
    from tokexport.exporter.cli.app import main

    given = ["compile", BUILDER, "--target", "ort", "--output", str(output), "--input-shape", "2,4"]
    sys.argv = ["tokexport", *given, *more]
    return code_of(main)


def code_of(do: Callable[[], Any]) -> int:
    """Returns the exit code of what ends as a command does."""
    import typer

    try:
        do()
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def ended(pid: int, seconds: float) -> int | None:
    """Waits for a process; returns its exit code, less than 0 for a signal, None if it goes on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def session(leader: int) -> list[str]:
    """Returns the processes of a session that go on for longer than a moment."""
    end = time.monotonic() + ENDING
    while True:
        found = [*_members(leader)]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.02)


def _members(leader: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, _, _, session = text.rpartition(")")[2].split()[:4]
        if int(session) == leader and state != "Z":
            found.append(text.split()[0])
    return found


def read(path: Path) -> str:
    """Returns what a process said in a file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
