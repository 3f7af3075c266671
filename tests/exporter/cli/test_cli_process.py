"""The command in a process of its own: warnings as errors, signals, a full disk, torch's log."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.cli import MODELS, Compiled, command, compile_model, in_own_process, refusal
from helpers.thorough import thorough_but
from helpers.torchvision_ops import child_environment

from tokexport.graph_passes.errors import PassError

SOURCE = f"{MODELS}:with_inputs"
INSTALLED = Path(sys.executable).with_name("tokexport")


@pytest.mark.thorough  # what native code prints is held back from such a process in every run
@pytest.mark.parametrize("target", ["ort", "openvino", "trt"])
def test_nothing_warns(target: str, tmp_path: Path) -> None:
    answer = in_own_process(
        *("compile", SOURCE, "--target", target, "--output", tmp_path / "out", "--json")
    )
    assert answer.code == 0, answer
    assert answer.json["status"] in ("PASSED", "BUILT, NOT RUN")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_installed_command(compiled: Compiled) -> None:
    for arguments, said in (
        (("--version",), r"\d+\.\d+"),
        (("--help",), "compile"),
        (("verify", compiled.bundle), "PASSED"),
        (("doctor",), "onnxruntime"),
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", INSTALLED, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(said, done.stdout)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Loops", "A number of tokens or a branch depends on the values"),
        pytest.param(
            *("FailsInTrace", "The model cannot be traced by torch.export"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_torch_says_nothing_beside_our_message(model: str, said: str, tmp_path: Path) -> None:
    answer = in_own_process(
        *("compile", f"{MODELS}:{model}", "--target", "ort", "--output", tmp_path / "out"),
        *("--input-shape", "2,4"),
    )
    message = refusal(answer, 3, tmp_path, said, "cli_models.py:", " here\n")
    assert len(message.splitlines()) == 3
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("number", "moment"),
    thorough_but(
        [(signal.SIGINT, "traced")],
        [(signal.SIGINT, "eager"), (signal.SIGTERM, "eager"), (signal.SIGINT, "traced")],
    ),
)
def test_a_signal_leaves_nothing_behind(
    number: signal.Signals, moment: str, tmp_path: Path
) -> None:
    output = tmp_path / "outputs"
    output.mkdir()
    mark = tmp_path / "mark"
    given = ("compile", f"{MODELS}:Waits", "--target", "ort", "--output", output / "out")
    # A shell lets what it runs in the background ignore SIGINT, and Python keeps to that.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        command(*given, "--input-shape", "2,4", before=heeds),
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "CLI_WAITS": str(mark),
            "CLI_MOMENT": moment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not mark.exists() and process.poll() is None:
            time.sleep(0.02)
        written = [path.name for path in output.iterdir()]
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert any(name.startswith(".out.partial-") for name in written)
    assert process.returncode == 130
    assert (stdout, stderr) == ("", "error: Stopped. Nothing was left behind.\n")
    assert list(output.iterdir()) == []


def test_a_signal_that_comes_upon_a_finalizer_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "cli_finalizer.py").write_text(
        "import os, signal, torch\n"
        "class Dropped:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        [0 for _ in range(1000)]\n"
        "def build():\n"
        "    Dropped()\n"
        "    return torch.nn.Linear(4, 4)\n",
        encoding="utf-8",
    )
    answer = in_own_process("inspect", "cli_finalizer:build", "--code-path", tmp_path)
    assert (answer.code, answer.stdout) == (130, "")
    assert answer.stderr == "error: Stopped. Nothing was left behind.\n"


@pytest.mark.parametrize(
    ("disk", "said", "options"),
    [
        ("2m", "The disk is full", ()),  # while the stages are written
        pytest.param(  # before the artifact is
            *("5m", "The bundle needs 2.1 MB, and only", ()), marks=pytest.mark.thorough
        ),
        pytest.param("2m", "The disk is full", ("--keep-stages",), marks=pytest.mark.thorough),
        pytest.param("7m", "The disk is full", ("--keep-stages",), marks=pytest.mark.thorough),
    ],
)
def test_no_room_on_the_disk(
    disk: str, said: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    prefix = small_disk(tmp_path, disk)
    listing = (
        "import atexit, os, sys\n"
        f"atexit.register(lambda: print('left:', *os.listdir({str(tmp_path)!r})))"
    )
    answer = in_own_process(
        *("compile", f"{MODELS}:Heavy", "--target", "ort", "--output", tmp_path / "out"),
        *("--input-shape", "1,1024", *options),
        prefix=prefix,
        before=listing,
    )
    refusal(answer, 4, tmp_path, said, "Free some space, or pass --output on another disk.")
    assert answer.stdout == "left:\n"


def small_disk(folder: Path, size: str) -> tuple[str, ...]:
    """Returns a command prefix that runs the rest with a disk of that size at the folder."""
    mount = f'mount -t tmpfs -o size={size} none "{folder}" && exec "$@"'
    for namespace in (("unshare", "-m"), ("unshare", "-rm")):
        prefix = (*namespace, "sh", "-c", mount, "sh")
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("this user may not mount a file system of its own")


@pytest.mark.thorough
def test_a_terminal_that_lacks_letters_is_no_bug(tmp_path: Path) -> None:
    answer = in_own_process(
        *("compile", f"{MODELS}:Heavy", "--target", "ort", "--output", tmp_path / "out"),
        *("--input-shape", "1,1024"),
        environment={"PYTHONIOENCODING": "ascii"},
    )
    assert answer.code == 0, answer
    assert answer.stdout.startswith(f"PASSED  {MODELS}:Heavy ? ort")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_goes_away_is_no_bug(options: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        done = subprocess.run(
            command("doctor", *options),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 1
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_shows_the_stages(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    given = ("compile", f"{MODELS}:Determinant", "--target", "ort", "--output", tmp_path / "out")
    process = subprocess.Popen(
        command(*given, "--input-shape", "2,3,3"),
        env={**child_environment(), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    drawn = bytearray()
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # how a terminal ends
        pass
    finally:
        os.close(ours)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stdout.startswith("PASSED")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode()).splitlines()[-10:]
    stages = ("reference", "capture", "rewrite", "emit", "lower", "build", "verify", "edges")
    for stage, row in zip((*stages, "speed", "bundle"), last, strict=True):
        assert re.match(rf"\s*✓ {stage} +\d+\.\d s", row), last


@pytest.mark.parametrize("error", [RuntimeError("planted"), PassError("A planted promise.")])
def test_a_bug_of_ours_leaves_its_trace(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(traces))

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("tokexport.graph_passes.pipelines.run_passes", fail)
    answer = compile_model(SOURCE, tmp_path / "out")
    (trace,) = traces.iterdir()
    refusal(
        *(answer, 70, tmp_path, "This is a bug in tokexport: ", str(error), f"The trace: {trace}"),
        "Please report it with that file.",
    )
    written = trace.read_text(encoding="utf-8")
    assert written.startswith("Traceback")
    assert "run_passes" in written
    assert [path.name for path in tmp_path.iterdir()] == ["traces"]
