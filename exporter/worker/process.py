"""Starts the worker, sends it questions, and reports how it ended if it dies.

There is one for the whole process, started when it is first wanted and anew after it died. It is no
child of ``multiprocessing``: spawning would import the caller's main module once more, and forking
breaks torch. A session of its own keeps Ctrl-C from it; who waits for it ends it.
"""

from __future__ import annotations

import atexit
import os
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import tokexport
from tokexport.exporter.errors import UsageError
from tokexport.exporter.worker.messages import Message, error_from, read_message, write_message
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.memory import FIX, lacks_memory

#: Names how many seconds a step in native code may take, in place of the two below.
VARIABLE: Final = "TOKEXPORT_TIME_LIMIT"
#: How long a conversion or a build may take.
BUILD_SECONDS: Final = 7200.0
#: How long loading a model, or running it once, may take.
RUN_SECONDS: Final = 1800.0
#: How long the worker may take to start.
_START_SECONDS: Final = 120.0
#: How much of what native code prints is kept, in bytes.
_KEPT: Final = 8192


class WorkerDied(Exception):
    """The worker ended before it answered.

    Attributes:
        code: Its exit code; the negative number of a signal that ended it.
        limit_s: The time limit that it exceeded; None where it ended by itself.
        said: The end of what it printed.
    """

    def __init__(self, code: int, limit_s: float | None, said: str) -> None:
        super().__init__(f"exit code {code}")
        self.code, self.limit_s, self.said = code, limit_s, said


def time_limit(default: float) -> float:
    """Returns how many seconds a step may take.

    Raises:
        UsageError: The variable holds no number above 0.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise UsageError(
            f"{VARIABLE} is {text!r}, and it is a number of seconds.",
            fix=f"Set it to a number above 0, or unset it: {VARIABLE}=600",
        )
    return seconds


class Worker:
    """The worker of this process, which may not be started yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._targets: set[str] = set()

    def start(self, *targets: str) -> None:
        """Starts it if it does not run, and does not wait until it is ready.

        Args:
            targets: Whose runtimes it imports at once.

        Raises:
            UsageError: The time limit is no number of seconds.
            tokexport.runtimes.errors.RunError: It cannot be started.
        """
        time_limit(BUILD_SECONDS)
        with self._lock:
            self._targets |= {*targets}
            self._living()

    def ask(
        self,
        step: str,
        fields: Mapping[str, Any],
        arrays: Mapping[str, Array] | None = None,
        *,
        limit_s: float,
    ) -> Message:
        """Asks for a step and waits for the answer.

        Args:
            step: A name in the table of ``steps.py``.
            fields: What the step takes; every path is absolute.
            arrays: The arrays that it takes.
            limit_s: How long it may take.

        Raises:
            WorkerDied: It ended before it answered, or was ended at the time limit.
            Exception: What the step raised.
        """
        question = {"step": step, **fields}
        with self._lock:
            try:
                try:
                    answer = self._living().ask(question, arrays or {}, limit_s)
                except _Gone:  # nothing of the question was read: another one is asked
                    self.stop()
                    answer = self._living().ask(question, arrays or {}, limit_s)
            except BaseException:
                self.stop()
                raise
        if "error" in answer.fields:
            raise error_from(answer.fields["error"])
        return answer

    def stop(self) -> None:
        """Ends it if it runs, also while another thread waits for its answer."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def lives(self) -> bool:
        """Returns whether it runs."""
        child = self._child
        return child is not None and child.lives()

    def forget(self) -> None:
        """Forgets it in a forked child: it belongs to the parent."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child is not None:
            child.let_go()

    def _living(self) -> _Child:
        if not self.lives():
            self.stop()
            self._child = _Child(self._targets)
        assert self._child is not None
        return self._child


class _Gone(WorkerDied):
    """It had ended before it was asked."""


