"""Lets the worker write down what it covered before it is ended, under ``make coverage``."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import pytest

from tokexport.exporter.worker.process import _Child

#: What coverage.py sets for the processes that it measures.
VARIABLE = "COVERAGE_PROCESS_CONFIG"
#: Seconds that it may take.
WRITING = 10.0


def end_by_terminating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends a worker SIGTERM before it is killed, upon which coverage.py writes its file."""
    end = _Child.end

    def ended(child: _Child) -> None:
        with suppress(OSError, subprocess.TimeoutExpired):
            os.kill(child._started.pid, signal.SIGTERM)
            child._started.wait(WRITING)
        end(child)

    monkeypatch.setattr(_Child, "end", ended)
