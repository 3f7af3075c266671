"""Defines how long timings may take, and reads the environment variable that shortens them."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Final

from tokexport.exporter.errors import UsageError

#: The variable of the environment that holds the most seconds of each limit.
VARIABLE: Final = "TOKEXPORT_TIMING_SECONDS"


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """The longest time of each part of a timing, in seconds; some rounds are always timed.

    Attributes:
        rounds_s: The rounds of an artifact and eager; a slow model gets fewer of them.
        eager_threads_s: The choice of the number of threads of eager.
        pause_s: The pause before a timed run: ONNX Runtime's threads still spin 10 ms behind a
            run, not 30 ms. Where it is 0 the run that is not timed is left out too.
        trial_s: The rounds of the forms of one token operator.
        sample_s: The least time of one sample of a form; short runs are repeated.
        bundles_s: All rounds of two bundles, until it is known whether one is slower.
        block_s: The least time of a block of rounds of two bundles, for which both are loaded anew.
        bundle_sample_s: The least time of one sample of a bundle; short runs are repeated.
    """

    rounds_s: float = 10.0
    eager_threads_s: float = 5.0
    pause_s: float = 0.03
    trial_s: float = 6.0
    sample_s: float = 0.002
    bundles_s: float = 180.0
    block_s: float = 2.0
    bundle_sample_s: float = 0.02

    def at_most(self, seconds: float) -> TimeLimits:
        """Returns limits of which none is longer than ``seconds``."""
        return TimeLimits(**{name: min(value, seconds) for name, value in asdict(self).items()})


def time_limits() -> TimeLimits:
    """Returns the limits, none longer than ``TOKEXPORT_TIMING_SECONDS`` where it is set.

    Raises:
        UsageError: The variable holds no number of 0 or more.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return TimeLimits()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(
            f"{VARIABLE} is {text!r}, and it is a number of seconds.",
            fix=f"Set it to 0 or more, or unset it: {VARIABLE}=1",
        )
    return TimeLimits().at_most(seconds)
