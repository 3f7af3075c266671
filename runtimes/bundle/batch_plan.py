"""Chooses which artifacts of a bundle run some samples, by what a run of each takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What a run takes beside its samples, as a share of one sample, where nothing was measured.
_FIXED_COST: Final = 1.0
#: How much more than the cheapest plan a run of exactly the given samples may take.
_EXACT_SLACK: Final = 1.05
#: The most samples that are planned together.
_LARGEST_TABLE: Final = 1 << 14
#: So many of the largest batches are planned together; what is beyond them is cut off before.
_PLANNED: Final = 4


class BatchPlan:
    """Cuts samples into batches, so that the runs take least in all.

    Args:
        latencies: What a run of each batch takes, in milliseconds; where one is not known, all
            count as if a run took as long as one sample more than it has.
    """

    def __init__(self, latencies: Mapping[int, float | None]) -> None:
        known = {batch: ms for batch, ms in latencies.items() if ms is not None}
        self._costs = (
            known if len(known) == len(latencies) else {one: one + _FIXED_COST for one in latencies}
        )
        self._bulk = min(self._costs, key=lambda batch: (self._costs[batch] / batch, -batch))
        planned = min(_PLANNED * max(self._costs), _LARGEST_TABLE) if len(self._costs) > 1 else 0
        self._last = self._last_batches(planned)

    def _last_batches(self, most: int) -> list[int]:
        """Returns, for each number of samples, a batch of the cheapest plan for them."""
        cost, last = [0.0], [0]
        for samples in range(1, most + 1):
            best = min(
                self._costs,
                key=lambda batch: (self._costs[batch] + cost[max(samples - batch, 0)], batch),
            )
            cost.append(self._costs[best] + cost[max(samples - best, 0)])
            last.append(best)
        return last

    def cut(self, samples: int) -> list[int]:
        """Returns the batches that hold some samples; the last one may have room left.

        Args:
            samples: How many there are, 1 or more.
        """
        beyond = max(0, samples - len(self._last) + 1)
        many = -(-beyond // self._bulk)
        pieces = [self._bulk] * many
        left = samples - many * self._bulk
        rest = []
        while left > 0:
            rest.append(self._last[left])
            left -= rest[-1]
        exact = self._costs.get(samples)
        if exact is not None and exact <= _EXACT_SLACK * sum(self._costs[one] for one in rest):
            return [samples]
        return pieces + sorted(rest, reverse=True)
