from __future__ import annotations

import pytest

from tokexport.exporter.speed.busy_machine import clock_note, drift_note, use_notes
from tokexport.runtimes.cores.processor_use import ProcessorUse


def test_a_machine_that_gave_all_of_its_cores_is_not_noted() -> None:
    assert use_notes(ProcessorUse(None, 0.01, 0.0, 0.0, 0, 0)) == ()


def test_each_disturbance_is_a_sentence() -> None:
    assert use_notes(ProcessorUse(0.3, 0.25, 0.05, 0.1, 3, 2)) == (
        "Other programs took 25% of the cores' time.",
        "The timed threads waited for a core in 30% of the time in which they were ready to run.",
        "The hypervisor gave 5% of the cores' time to other machines.",
        "The processor quota of the container stopped it 3 times, for 10% of the cores' time.",
        "The cores were slowed down for their heat 2 times.",
    )


def test_a_clock_that_changes_is_noted() -> None:
    assert clock_note([2400, 3000, 2000]) == ("The clock of the cores went from 2000 to 3000 MHz.",)
    assert clock_note([2400, 2500]) == ()
    assert clock_note([]) == ()


@pytest.mark.parametrize("times", [[], [5.0, 9.0], [10.0, 99.0, 10.5], [10.0] * 7])
def test_times_that_stay_are_not_noted(times: list[float]) -> None:
    assert drift_note(times) == ()


def test_times_that_drift_are_noted() -> None:
    (note,) = drift_note([10.0, 10.1, 50.0, 11.0, 11.5, 12.0, 12.5, 12.6, 99.0])
    assert "took 10.1 ms in the first third of the rounds and 12.6 ms in the last" in note
    assert drift_note([12.0, 11.0, 10.0])