class _Child:
    """One process of the worker.

    A thread starts it, keeps the end of what it prints, and lives as long as it: where Linux ends
    a process with its parent, the parent is the thread.

    Args:
        targets: Whose runtimes it imports at once.
    """

    def __init__(self, targets: set[str]) -> None:
        self._said = bytearray()
        self._is_ready = False
        self._environment = dict(os.environ)
        self._failed: Exception | None = None
        self._process: subprocess.Popen[bytes] | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._live, args=(sorted(targets), started), name="tokexport-worker", daemon=True
        )
        self._thread.start()
        started.wait()
        if self._failed is not None:
            raise _not_started(str(self._failed))

    def _live(self, targets: list[str], started: threading.Event) -> None:
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", *(["-B"] if sys.dont_write_bytecode else [])),
                    *("-m", "tokexport.exporter.worker.main", str(os.getpid()), *targets),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=self._environment | {"PYTHONPATH": python_path()},
                start_new_session=True,
            )
        except (OSError, TypeError, ValueError) as error:  # the last two: no interpreter is known
            self._failed = error
            return
        finally:
            started.set()
        assert self._process.stderr is not None
        with suppress(OSError, ValueError):  # it was let go
            while piece := self._process.stderr.read(_KEPT):
                self._said = (self._said + piece)[-_KEPT:]
        self._process.wait()

    def lives(self) -> bool:
        return self._started.poll() is None

    def ask(
        self, question: Mapping[str, Any], arrays: Mapping[str, Array], limit_s: float
    ) -> Message:
        assert self._started.stdin is not None
        if not self._is_ready:
            self._await_ready()
        self._said.clear()
        surroundings = {"surroundings": self._surroundings()}
        kind: type[WorkerDied] = _Gone
        with self._limited(limit_s) as limit:
            try:
                write_message(
                    self._started.stdin.fileno(), Message({**question, **surroundings}, arrays)
                )
                self._answer()  # that it has read the question
                kind = WorkerDied
                return self._answer()
            except (EOFError, OSError):
                code = self._end_code()
                died_of = limit_s if limit.was_hit else None
                raise kind(code, died_of, self._text()) from None

    def end(self) -> None:
        """Ends it and the processes that it started."""
        with suppress(OSError):
            os.killpg(self._started.pid, signal.SIGKILL)
        self._started.kill()
        self._started.wait()
        self._thread.join(timeout=5)
        self._close()

    def let_go(self) -> None:
        self._close()
        self._started.returncode = 0  # there is nothing to wait for, and nothing to warn of

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _await_ready(self) -> None:
        with self._limited(_START_SECONDS):
            try:
                self._is_ready = self._answer().fields["ready"]
            except (EOFError, OSError):
                code = self._end_code()
                raise _not_started(f"it ended with code {code}", self._text()) from None

    def _answer(self) -> Message:
        assert self._started.stdout is not None
        return read_message(self._started.stdout.fileno())

    def _end_code(self) -> int:
        """Waits until it has ended, as it does where its pipes are closed."""
        try:
            code = self._started.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._started.kill()
            code = self._started.wait()
        self._thread.join(timeout=5)
        return code

    def _text(self) -> str:
        return self._said.decode(errors="replace").strip()

    def _close(self) -> None:
        for pipe in (self._started.stdin, self._started.stdout, self._started.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _surroundings(self) -> dict[str, Any]:
        """Returns the changed environment, the working folder and the import path."""
        before, self._environment = self._environment, dict(os.environ)
        names = before.keys() | self._environment.keys()
        changed = {name for name in names if before.get(name) != self._environment.get(name)}
        folder = ""
        with suppress(OSError):
            folder = os.getcwd()
        return {
            "environment": {name: self._environment.get(name) for name in changed},
            "folder": folder,
            "path": [entry for entry in sys.path if isinstance(entry, str) and entry],
            "missing": [name for name, module in sys.modules.copy().items() if module is None],
        }

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[_Limit]:
        """Ends the process when its time is over."""
        limit = _Limit(self._started)
        timer = threading.Timer(seconds, limit.hit)
        timer.daemon = True
        timer.start()
        try:
            yield limit
        finally:
            limit.lift()
            timer.cancel()


class _Limit:
    """A time limit that ends a process once, unless it is lifted before."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._is_lifted = False
        self.was_hit = False

    def hit(self) -> None:
        with self._lock:
            if not self._is_lifted:
                self.was_hit = True
                self._process.kill()

    def lift(self) -> None:
        with self._lock:
            self._is_lifted = True


def python_path() -> str:
    """Returns the import path on which a started Python finds this package."""
    root = str(Path(tokexport.__file__).absolute().parents[1])
    given = os.environ.get("PYTHONPATH", "")
    if root in {*site.getsitepackages(), site.getusersitepackages()}:
        return given
    return os.pathsep.join([root, given] if given else [root])


def _not_started(why: str, said: str = "") -> RunError:
    if lacks_memory(f"{why} {said}"):
        return RunError("There is too little memory for the process of native code.", fix=FIX)
    return RunError(
        f"The process that native code runs in cannot be started: {why}.",
        where=said.splitlines()[-1] if said else str(sys.executable),
        fix="Start tokexport with a Python interpreter that can import it.",
    )


#: The worker of this process.
WORKER: Final = Worker()
atexit.register(WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKER.forget)
