from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tokexport.runtimes.cores.processor_use import (
    ProcessorReading,
    ProcessorUse,
    mean_use,
    read_processor,
    use_between,
)
from tokexport.runtimes.processor import usable_cores

CORE = min(os.sched_getaffinity(0))
TICK = os.sysconf("SC_CLK_TCK")


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def stat(*ticks: int) -> str:
    """A /proc/stat of a core that this process may use, and of one that it may not."""
    return f"cpu  9 9 9\ncpu{CORE} {' '.join(map(str, ticks))}\ncpu9999 {'7 ' * 10}\nintr 5\n"


def test_this_machine_is_read() -> None:
    before = read_processor()
    sum(range(100_000))
    after = read_processor()
    assert after.own_s > before.own_s
    assert after.total_s >= before.total_s > 0
    used = use_between(before, after)
    assert 0 <= used.withheld <= 1


def test_a_system_that_says_nothing_gives_no_share(tmp_path: Path) -> None:
    found = read_processor(tmp_path)
    assert (found.total_s, found.throttles, found.megahertz, found.overheated) == (0, 0, None, 0)
    assert use_between(found, read_processor(tmp_path)) == ProcessorUse(None, 0, 0, 0, 0, 0)


def test_the_ticks_of_usable_cores_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "proc/stat", stat(*(TICK * n for n in (1, 2, 3, 40, 5, 6, 7, 8, 100, 100))))
    found = read_processor(tmp_path)
    assert found.busy_s == 1 + 2 + 3 + 6 + 7
    assert found.steal_s == 8
    assert found.total_s == 1 + 2 + 3 + 40 + 5 + 6 + 7 + 8  # guests are counted among users


def test_the_shares_are_of_all_of_the_cores_time() -> None:
    before = ProcessorReading(0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0)
    after = ProcessorReading(
        10,
        own_s=4,
        ran_s=4,
        waited_s=1,
        busy_s=9,
        steal_s=1,
        total_s=20,
        throttled_s=0.5 * 10 * usable_cores(),
        throttles=3,
        megahertz=None,
        overheated=2,
    )
    used = use_between(before, after)
    assert used == ProcessorUse(0.2, 0.25, 0.05, 0.5, 3, 2)
    assert used.withheld == pytest.approx(0.2 + 0.05 + 0.5)
    assert replace(used, waiting=None).withheld == pytest.approx(0.25 + 0.05 + 0.5)
    assert use_between(after, before).withheld == 0


def test_several_spans_are_taken_together() -> None:
    one = ProcessorUse(0.2, 0.1, 0.0, 0.0, 1, 0)
    other = ProcessorUse(None, 0.3, 0.2, 0.1, 2, 1)
    assert mean_use([one, other]) == ProcessorUse(0.2, 0.2, 0.1, 0.05, 3, 1)
    assert mean_use([other]) == other


def test_all_threads_are_asked_how_long_they_waited(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/task/7/schedstat", "3000000000 500000000 12\n")
    put(tmp_path, "proc/self/task/8/schedstat", "1000000000 0 4\n")
    put(tmp_path, "proc/self/task/9/schedstat", "")
    found = read_processor(tmp_path)
    assert (found.ran_s, found.waited_s) == (4.0, 0.5)


@pytest.mark.parametrize(
    ("group", "place", "counts"),
    [
        ("0::/job/one\n", "job/one/cpu.stat", "nr_throttled 4\nthrottled_usec 1500000\n"),
        ("0::/\n", "cpu.stat", "usage_usec 9\nnr_throttled 4\nthrottled_usec 1500000\n"),
        (
            "5:memory:/a\n4:cpu,cpuacct:/job\n",
            "cpu,cpuacct/job/cpu.stat",
            "nr_periods 9\nnr_throttled 4\nthrottled_time 1500000000\n",
        ),
        ("4:cpu:/of/the/host\n", "cpu/cpu.stat", "nr_throttled 4\nthrottled_time 1500000000\n"),
    ],
)
def test_the_quota_of_either_version_of_control_groups_is_read(
    group: str, place: str, counts: str, tmp_path: Path
) -> None:
    put(tmp_path, "proc/self/cgroup", group)
    put(tmp_path, f"sys/fs/cgroup/{place}", counts)
    found = read_processor(tmp_path)
    assert (found.throttled_s, found.throttles) == (1.5, 4)


def test_clocks_and_heat_are_read_where_there_are_some(tmp_path: Path) -> None:
    core = f"sys/devices/system/cpu/cpu{CORE}"
    put(tmp_path, f"{core}/cpufreq/scaling_cur_freq", "2400000\n")
    put(tmp_path, f"{core}/thermal_throttle/core_throttle_count", "3\n")
    found = read_processor(tmp_path)
    assert (found.megahertz, found.overheated) == (2400, 3)
    put(tmp_path, f"{core}/cpufreq/scaling_cur_freq", "<unknown>\n")
    assert read_processor(tmp_path).megahertz is None
