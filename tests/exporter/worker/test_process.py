"""The worker as a process: what it takes over, and that it ends with who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.thorough import thorough_but
from onnx import TensorProto, helper

from tokexport.exporter import errors as exporter_errors
from tokexport.exporter.build.stage_folder import StageFolder
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.messages import (
    Message,
    described,
    error_from,
    read_message,
    write_message,
)
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.process import WORKER
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.runtimes import errors as runtime_errors
from tokexport.runtimes.errors import RunError, RuntimeMissingError
from tokexport.runtimes.native_library import NO_KERNELS
from tokexport.runtimes.native_library import VARIABLE as LIBRARY

ROOT = Path(__file__).parents[1]


@pytest.fixture
def negates(tmp_path: Path) -> Path:
    """A model y = -x, x (2,)."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def worker_pid() -> int:
    WORKER.start()
    assert WORKER._child is not None
    return WORKER._child._started.pid


def has_ended(pid: int, seconds: float = 20.0) -> bool:
    """Waits until a process is gone, or is only remembered by who started it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


HANGS = """
import sys, threading, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.deadly_models import X, endless
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.process import WORKER
from tokexport.exporter.worker.runner import WorkerRunner
from tokexport.exporter.cli.parts.messages import report_errors
import typer, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with report_errors(False), WorkerRunner(Opening(endless(Path({folder!r})))) as runner:
        print(WORKER._child._started.pid, flush=True)
        runner.run({{"x": X}})
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    thorough_but(
        [(signal.SIGKILL, -signal.SIGKILL)],
        [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ),
)
def test_it_ends_with_its_parent_in_the_middle_of_native_code(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    program = HANGS.format(tests=str(ROOT.parent), folder=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    time.sleep(0.5)  # it is running the loop now
    assert not has_ended(pid, 0.0)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert has_ended(pid)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


KILLED = """
import sys, tempfile
sys.path.insert(0, {tests!r})
from pathlib import Path
from helpers.deadly_models import X, endless
from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import WorkerRunner
output = Path({folder!r}) / "out"
with scratch_folder() as folder, BundleWriter(output), WorkerRunner(
    Opening(endless(folder))
) as runner:
    print("running", flush=True)
    runner.run({{"x": X}})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_left_goes_with_the_next_run(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, output = tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    (temporary / "tokexport-scratch-of-mine").mkdir()  # no name that this package makes
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(tests=str(ROOT.parent), folder=str(tmp_path))],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()

    def names(folder: Path) -> list[str]:
        """Returns what is there; ONNX Runtime puts a file of its own among what is temporary."""
        return sorted(path.name[:12] for path in folder.iterdir() if path.name != ".ses")

    def next_run() -> None:
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        monkeypatch.setattr("tokexport.exporter.system.scratch._swept", set())
        config = CompileConfig(target="ort", output=output)
        with scratch_folder(), BundleWriter(output), StageFolder(config):
            pass

    next_run()
    assert names(tmp_path) == [".out.partial", "temporary"]  # still in use
    assert names(temporary) == ["tokexport-sc"] * 2
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    process.stdout.close()
    assert names(tmp_path) == [".out.partial", "temporary"]
    (tmp_path / ".out.stages-0123_xyz").mkdir()
    next_run()
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert [path.name for path in temporary.glob("tok*")] == ["tokexport-scratch-of-mine"]


def test_it_ends_with_a_parent_that_is_done(tmp_path: Path) -> None:
    """Its start and its end import the caller's main module once, and leave no process."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tokexport.exporter.worker.process import WORKER\n"
        "print('main')\n"
        "WORKER.ask('close', {'runner': 0}, limit_s=60)\n"
        "print(WORKER._child._started.pid)\n"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('the caller’s own json')")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-P", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr == ""
    said, pid = done.stdout.split()
    assert said == "main"
    assert has_ended(int(pid))


def test_what_is_found_on_the_callers_path_is_no_module_of_it(
    tmp_path: Path, negates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "struct", "numpy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    WORKER.stop()
    x = np.ones(2, np.float32)
    with WorkerRunner(Opening(Path(negates.name))) as runner:
        np.testing.assert_array_equal(runner.run({"x": x})["y"], -x)


def test_it_takes_over_environment_and_packages(
    negates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernels() -> object:
        with WorkerRunner(Opening(negates)) as runner:
            return runner.runtime.details["kernels"]

    before, pid = kernels(), worker_pid()
    with monkeypatch.context() as patch:
        patch.setenv(LIBRARY, "off")
        assert kernels() == NO_KERNELS
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(RuntimeMissingError, match="'onnxruntime' is not installed"):
            kernels()
    assert kernels() == before
    assert worker_pid() == pid


def test_one_that_ended_idle_is_no_error(negates: Path) -> None:
    x = np.ones(2, np.float32)
    with WorkerRunner(Opening(negates)) as runner:
        for _ in range(3):
            os.kill(worker_pid(), signal.SIGKILL)
            np.testing.assert_array_equal(runner.run({"x": x})["y"], -x)


def test_it_serves_threads_and_outlives_the_one_that_started_it(negates: Path) -> None:
    WORKER.stop()
    starter = threading.Thread(target=worker_pid)
    starter.start()
    starter.join()
    pid = worker_pid()
    wrong: list[int] = []

    def ask(number: int) -> None:
        x = np.full(2, number, np.float32)
        with WorkerRunner(Opening(negates)) as runner:
            wrong.extend(number for _ in range(20) if (runner.run({"x": x})["y"] != -x).any())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert worker_pid() == pid


def test_a_fork_has_one_of_its_own() -> None:
    """A fork neither talks to this process's worker nor ends it."""
    program = (
        "import os, sys\n"
        "from tokexport.exporter.worker.process import WORKER\n"
        "def pid():\n"
        "    WORKER.ask('close', {'runner': 0}, limit_s=60)\n"
        "    return WORKER._child._started.pid\n"
        "first = pid()\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(0 if pid() != first and (WORKER.stop() or True) else 1)\n"
        "print(os.waitpid(child, 0)[1], first == pid())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_an_interpreter_that_starts_none_is_told(
    negates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WORKER.stop()
    for python in ("false", str(tmp_path / "none")):
        monkeypatch.setattr(sys, "executable", python)
        with pytest.raises(RunError, match="native code runs in cannot be started"):
            WorkerRunner(Opening(negates))


def test_arrays_cross_as_they_are() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "turned": whole.transpose(2, 0, 1),
        "strided": whole[:, ::2],
        "empty": np.zeros((2, 0, 3), np.int64),
        "scalar": np.array(2.5, np.float16),
        "flags": np.array([True, False]),
        "bytes": np.arange(256, dtype=np.uint8),
        "ends": np.array([np.inf, -np.inf, np.nan, -0.0, 5e-324]),
        "large": np.arange(1 << 19, dtype=np.int64),
    }
    read, write = os.pipe()
    sent = Message({"text": "\ud800ß"}, arrays)
    writer = threading.Thread(target=write_message, args=(write, sent))
    writer.start()
    found = read_message(read)
    writer.join()
    os.close(write)
    with pytest.raises(EOFError):
        read_message(read)
    os.close(read)
    assert found.fields == sent.fields
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.parametrize(
    "error",
    [
        runtime_errors.OperatorRefusedError("a", where="b", fix="c", node="d", operator="e"),
        runtime_errors.NoDeviceError("a", where="b"),
        runtime_errors.InputMismatchError("a"),
        exporter_errors.UsageError("a", fix="c"),
        PermissionError(13, "Permission denied", "file"),
        OSError(28, "No space left on device"),
        MemoryError("much"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_as_they_are(error: Exception) -> None:
    found = error_from(described(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_an_error_that_nobody_expects_is_a_bug_with_its_trace() -> None:
    with pytest.raises(exporter_errors.InternalError) as caught:
        WORKER.ask("no such step", {}, limit_s=60)
    assert str(caught.value) == "KeyError: 'no such step'"
    assert "worker/steps.py" in caught.value.__notes__[0]
