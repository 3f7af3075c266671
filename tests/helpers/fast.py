"""What ``make test-fast`` leaves out: a test is skipped as soon as it begins something long.

Long is the compile of a model, the trace of a whole one, a process of the test's own, and more than
a few traces or questions to the worker. Of a test with many cases that trace a graph or ask the
worker, the first one runs.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, NoReturn

import pytest
import torch
from torch import nn

from tokexport.exporter.worker.process import Worker

#: How often a test may do each: trace a graph, ask the worker.
MOST: Final = {"trace a graph": 2, "ask the worker": 2}
#: A model of more modules is a whole one.
MOST_MODULES: Final = 20


class FastRun:
    """A plugin that skips tests which begin something long."""

    def __init__(self) -> None:
        self._test = ""
        self._left_out = ""
        self._first_case: dict[str, str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Notes which test runs."""
        self._test, self._left_out = item.nodeid, ""
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """Skips all tests of a fixture that leaves a step out, also where it hid the skip."""
        try:
            made = yield
        except BaseException:
            if not self._left_out:
                raise
        else:
            if not self._left_out:
                return made
        skipped = pytest.skip.Exception(self._left_out)
        fixturedef.cached_result = (None, fixturedef.cache_key(request), (skipped, None))
        raise skipped

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """Skips what fails because a step was left out: a command makes an exit code of a skip."""
        try:
            return (yield)
        except BaseException:
            if not self._left_out:
                raise
        pytest.skip(self._left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Puts a skip in front of all that takes long."""
        import tokexport.exporter.compile  # noqa: F401  # the package has a function of that name

        compiling = sys.modules["tokexport.exporter.compile"]
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(compiling, "compile_run", self._compile)
            monkeypatch.setattr(torch.export, "export", self._tracing(torch.export.export))
            monkeypatch.setattr(Worker, "ask", self._asking(Worker.ask))
            start = self._starting(subprocess.Popen.__init__)
            monkeypatch.setattr(subprocess.Popen, "__init__", start)
            return (yield)

    def _compile(self, *given: Any, **named: Any) -> NoReturn:
        self._leave_out("compiles a model")

    def _tracing(self, export: Callable[..., Any]) -> Callable[..., Any]:
        def traced(model: nn.Module, *given: Any, **named: Any) -> Any:
            if sum(1 for _ in model.modules()) > MOST_MODULES:
                self._leave_out("traces a whole model")
            self._count("trace a graph")
            return export(model, *given, **named)

        return traced

    def _asking(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(worker: Worker, *given: Any, **named: Any) -> Any:
            self._count("ask the worker")
            return ask(worker, *given, **named)

        return asked

    def _starting(self, popen: Callable[..., None]) -> Callable[..., None]:
        def started(process: Any, *given: Any, **named: Any) -> None:
            # The worker, which all tests share, is started by a thread of its own.
            if threading.current_thread() is threading.main_thread():
                self._leave_out("starts a process")
            popen(process, *given, **named)

        return started

    def _count(self, step: str) -> None:
        function = self._test.partition("[")[0]
        if self._first_case.setdefault(function, self._test) != self._test:
            self._leave_out(f"is a further case of a test whose cases {step}")
        self._counts[self._test, step] += 1
        if self._counts[self._test, step] > MOST[step]:
            self._leave_out(f"would {step} more than {MOST[step]} times")

    def _leave_out(self, reason: str) -> NoReturn:
        self._left_out = reason
        pytest.skip(reason)
