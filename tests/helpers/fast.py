"""What ``make test-fast`` leaves out: the tests that ``slow_tests.txt`` names, one a line.

A line is a test with all of its cases, or a fixture, with all tests that use it. ``make
slow-tests`` times the whole suite and writes the file; a test that it does not name yet is run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

SLOW_TESTS: Final = Path(__file__).parents[1] / "slow_tests.txt"
#: A test is slow whose cases take so many seconds each, or all together; and so is a fixture.
SECONDS_EACH: Final = 0.15
SECONDS_TOGETHER: Final = 2.0
#: The property of a report that says how long fixtures took, by the test that first used them.
FIXTURES: Final = "seconds of fixtures"


class FastRun:
    """A plugin that deselects slow tests."""

    def __init__(self, slow_tests: Path = SLOW_TESTS) -> None:
        self._slow = frozenset(slow_tests.read_text(encoding="utf-8").splitlines())

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leaves out what the file names."""
        left_out = [item for item in items if not self._slow.isdisjoint(_names(item))]
        config.hook.pytest_deselected(items=left_out)
        left = set(left_out)
        items[:] = [item for item in items if item not in left]


class Timing:
    """A plugin that times every test and fixture, and writes which are slow."""

    def __init__(self, slow_tests: Path = SLOW_TESTS, each: float = SECONDS_EACH) -> None:
        self._path, self._each = slow_tests, each
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """Notes how long a fixture took, for the process that writes the file."""
        begin = time.perf_counter()
        made = yield
        seconds = time.perf_counter() - begin
        properties = request._pyfuncitem.user_properties
        properties.append((FIXTURES, [_fixture(fixturedef), seconds]))
        return made

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gathers the seconds of a test's cases."""
        if report.when == "call":
            self._seconds[report.nodeid.partition("[")[0]].append(report.duration)
        if report.when == "teardown":
            for fixture, seconds in (one for key, one in report.user_properties if key == FIXTURES):
                if "::" in fixture:  # those of a conftest.py serve all
                    self._seconds[fixture].append(seconds)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes the file, in the process that all reports come to."""
        if hasattr(session.config, "workerinput"):
            return
        slow = [name for name, taken in self._seconds.items() if self._is_slow(taken)]
        self._path.write_text("".join(f"{name}\n" for name in sorted(slow)), encoding="utf-8")

    def _is_slow(self, seconds: list[float]) -> bool:
        return sum(seconds) / len(seconds) >= self._each or sum(seconds) >= SECONDS_TOGETHER


def _names(item: pytest.Item) -> set[str]:
    """Returns the lines that would leave a test out."""
    fixtures = getattr(item, "_fixtureinfo", None)
    found = {} if fixtures is None else fixtures.name2fixturedefs
    return {
        item.nodeid.partition("[")[0],
        *(_fixture(one) for definitions in found.values() for one in definitions),
    }


def _fixture(fixturedef: Any) -> str:
    of = fixturedef.baseid
    return f"{of}::fixture {fixturedef.argname}" if of.endswith(".py") else fixturedef.argname
