"""Reads from Linux what used the processor's cores, what was withheld, and how fast they ran.

What the system does not say is left out: on other systems, and in places that hide it, every share
is 0 and every clock is unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokexport.runtimes.processor import usable_cores

_ROOT: Final = Path("/")
#: The columns of a core in /proc/stat, proc(5).
_BUSY: Final = ("user", "nice", "system", "irq", "softirq")
_COLUMNS: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True)
class ProcessorReading:
    """The counters of one moment, over the cores that this process may use.

    Attributes:
        at_s: When, in seconds.
        own_s: The processor time of this process, in seconds of a core.
        ran_s: That of its present threads; 0 where the system does not say.
        waited_s: How long they were ready to run, and waited for a core.
        busy_s: The time that the cores ran anything, in seconds of a core.
        steal_s: The time that a hypervisor gave to other machines.
        total_s: All of their time; 0 where the system does not say.
        throttled_s: How long the quota of this process's group stopped its cores.
        throttles: How often it did.
        megahertz: The clock of the cores, their mean; None where the system does not say.
        overheated: How often a core was slowed down for its heat.
    """

    at_s: float
    own_s: float
    ran_s: float
    waited_s: float
    busy_s: float
    steal_s: float
    total_s: float
    throttled_s: float
    throttles: int
    megahertz: float | None
    overheated: int


@dataclass(frozen=True)
class ProcessorUse:
    """What happened between two readings, as shares of the time of the usable cores, 0 to 1.

    Attributes:
        waiting: How much of the time in which its threads were ready to run they waited for a core;
            on a machine with free cores that is little, however much others take. None where the
            system does not say.
        others: What other processes took.
        stolen: What a hypervisor gave to other machines.
        throttled: What the quota of this process's group withheld.
        throttles: How often the quota did.
        overheated: How often a core was slowed down for its heat.
    """

    waiting: float | None
    others: float
    stolen: float
    throttled: float
    throttles: int
    overheated: int

    @property
    def withheld(self) -> float:
        """The share that this process could not have had, though it was ready to run."""
        waiting = self.others if self.waiting is None else self.waiting
        return min(1.0, waiting + self.stolen + self.throttled)


def read_processor(root: Path = _ROOT) -> ProcessorReading:
    """Reads the counters of the cores that this process may use.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.
    """
    cores = _cores()
    ticks = _ticks(root, cores)
    ran_s, waited_s = _scheduling(root)
    throttled_s, throttles = _throttling(root)
    cpu = root / "sys/devices/system/cpu"
    clocks = [_number(cpu / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    known = [clock / 1e3 for clock in clocks if clock is not None]
    heats = [_number(cpu / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
    return ProcessorReading(
        at_s=time.monotonic(),
        own_s=time.process_time(),
        ran_s=ran_s,
        waited_s=waited_s,
        busy_s=sum(ticks.get(name, 0.0) for name in _BUSY),
        steal_s=ticks.get("steal", 0.0),
        total_s=sum(ticks.values()),
        throttled_s=throttled_s,
        throttles=throttles,
        megahertz=sum(known) / len(known) if known else None,
        overheated=sum(int(heat) for heat in heats if heat is not None),
    )


def core_quota(root: Path = _ROOT) -> float | None:
    """Returns how many cores' time this process's control group may use; None without a limit.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.
    """
    for folder in _group_folders(root):
        given = " ".join(_lines(folder / "cpu.max")).split() or [
            *_lines(folder / "cpu.cfs_quota_us"),
            *_lines(folder / "cpu.cfs_period_us"),
        ]
        if len(given) == 2:
            limit, period = given
            limited = limit.isdigit() and period.isdigit() and int(limit) and int(period)
            return int(limit) / int(period) if limited else None
    return None


def hottest_celsius(root: Path = _ROOT) -> float | None:
    """Returns the temperature of the hottest zone in degrees Celsius; None where none is shown.

    Args:
        root: The folder that ``sys`` is in.
    """
    zones = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    found = [one / 1e3 for one in map(_number, zones) if one is not None]
    return max(found, default=None)


def use_between(before: ProcessorReading, after: ProcessorReading) -> ProcessorUse:
    """Returns what used the cores between two readings."""
    total = after.total_s - before.total_s
    own = after.own_s - before.own_s
    seconds = max(after.at_s - before.at_s, 1e-9)

    def share(used_s: float) -> float:
        return min(1.0, max(0.0, used_s / total)) if total > 0 else 0.0

    # threads that ended between the readings took their counters with them
    ran, waited = max(0.0, after.ran_s - before.ran_s), max(0.0, after.waited_s - before.waited_s)
    return ProcessorUse(
        waiting=waited / (ran + waited) if ran > 0 else None,
        others=share(after.busy_s - before.busy_s - own),
        stolen=share(after.steal_s - before.steal_s),
        throttled=min(
            1.0, max(0.0, after.throttled_s - before.throttled_s) / (seconds * usable_cores())
        ),
        throttles=max(0, after.throttles - before.throttles),
        overheated=max(0, after.overheated - before.overheated),
    )


def mean_use(uses: Sequence[ProcessorUse]) -> ProcessorUse:
    """Returns what happened in several spans of like length, at least one."""

    def mean(shares: Sequence[float]) -> float:
        return sum(shares) / len(shares)

    waiting = [one.waiting for one in uses if one.waiting is not None]
    return ProcessorUse(
        waiting=mean(waiting) if waiting else None,
        others=mean([one.others for one in uses]),
        stolen=mean([one.stolen for one in uses]),
        throttled=mean([one.throttled for one in uses]),
        throttles=sum(one.throttles for one in uses),
        overheated=sum(one.overheated for one in uses),
    )


def _cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(usable_cores())


def _ticks(root: Path, cores: Sequence[int]) -> dict[str, float]:
    """Returns the seconds of the cores' time by what they were used for."""
    names = {f"cpu{core}" for core in cores}
    second = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    rows = [line.split() for line in _lines(root / "proc/stat")]
    found = dict.fromkeys(_COLUMNS, 0.0)
    for row in rows:
        if row and row[0] in names:
            for name, ticks in zip(_COLUMNS, row[1:], strict=False):
                found[name] += int(ticks) / second
    return found


def _scheduling(root: Path) -> tuple[float, float]:
    """Returns how long the threads of this process ran, and waited for a core, in seconds."""
    ran = waited = 0.0
    for path in (root / "proc/self/task").glob("*/schedstat"):
        row = " ".join(_lines(path)).split()
        if len(row) >= 2:
            ran += int(row[0]) / 1e9
            waited += int(row[1]) / 1e9
    return ran, waited


def _throttling(root: Path) -> tuple[float, int]:
    """Returns the seconds and the number of stops of this process's control group."""
    for folder in _group_folders(root):
        rows = [line.split() for line in _lines(folder / "cpu.stat")]
        stat = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
        if "nr_throttled" in stat:
            # microseconds in the second version of control groups, nanoseconds in the first
            seconds = stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9
            return seconds, stat["nr_throttled"]
    return 0.0, 0


def _group_folders(root: Path) -> list[Path]:
    """Returns where the counters of this process's group may be, the likeliest first."""
    base = root / "sys/fs/cgroup"
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if "cpu" in controllers.split(","):
            found += [base / controllers / path.lstrip("/"), base / "cpu" / path.lstrip("/")]
        elif not controllers:
            found.append(base / path.lstrip("/"))
    return [*found, base / "cpu", base]  # a container sees its own group as the root


def _number(path: Path) -> float | None:
    lines = _lines(path)
    try:
        return float(lines[0]) if lines else None
    except ValueError:
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
