"""What is timed as slow is left out of a fast run, with all tests of a slow fixture."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fast import FastRun, Timing

pytest_plugins = ["pytester"]

#: More than a busy machine adds to a test that does nothing.
EACH = 0.6

TESTS = f"""
import time
import pytest

@pytest.fixture(scope="module")
def slow():
    time.sleep({EACH})
    return 1

@pytest.mark.parametrize("seconds", [0, {2 * EACH}])
def test_a_slow_case(seconds):
    time.sleep(seconds)

def test_the_first_of_a_slow_fixture(slow):
    assert slow

def test_the_second_of_a_slow_fixture(slow):
    assert slow

def test_neither():
    pass
"""


def test_what_was_slow_is_left_out(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(test_some=TESTS)
    listed = tmp_path / "slow_tests.txt"
    timed = pytester.inline_run("-p", "no:cacheprovider", plugins=[Timing(listed, EACH)])
    timed.assertoutcome(passed=5)
    assert listed.read_text() == "test_some.py::fixture slow\ntest_some.py::test_a_slow_case\n"
    fast = pytester.inline_run("-p", "no:cacheprovider", plugins=[FastRun(listed)])
    fast.assertoutcome(passed=1)
