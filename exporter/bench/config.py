"""Holds the options of a benchmark, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.config import ReduceConfig
from tokexport.exporter.errors import UsageError

#: The targets that run on the processor, beside eager; an engine for a GPU has no peer here.
TIMED_TARGETS: Final = tuple(name for name, one in BACKENDS.items() if one.runs_on_cpu)
#: After how many seconds a measurement begins no further round.
MOST_SECONDS: Final = 300.0
#: With fewer rounds the ratio of medians varies too much from run to run.
ENOUGH_ROUNDS: Final = 40


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ReduceConfig):
    """The options of a benchmark; ``batch`` plays no part.

    Attributes:
        targets: ``ort``, ``openvino`` or both.
        precisions: The precisions to compile in; one that a target does not take is skipped there.
        batches: How many samples at once, a measurement each.
        rounds: The most interleaved rounds of a measurement.
        time_limit_s: After how many seconds a measurement begins no further round; five are run
            in any case.
        torch_compile: Whether ``torch.compile`` is a candidate.
        threads: The most threads that torch and the runtimes may use; None leaves it to them.
        require_kernels: Whether to fail where native kernels of a target do not load.
    """

    targets: tuple[str, ...] = ("ort",)
    precisions: tuple[str, ...] = ("fp32",)
    batches: tuple[int, ...] = (1,)
    rounds: int = ENOUGH_ROUNDS
    time_limit_s: float = MOST_SECONDS
    torch_compile: bool = False
    threads: int | None = None
    require_kernels: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be timed."""
        super().__post_init__()
        known = tuple(dict.fromkeys(name for one in BACKENDS.values() for name in one.precisions))
        for what, given, those in (
            ("target", self.targets, TIMED_TARGETS),
            ("precision", self.precisions, known),
        ):
            unknown = [name for name in given if name not in those]
            if unknown:
                raise UsageError(
                    f"There is no {what} '{unknown[0]}' to time.",
                    fix=f"Pass some of {','.join(those)}.",
                )
        for what, values in (
            ("targets", self.targets),
            ("precisions", self.precisions),
            ("batches", self.batches),
        ):
            if not values or len(set(values)) < len(values):
                raise UsageError(
                    f"There are no {what} to time."
                    if not values
                    else f"One of the {what} is given twice.",
                    fix=f"Pass --{what} with each of them once.",
                )
        if self.rounds < 1:
            raise UsageError(f"--rounds is {self.rounds}.", fix="Pass a number of 1 or more.")
        if not 0 < self.time_limit_s < float("inf"):
            raise UsageError(
                f"--time-limit is {self.time_limit_s}.", fix="Pass a number of seconds above 0."
            )


def parse_names(text: str) -> tuple[str, ...]:
    """Reads ``ort,openvino``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
