from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from tokexport.exporter.progress import Checklist

SHOW_CURSOR = "\x1b[?25h"


def ticking(*seconds: float) -> Iterator[float]:
    yield from seconds


def terminal(width: int = 60) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width)


def drawn(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_records_the_seconds_of_every_stage_even_when_quiet() -> None:
    times = ticking(0.0, 1.5, 10.0, 14.0, 20.0)
    console = terminal()
    with Checklist(console, enabled=False, clock=lambda: next(times)) as stages:
        with stages.stage("capture"):
            pass
        with stages.stage("emit"):
            pass
    assert list(stages.seconds.items()) == [("capture", 1.5), ("emit", 4.0)]
    assert drawn(console) == ""


def test_a_stage_that_comes_again_adds_up() -> None:
    times = ticking(0.0, 1.0, 5.0, 7.0, 9.0)
    with Checklist(terminal(), enabled=False, clock=lambda: next(times)) as stages:
        for _ in range(2):
            with stages.stage("verify"):
                pass
    assert stages.seconds == {"verify": 3.0}


def test_a_stage_within_another_takes_its_time_from_it() -> None:
    times = ticking(0.0, 10.0, 14.0, 15.0, 15.0)
    with (
        Checklist(terminal(), enabled=False, clock=lambda: next(times)) as stages,
        stages.stage("verify"),
        stages.stage("speed"),
    ):
        pass
    assert stages.seconds == {"verify": 11.0, "speed": 4.0}


def test_the_seconds_of_a_running_stage_can_be_read() -> None:
    times = ticking(0.0, 3.0, 5.0)
    with (
        Checklist(terminal(), enabled=False, clock=lambda: next(times)) as stages,
        stages.stage("bundle"),
    ):
        assert stages.seconds == {"bundle": 3.0}


def test_says_nothing_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Checklist(console) as stages, stages.stage("capture"):
        pass
    assert drawn(console) == ""
    assert list(stages.seconds) == ["capture"]


def test_draws_each_stage_once_done() -> None:
    console = terminal()
    with Checklist(console) as stages:
        with stages.stage("capture"):
            pass
        with stages.stage("[emit]"):  # no markup: a name is shown as it is
            pass
    last = drawn(console).rsplit("\x1b[2K", 1)[-1]
    assert "✓" in drawn(console)
    assert "capture" in drawn(console)
    assert "[emit]" in last
    assert SHOW_CURSOR in drawn(console)


def test_a_failed_stage_is_marked_and_its_error_passes() -> None:
    console = terminal()
    with (
        pytest.raises(ValueError, match="of the stage"),
        Checklist(console) as stages,
        stages.stage("build"),
    ):
        raise ValueError("of the stage")
    assert "failed" in drawn(console)
    assert "✗" in drawn(console)
    assert SHOW_CURSOR in drawn(console)
    assert "build" in stages.seconds


def test_an_ascii_terminal_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=file, force_terminal=True, width=60)
    with Checklist(console) as stages, stages.stage("capture"):
        pass
    file.flush()
    assert re.search(r"\+\S* capture", raw.getvalue().decode("ascii"))


def test_says_how_many_are_done_and_how_long_the_others_take() -> None:
    now = 0.0
    console = terminal()
    shown: list[str] = []
    with Checklist(console, clock=lambda: now) as stages, stages.stage("onnx"):
        for _ in stages.counted(range(12), 12):
            with console.capture() as caught:
                console.print(stages._table())
            shown.append(caught.get())
            now += 100.0 if not shown[1:] else 6.0  # the first takes longer, and tells nothing
        with console.capture() as caught:
            console.print(stages._table())
        shown.append(caught.get())
    assert all("left" not in line for line in (*shown[:3], shown[-1]))
    assert "3 of 12, about 54 s left" in shown[3]
    assert "11 of 12, about 6 s left" in shown[11]


def test_hours_are_told_in_minutes() -> None:
    now = 0.0
    console = terminal()
    with Checklist(console, clock=lambda: now) as stages, stages.stage("onnx"):
        for index in stages.counted(range(100), 100):
            if index == 10:
                with console.capture() as caught:
                    console.print(stages._table())
            now += 60.0
    assert "10 of 100, about 90 min left" in caught.get()


def test_counts_silently_without_a_terminal_and_passes_everything_on() -> None:
    times = ticking(0.0, 1.0)
    console = Console(file=io.StringIO(), force_terminal=False)
    with Checklist(console, clock=lambda: next(times)) as stages, stages.stage("onnx"):
        assert list(stages.counted("abc", 3)) == ["a", "b", "c"]
    assert list(stages.counted("abc", 3)) == ["a", "b", "c"]  # of no stage
    assert drawn(console) == ""


WATCHED = """
import sys, time
from rich.console import Console
from tokexport.exporter.progress import Checklist
try:
    with Checklist(Console(stderr=True)) as stages:
        with stages.stage("capture"):
            pass
        with stages.stage("verify"):
            print("READY", flush=True)
            time.sleep(60)
except KeyboardInterrupt:
    print("seconds of", *stages.seconds, flush=True)
    sys.exit(130)
"""


def test_ctrl_c_in_a_terminal_marks_the_stage_and_gives_the_cursor_back() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    child = subprocess.Popen(
        [sys.executable, "-c", WATCHED],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    pressed = False
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux: the other end of the terminal is closed
                break
            if not chunk:
                break
            seen += chunk
            if b"READY" in seen and not pressed:
                pressed = True
                child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 130
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    text = seen.decode()
    assert "stopped" in text
    assert "seconds of capture verify" in text
    assert text.rindex(SHOW_CURSOR) > text.rindex("\x1b[?25l")
    assert "Traceback" not in text
