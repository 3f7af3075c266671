"""Runs cases in a child process, which is started anew when one has ended it.

    python ci/attacks/child.py KIND TARGET FOLDER SEED DESCRIPTOR PLACE

is the child: it reads numbers of cases from its standard input, and writes to a pipe what each is
and its outcome, a line of JSON each. The parent ends it where a case takes too long, or more memory
than an honest run of the same and the spare of its kind.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

from attacks.kinds import ROOT, Kind, Outcome, clipped, kind_named, refusal

#: Seconds to start, and to make a case before it runs.
_STARTING: Final = 600.0
_MAKING: Final = 120.0
_GLANCE: Final = 0.02
_MB: Final = 1 << 20
_ENDED: Final = ("crashed", "hung", "over budget")
Result = TypeVar("Result")


@dataclass(frozen=True)
class CaseResult:
    """The outcome of a case.

    Attributes:
        index: Its number.
        what: What was damaged.
        verdict: One of ``kinds.VERDICTS``.
        said: The message, or what was wrong.
        alone: The verdict when it ran once more in a process of its own; '' where it did not.
    """

    index: int
    what: str
    verdict: str
    said: str
    alone: str = ""


class Child:
    """A process that runs the cases of one target, one by one.

    Args:
        kind: Their kind.
        target: What they run on.
        folder: What the kind prepared.
        seed: The seed of the campaign.

    Attributes:
        on: What the cases run on, once one has run.
    """

    def __init__(self, kind: Kind, target: str, folder: Path, seed: int) -> None:
        self._kind, self._target, self._folder, self._seed = kind, target, folder, seed
        self._process: subprocess.Popen[bytes] | None = None
        self._place = Path(tempfile.mkdtemp(prefix="tokexport-attack-"))
        self._errors = self._place / "stderr.txt"
        self._descriptor = -1
        self._read = b""
        self._spare = 0
        self.on = ""

    def __enter__(self) -> Self:
        """Returns the child itself; its process starts with the first case."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the process."""
        self._end()
        shutil.rmtree(self._place, ignore_errors=True)

    def run(self, index: int) -> CaseResult:
        """Runs a case; one that ended the process once more in one of its own."""
        result = self._asked(index)
        if result.verdict not in _ENDED:
            return result
        self._end()
        again = self._asked(index)
        self._end()
        return CaseResult(result.index, result.what, result.verdict, result.said, again.verdict)

    def _asked(self, index: int) -> CaseResult:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._started()
        assert process.stdin is not None
        process.stdin.write(f"{index}\n".encode())
        process.stdin.flush()
        made = self._next(process, _MAKING, None)
        if isinstance(made, Outcome):
            raise RuntimeError(f"Case {index} of {self._kind.name} was not made: {made.said}")
        limit = int(made["resident"]) + self._spare
        found = self._next(process, self._kind.seconds, limit)
        if isinstance(found, Outcome):
            return CaseResult(index, made["what"], found.verdict, found.said)
        if found["grown"] > self._spare and found["verdict"] in ("refused", "right"):
            said = f"it took {found['grown'] / _MB:.0f} MB; {found['said']}"
            return CaseResult(index, made["what"], "over budget", said)
        return CaseResult(index, made["what"], found["verdict"], found["said"])

    def _started(self) -> subprocess.Popen[bytes]:
        """Starts the process and waits until its bench stands."""
        self._end()
        self._descriptor, other = os.pipe()
        arguments = [self._kind.name, self._target, str(self._folder), str(self._seed), str(other)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self._place)}
        environment |= self._kind.environment(self._target)
        with self._errors.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, __file__, *arguments, str(self._place / "case")],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[other],
                env=environment,
                start_new_session=True,
            )
        os.close(other)
        self._process, self._read = process, b""
        ready = self._next(process, _STARTING, None)
        if isinstance(ready, Outcome):
            raise RuntimeError(f"The bench of {self._target} does not stand: {ready.said}")
        self.on = ready["on"]
        self._spare = int(ready["grown"]) + self._kind.spare_mb * _MB
        return process

    def _next(
        self, process: subprocess.Popen[bytes], seconds: float, limit: int | None
    ) -> dict[str, Any] | Outcome:
        """Returns the next line of the child, or how it ended before."""
        begin, waited = time.monotonic(), _waited(process.pid)
        while b"\n" not in self._read:
            if select.select([self._descriptor], [], [], _GLANCE)[0]:
                read = os.read(self._descriptor, 1 << 16)
                if not read:
                    return self._crashed(process)
                self._read += read
                continue
            took = time.monotonic() - begin
            # Time in which others had the processor is not the case's.
            if took > seconds and took - (_waited(process.pid) - waited) > seconds:
                self._end()
                return Outcome("hung", f"more than {seconds:g} s")
            if limit is not None and _resident(process.pid) > limit:
                self._end()
                return Outcome("over budget", f"more than {self._spare / _MB:.0f} MB more")
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _crashed(self, process: subprocess.Popen[bytes]) -> Outcome:
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        self._end()
        return Outcome("crashed", clipped(f"{how}; {said[-1200:]}"))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        os.close(self._descriptor)


def _resident(pid: int) -> int:
    """Returns the bytes of memory that a process has; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _waited(pid: int) -> float:
    """Returns for how many seconds a thread of a process could run and others did."""
    found = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            found = max(found, int(thread.read_text().split()[1]))
        except (OSError, IndexError):
            continue
    return found / 1e9


def measured(do: Callable[[], Result]) -> tuple[Result, int]:
    """Runs a function, and returns by how many bytes the peak memory of this process grew."""
    before = _resident(os.getpid())
    Path("/proc/self/clear_refs").write_text("5")
    result = do()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return result, int(line.split()[1]) * 1024 - before
    raise RuntimeError("The system does not report the peak of memory.")


def main(arguments: list[str]) -> int:
    """Serves cases until there are no more requests."""
    name, target, folder, seed, descriptor, place = arguments
    faulthandler.enable()
    answers = os.fdopen(int(descriptor), "w", encoding="utf-8")

    def tell(**said: object) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    bench = kind_named(name).open(target, Path(folder))
    bench.honest()
    grown = measured(bench.honest)[1]
    tell(on=bench.on, grown=grown)
    for line in sys.stdin:
        shutil.rmtree(place, ignore_errors=True)
        Path(place).mkdir()
        case = bench.case(int(seed), int(line), Path(place))
        tell(what=clipped(case.what), resident=_resident(os.getpid()))

        def judged(run: Callable[[], Outcome] = case.run) -> Outcome:
            try:
                return run()
            except BaseException as error:
                return refusal(error)

        outcome, grown = measured(judged)
        tell(verdict=outcome.verdict, said=outcome.said, grown=grown)
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))
