from __future__ import annotations

from dataclasses import astuple

import pytest

from tokexport.exporter.errors import UsageError
from tokexport.exporter.speed.time_limits import VARIABLE, TimeLimits, time_limits


def test_nothing_is_shortened_where_the_variable_is_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE)
    assert time_limits() == TimeLimits()
    monkeypatch.setenv(VARIABLE, "")
    assert time_limits() == TimeLimits()


def test_no_limit_is_longer_than_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "5.5")
    assert time_limits() == TimeLimits(rounds_s=5.5, trial_s=5.5, bundles_s=5.5)
    monkeypatch.setenv(VARIABLE, "0")
    assert astuple(time_limits()) == (0.0,) * 8


@pytest.mark.parametrize("text", ["-1", "nan", "ten"])
def test_what_is_no_number_of_seconds_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=f"^{VARIABLE} is '{text}'") as caught:
        time_limits()
    assert "0 or more" in caught.value.fix
