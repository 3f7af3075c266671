"""Finds whether a bundle is slower than an older one, by running both here in turns.

No time is kept in a file: both run in one job, so the machine is the same for both. What the rounds
say, and how sure that is, decides ``paired_decision``.

On one thread the rounds are timed by the processor time of the process, which leaves out how long
it waited for a core; on more they are timed by the clock, since threads that wait for one another
may spin, and then use the processor without any work.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tokexport.exporter.config import check_threads
from tokexport.exporter.errors import GateError, UsageError
from tokexport.exporter.json_values import plain
from tokexport.exporter.speed.busy_machine import busy_warning, clock_note, drift_note, use_notes
from tokexport.exporter.speed.interleaved import measure, repeated, repetitions
from tokexport.exporter.speed.paired_decision import (
    Block,
    Decision,
    RoundSet,
    Verdict,
    decide,
    log_ratio,
)
from tokexport.exporter.speed.time_limits import TimeLimits, time_limits
from tokexport.exporter.system.machine import describe_machine
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import RuntimeInfo, TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.cores.processor_use import (
    ProcessorUse,
    mean_use,
    read_processor,
    use_between,
)
from tokexport.runtimes.errors import BundleError, InputMismatchError
from tokexport.runtimes.loading import load
from tokexport.runtimes.native_library import PROBLEM, KernelsWarning
from tokexport.runtimes.signatures import trusted_manifest
from tokexport.runtimes.verification import reference_inputs

#: What rounds are timed by.
PROCESSOR_TIME: Final = "processor time"
CLOCK: Final = "clock"
#: What the two bundles are called.
OLD: Final = "old"
NEW: Final = "new"
#: More rounds than any block has time for.
_MOST_PAIRS: Final = 1000
#: From which factor on it is said that an interval was widened.
_SAID_WIDENING: Final = 1.001


@dataclass(frozen=True)
class TimedBundle:
    """One of two bundles that were timed.

    Attributes:
        bundle: Its folder.
        runtime: What ran it.
        precision: What it computes in.
        median_ms: The median of the medians of its blocks, for a reader: no verdict uses it.
    """

    bundle: str
    runtime: RuntimeInfo
    precision: str
    median_ms: float


@dataclass(frozen=True)
class PairedSpeed:
    """Whether a bundle is slower than an old one.

    Attributes:
        verdict: ``slower``, ``not slower``; or ``undecided``, which is no failure.
        slower: How much slower the new one may be, as a share.
        ratio: How many times as long as the old bundle the new one takes, by the last set of
            rounds: one that confirms another did not choose when that ended.
        low: The lower end of its 95 % interval, which holds at every look; None where there were
            too few rounds.
        high: Its upper end.
        old: The old bundle.
        new: The new bundle.
        inputs: Where the inputs come from, a clause.
        timed_by: ``processor time`` on one thread, ``clock`` on more.
        pairs: How many rounds were timed.
        seconds: How long it took, loading included.
        sets: The sets of rounds: one, or two where the first said ``slower``.
        machine: The description of the machine.
        notes: What a reader has to know, a sentence each: what disturbed the rounds, and why the
            answer is undecided.
    """

    verdict: Verdict
    slower: float
    ratio: float
    low: float | None
    high: float | None
    old: TimedBundle
    new: TimedBundle
    inputs: str
    timed_by: str
    pairs: int
    seconds: float
    sets: tuple[RoundSet, ...]
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        data: dict[str, Any] = plain(self)
        return data

    def failed(self) -> GateError | None:
        """Returns the error of a new bundle that is slower; None for ``undecided`` too."""
        if self.verdict is not Verdict.SLOWER:
            return None
        assert self.low is not None
        assert self.high is not None
        return GateError(
            f"The new bundle takes {self.ratio:.3f} times as long as the old one, and "
            f"{1 + self.slower:g} times is allowed.",
            where=f"{self.new.bundle} {self.new.median_ms:.3g} ms, {self.old.bundle} "
            f"{self.old.median_ms:.3g} ms; the 95 % interval reaches from {self.low:.3f} to "
            f"{self.high:.3f}, after a first set of rounds that said so too.",
            fix="Find what changed between the two, or allow more with a larger share.",
        )


def compare_speed(
    old: Path,
    new: Path,
    *,
    slower: float = 0.03,
    threads: int | None = None,
    limits: TimeLimits | None = None,
) -> PairedSpeed:
    """Times two bundles in turns until it is known whether the new one is slower.

    Both are loaded anew for every block of rounds, and run on the first batch of the new bundle's
    reference inputs, or of the old one's where only those suit both. Needs no torch.

    Args:
        old: The folder of the bundle to compare with.
        new: The folder of the bundle that may be slower.
        slower: How much slower it may be, as a share of the old bundle's time.
        threads: The most threads of a runtime; None leaves it to the runtime. With 1 processor time
            is compared, which neighbours hardly touch: fit for shared machines.
        limits: How long it may take (``bundles_s``); None asks the environment.

    Raises:
        UsageError: ``slower`` is no share above 0, or the two bundles take different inputs.
        tokexport.runtimes.errors.RuntimesError: A bundle is altered, or cannot run here.
    """
    check_threads(threads)
    if not 0 < slower < math.inf:
        raise UsageError(
            f"The share that the new bundle may be slower is {slower:g}.",
            fix="Pass a number above 0: 0.03 allows 3 %.",
        )
    rounds = _Rounds({OLD: Path(old), NEW: Path(new)}, threads, limits or time_limits())
    decision = decide(rounds.block, slower, rounds.has_time)
    last = decision.sets[-1]
    blocks = [block for one in decision.sets for block in one.blocks]
    return PairedSpeed(
        verdict=decision.verdict,
        slower=slower,
        ratio=last.ratio,
        low=last.low,
        high=last.high,
        old=rounds.described(OLD, [block.old_ms for block in blocks]),
        new=rounds.described(NEW, [block.new_ms for block in blocks]),
        inputs=rounds.origin,
        timed_by=PROCESSOR_TIME if rounds.on_one_thread else CLOCK,
        pairs=sum(block.pairs for block in blocks),
        seconds=rounds.seconds,
        sets=decision.sets,
        machine=describe_machine(),
        notes=(
            *[f"The {name} bundle ran without its kernels. {why}" for name, why in rounds.slowed],
            *_notes(decision, blocks, rounds.uses, rounds.clocks_mhz, not rounds.on_one_thread),
        ),
    )


def _notes(
    decision: Decision,
    blocks: Sequence[Block],
    uses: Sequence[ProcessorUse],
    clocks_mhz: Sequence[float],
    is_by_clock: bool,
) -> tuple[str, ...]:
    """Returns what disturbed the rounds, and why they decided nothing."""
    widest = max(one.widened for one in decision.sets)
    widened = (
        f"The interval is {widest - 1:.1%} wider on both sides for what was taken of the cores."
    )
    return (
        *use_notes(mean_use(uses)),
        *busy_warning() * is_by_clock,
        *clock_note(clocks_mhz),
        *drift_note([block.old_ms for block in blocks]),
        *[widened] * (widest >= _SAID_WIDENING),
        *[decision.why] * bool(decision.why),
    )


@dataclass
class _Rounds:
    """Runs blocks of rounds of two bundles, and keeps what is known of both.

    Attributes:
        bundles: The folders of both.
        threads: The most threads of a runtime.
        limits: How long all and each may take.
        feeds: What each runs on, once both were loaded.
        origin: Where that comes from.
        runtimes: What ran each.
        count: How often each runs for one sample.
        blocks: How many blocks were run.
        longest_s: How long the longest of them took.
        uses: What used the cores during the rounds of each block.
        clocks_mhz: The clock of the cores before and behind them, where the system says it.
    """

    bundles: Mapping[str, Path]
    threads: int | None
    limits: TimeLimits
    feeds: Mapping[str, dict[str, Array]] = field(default_factory=dict)
    origin: str = ""
    runtimes: dict[str, RuntimeInfo] = field(default_factory=dict)
    count: int = 0
    blocks: int = 0
    longest_s: float = 0.0
    uses: list[ProcessorUse] = field(default_factory=list)
    clocks_mhz: list[float] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long all took until now."""
        return time.monotonic() - self.began_s

    @property
    def on_one_thread(self) -> bool:
        """Whether the runtimes of both say that they run on one thread; an engine on a GPU none."""
        return all(one.details.get("threads") == 1 for one in self.runtimes.values())

    @property
    def slowed(self) -> list[tuple[str, str]]:
        """The bundles whose native kernels are there and do not load, and why."""
        problems = [(name, one.details.get(PROBLEM)) for name, one in self.runtimes.items()]
        return [(name, str(problem)) for name, problem in problems if problem]

    def has_time(self) -> bool:
        """Returns whether a block as long as the longest would end in time."""
        return self.seconds + self.longest_s <= self.limits.bundles_s

    def block(self) -> Block:
        """Loads both bundles and times them in rounds, as long as the loading took or longer."""
        begin = time.monotonic()
        order = (OLD, NEW) if self.blocks % 2 == 0 else (NEW, OLD)
        with ExitStack() as stack:
            runners = {name: stack.enter_context(self._loaded(name)) for name in order}
            if not self.feeds:
                self.feeds, self.origin = shared_inputs(self.bundles, runners)
            loaded_s = time.monotonic() - begin
            runs = {name: runners[name].bound(self.feeds[name]) for name in order}
            self.count = self.count or max(
                repetitions(run, self.limits.bundle_sample_s) for run in runs.values()
            )
            before = read_processor()
            speed = measure(
                {name: repeated(run, self.count) for name, run in runs.items()},
                baseline=OLD,
                pairs=_MOST_PAIRS,
                min_pairs=2,
                time_limit_s=max(self.limits.block_s, min(loaded_s, self.limits.bundles_s)),
                stopwatch=time.process_time_ns if self.on_one_thread else None,
                settle_s=self.limits.pause_s,
            )
            after = read_processor()
        use = use_between(before, after)
        self.uses.append(use)
        self.clocks_mhz += [one.megahertz for one in (before, after) if one.megahertz]
        self.blocks += 1
        self.longest_s = max(self.longest_s, time.monotonic() - begin)
        times = {name: np.array(speed.timings[name].samples_ms) / self.count for name in order}
        return Block(
            log_ratio=log_ratio(times[OLD], times[NEW]),
            old_ms=float(np.median(times[OLD])),
            new_ms=float(np.median(times[NEW])),
            pairs=speed.pairs,
            withheld=use.stolen if self.on_one_thread else use.withheld,
        )

    def described(self, name: str, times_ms: Sequence[float]) -> TimedBundle:
        """Returns what is known of one bundle."""
        folder = self.bundles[name]
        precision = trusted_manifest(folder).precision
        median_ms = float(np.median(times_ms))
        return TimedBundle(str(folder), self.runtimes[name], precision, median_ms)

    def _loaded(self, name: str) -> Runner:
        """Loads a bundle; what a first load warned of is not said again."""
        with warnings.catch_warnings():
            if name in self.runtimes:
                warnings.simplefilter("ignore", KernelsWarning)
            bundle = self.bundles[name]
            first = [trusted_manifest(bundle).batch]
            runner = load(bundle, threads=self.threads or allowed_cores(), batches=first)
        self.runtimes[name] = runner.runtime
        return runner


