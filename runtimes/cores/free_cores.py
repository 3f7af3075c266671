"""Counts the cores that are free for a runtime: not busy with other programs, and within a quota.

A run on several threads ends with its slowest one. Where another program has a core, that thread
waits for it, and the others with it: on two cores that two programs kept busy, a small ViT took 1.7
times as long on two threads as on one.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Final

from tokexport.runtimes.cores.processor_use import (
    ProcessorReading,
    core_quota,
    read_processor,
    use_between,
)
from tokexport.runtimes.cores.thread_count import MOST_THREADS
from tokexport.runtimes.processor import usable_cores

#: Seconds in which it shows what is busy: Linux counts in hundredths of a second.
_SAMPLED_S: Final = 0.05
_ROOT: Final = Path("/")


def allowed_cores(root: Path = _ROOT) -> int:
    """Returns how many cores this process may use at once, by its affinity and its quota.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.
    """
    cores, quota = usable_cores(), core_quota(root)
    most = cores if quota is None else max(1, min(cores, math.floor(quota)))
    return min(most, MOST_THREADS)


def free_cores_since(before: ProcessorReading, root: Path = _ROOT) -> int:
    """Returns how many of the allowed cores other programs left free, 1 or more.

    What this process did itself counts as free. It waits until a twentieth of a second has passed
    since the first reading.

    Args:
        before: The first reading.
        root: The folder that ``proc`` and ``sys`` are in.
    """
    most = allowed_cores(root)
    if most == 1 or not before.total_s:
        return most
    time.sleep(max(0.0, before.at_s + _SAMPLED_S - time.monotonic()))
    use = use_between(before, read_processor(root))
    free = usable_cores() * (1 - use.others - use.stolen)
    return max(1, min(most, round(free)))
