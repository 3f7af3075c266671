from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tokexport.runtimes.cores.affinity import keep_on, on_cores
from tokexport.runtimes.cores.free_cores import allowed_cores, free_cores_since
from tokexport.runtimes.cores.processor_use import core_quota, read_processor
from tokexport.runtimes.errors import RunError
from tokexport.runtimes.processor import usable_cores

CORES = sorted(os.sched_getaffinity(0))


def system(root: Path, busy: float, seconds: float = 1.0) -> Path:
    """A system in which other programs kept so many cores busy for some seconds."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    ticks = int(seconds * os.sysconf("SC_CLK_TCK"))
    rows = []
    for place, core in enumerate(CORES):
        used = int(min(1.0, max(0.0, busy - place)) * ticks)
        rows.append(f"cpu{core} {used} 0 0 {ticks - used} 0 0 0 0 0 0")
    (root / "proc/stat").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize("busy", range(len(CORES) + 1))
def test_cores_that_others_keep_busy_are_not_free(tmp_path: Path, busy: int) -> None:
    before = read_processor(system(tmp_path, 0, 1.0))
    after = system(tmp_path, busy, 100.0)
    assert free_cores_since(before, after) == max(1, len(CORES) - busy)


def test_without_what_linux_says_all_allowed_cores_are_free(tmp_path: Path) -> None:
    assert free_cores_since(read_processor(tmp_path), tmp_path) == usable_cores()


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "broken\n"}, None),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "sys/fs/cgroup/pods/one/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group_is_read(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_quota(tmp_path) == quota
    most = usable_cores()
    assert allowed_cores(tmp_path) == (most if quota is None else max(1, min(most, int(quota))))


def test_threads_are_kept_on_cores_while_they_are_started() -> None:
    found: list[set[int]] = []
    with on_cores([CORES[-1]]):
        assert usable_cores() == 1
        thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        thread.start()
    thread.join()
    assert found == [{CORES[-1]}]
    assert sorted(os.sched_getaffinity(0)) == CORES


@pytest.mark.parametrize("cores", [[], [10_000], [-1], [CORES[0], 10_000]])
def test_cores_that_are_not_there_are_refused(cores: list[int]) -> None:
    with pytest.raises(RunError, match="cannot run on the cores"):
        keep_on(cores)
    assert sorted(os.sched_getaffinity(0)) == CORES
