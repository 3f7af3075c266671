"""What ``make test-fast`` leaves out: a test is skipped as soon as it begins something long.

Long is the compile of a model, the trace of a whole one, a process of the test's own, and more than
a few traces. Of a test with many cases that trace a graph, the first one runs.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import pytest
import torch
from torch import nn

#: So many graphs a test may trace.
MOST_TRACES: Final = 4
#: A model of more modules is a whole one.
MOST_MODULES: Final = 20


class FastRun:
    """A plugin that skips tests which begin something long."""

    def __init__(self) -> None:
        self._test = ""
        self._first_case: dict[str, str] = {}
        self._traces: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Notes which test runs."""
        self._test = item.nodeid
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Puts a skip in front of all that takes long."""
        import tokexport.exporter.compile  # noqa: F401  # the package has a function of that name

        compiling = sys.modules["tokexport.exporter.compile"]
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(compiling, "compile_run", self._compile)
            monkeypatch.setattr(torch.export, "export", self._tracing(torch.export.export))
            start = _starting(subprocess.Popen.__init__)
            monkeypatch.setattr(subprocess.Popen, "__init__", start)
            return (yield)

    def _tracing(self, export: Callable[..., Any]) -> Callable[..., Any]:
        def traced(model: nn.Module, *given: Any, **named: Any) -> Any:
            self._trace(model)
            return export(model, *given, **named)

        return traced

    def _compile(self, *given: Any, **named: Any) -> NoReturn:
        pytest.skip("compiles a model")

    def _trace(self, model: nn.Module) -> None:
        if sum(1 for _ in model.modules()) > MOST_MODULES:
            pytest.skip("traces a whole model")
        function = self._test.partition("[")[0]
        if self._first_case.setdefault(function, self._test) != self._test:
            pytest.skip("traces a graph, as its first case does")
        self._traces[self._test] += 1
        if self._traces[self._test] > MOST_TRACES:
            pytest.skip(f"traces more than {MOST_TRACES} graphs")


def _starting(popen: Callable[..., None]) -> Callable[..., None]:
    def started(process: Any, *given: Any, **named: Any) -> None:
        # The worker, which all tests share, is started by a thread of its own.
        if threading.current_thread() is threading.main_thread():
            pytest.skip("starts a process")
        popen(process, *given, **named)

    return started