def shared_inputs(
    bundles: Mapping[str, Path], runners: Mapping[str, Runner], batch: int | None = None
) -> tuple[dict[str, dict[str, Array]], str]:
    """Returns inputs that both bundles take, for each by its own names, and where they come from.

    Args:
        bundles: The folders of both, by ``OLD`` and ``NEW``.
        runners: Both, loaded, by the same.
        batch: How many samples the inputs hold; None takes those of the first artifacts.

    Raises:
        UsageError: They take different inputs, or neither one's reference inputs suit both.
    """
    specs = {name: runner.inputs for name, runner in runners.items()}
    known = _paired(specs[OLD], specs[NEW])
    reasons = []
    for owner in (NEW, OLD):
        folder = bundles[owner]
        try:
            arrays = reference_inputs(folder, batch)
            own = {pair[owner]: arrays[pair[owner]][0] for pair in known}
            feeds = {name: {pair[name]: own[pair[owner]] for pair in known} for name in (OLD, NEW)}
            for name, runner in runners.items():
                runner.run(feeds[name])
        except (BundleError, InputMismatchError) as error:
            reasons.append(f"Those of {folder}: {error.what}")
            continue
        return feeds, f"the first batch of the reference inputs of {folder}"
    raise UsageError(
        "Neither bundle has reference inputs that both take.",
        where=" ".join(reasons),
        fix="Compare bundles of one model, with their reference.npz.",
    )


def _paired(old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> list[dict[str, str]]:
    """Pairs the inputs by their names, or by their order where the names differ."""
    named = {spec.name: spec for spec in new}
    by_name = named.keys() == {spec.name for spec in old}
    others = [named[spec.name] for spec in old] if by_name else list(new)
    kinds = [[(spec.shape, spec.dtype) for spec in specs] for specs in (old, others)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            "The two bundles take different inputs, so their speeds cannot be compared.",
            where=f"The old one: {'; '.join(map(str, old))}; the new one: "
            f"{'; '.join(map(str, new))}.",
            fix="Compare bundles of one model, compiled for the same batch and shapes.",
        )
    return [{OLD: one.name, NEW: its.name} for one, its in zip(old, others, strict=True)]
