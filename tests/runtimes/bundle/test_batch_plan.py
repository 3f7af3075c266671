from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from tokexport.runtimes.bundle.batch_plan import BatchPlan


def cheapest(latencies: dict[int, float], samples: int) -> float:
    """The least cost of covering samples, by trying every set of batches."""
    most = -(-samples // min(latencies))
    return min(
        sum(latencies[batch] for batch in chosen)
        for count in range(1, most + 1)
        for chosen in combinations_with_replacement(latencies, count)
        if sum(chosen) >= samples
    )


@pytest.mark.parametrize(
    "latencies",
    [
        {1: 10.0, 4: 22.0, 8: 40.0},
        {1: 10.0, 4: 45.0, 8: 100.0},  # a batch is slower than its samples one by one
        {3: 5.0, 7: 9.0},
        {8: 3.0},
    ],
)
def test_samples_are_cut_into_the_cheapest_batches(latencies: dict[int, float]) -> None:
    plan = BatchPlan(latencies)
    for samples in range(1, 13):
        found = plan.cut(samples)
        cost = sum(latencies[batch] for batch in found)
        assert sum(found) >= samples > sum(found) - found[-1]
        assert cost <= cheapest(latencies, samples) * 1.05 + 1e-9, (samples, found)


def test_a_batch_of_exactly_the_samples_is_preferred_where_it_costs_hardly_more() -> None:
    assert BatchPlan({1: 10.0, 8: 81.0}).cut(8) == [8]
    assert BatchPlan({1: 10.0, 8: 90.0}).cut(8) == [1] * 8


def test_many_samples_are_cut_by_what_takes_least_for_each() -> None:
    found = BatchPlan({1: 10.0, 4: 22.0, 8: 40.0}).cut(100_003)
    assert found.count(8) >= 12_496
    assert sum(found) - 100_003 in (0, 1)


def test_without_measurements_full_batches_come_before_room() -> None:
    plan = BatchPlan({1: None, 4: 22.0, 8: None})
    assert plan.cut(5) == [4, 1]
    assert plan.cut(8) == [8]
    assert plan.cut(1) == [1]
