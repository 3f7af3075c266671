"""Puts requests that wait into one run of the bundle, and gives each its own answer.

::

    request, request, request  →  one array of their samples  →  one run  →  answer, answer, answer

A run takes what waits, up to the largest batch of the bundle. Where less is there it waits for
more, for a moment from the oldest request on. One of them that the runner refuses spoils nothing:
then each is run by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tokexport.runtimes import BundleRunner
from tokexport.runtimes.arrays import Array

Outputs = dict[str, Array]


@dataclass(eq=False)
class Waiting:
    """A request that waits for its answer.

    Attributes:
        arrays: Its inputs, by name.
        samples: How many samples it has; None where it may share a run with no other.
        begun: When it came, by the clock of the event loop.
        answer: The future of its outputs.
    """

    arrays: Mapping[str, Array]
    samples: int | None
    begun: float
    answer: asyncio.Future[Outputs]


class Batcher:
    """Runs requests in batches, in a thread beside the event loop.

    Args:
        runner: What runs them; one run at a time, whose threads are the runtime's.
        wait_s: How long the oldest request waits for others, in seconds.
        seen: Called in that thread behind each run, with its requests and its seconds.
    """

    def __init__(
        self, runner: BundleRunner, wait_s: float, seen: Callable[[int, float], None]
    ) -> None:
        self._runner, self._wait_s, self._seen = runner, wait_s, seen
        self._largest = max(runner.batches) if runner.shares_runs else 1
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "run")

    async def answer(self, arrays: Mapping[str, Array]) -> Outputs:
        """Returns the outputs for the inputs of one request.

        Args:
            arrays: As the runner takes them, of any number of samples.

        Raises:
            RuntimesError: As the runner raises it for these inputs alone.
        """
        loop = asyncio.get_running_loop()
        one = Waiting(arrays, self._samples(arrays), loop.time(), loop.create_future())
        self._waiting.append(one)
        self._arrived.set()
        return await one.answer

    async def work(self) -> None:
        """Runs batch after batch until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if batch := await self._next_batch():
                answers = await loop.run_in_executor(self._thread, self._run, batch)
                for one, found in zip(batch, answers, strict=True):
                    if one.answer.done():  # its time was over
                        continue
                    if isinstance(found, Exception):
                        one.answer.set_exception(found)
                    else:
                        one.answer.set_result(found)

    async def _next_batch(self) -> list[Waiting]:
        """Waits until a batch is full or its first request has waited enough."""
        loop = asyncio.get_running_loop()
        end = self._waiting[0].begun + self._wait_s
        while self._count() < self._largest and (left := end - loop.time()) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)
        batch: list[Waiting] = []
        room = self._largest
        while self._waiting:
            one = self._waiting[0]
            if one.answer.done():
                self._waiting.popleft()
                continue
            if batch and (one.samples is None or one.samples > room):
                break
            batch.append(self._waiting.popleft())
            room -= self._largest if one.samples is None else one.samples
            if room <= 0:
                break
        if not self._waiting:
            self._arrived.clear()
        else:
            self._arrived.set()
        return batch

    def _count(self) -> int:
        return sum(one.samples or self._largest for one in self._waiting)

    def _samples(self, arrays: Mapping[str, Array]) -> int | None:
        """Returns how many samples a request has; None where it has to be run alone."""
        if not self._runner.shares_runs or len(arrays) != len(self._runner.inputs):
            return None
        counts = set()
        for spec in self._runner.inputs:
            array = arrays.get(spec.name)
            if array is None or array.dtype != spec.dtype or array.shape[1:] != spec.shape[1:]:
                return None
            counts.add(array.shape[0] if array.ndim else 0)
        return counts.pop() or None if len(counts) == 1 else None

    def _run(self, batch: Sequence[Waiting]) -> list[Outputs | Exception]:
        """Runs some requests together; where that fails, each by itself."""
        begun = time.perf_counter()
        try:
            if len(batch) > 1:
                with contextlib.suppress(Exception):  # each says by itself what it was
                    return [*self._together(batch)]
            return [self._alone(one) for one in batch]
        finally:
            self._seen(len(batch), time.perf_counter() - begun)

    def _together(self, batch: Sequence[Waiting]) -> list[Outputs]:
        names = batch[0].arrays.keys()
        joined = {name: np.concatenate([one.arrays[name] for one in batch]) for name in names}
        found = self._runner.run(joined)
        ends = np.cumsum([one.samples for one in batch])[:-1]
        parts = {name: np.split(array, ends) for name, array in found.items()}
        return [{name: parts[name][place] for name in parts} for place in range(len(batch))]

    def _alone(self, one: Waiting) -> Outputs | Exception:
        try:
            return self._runner.run(one.arrays)
        except Exception as error:  # it is raised where the request waits
            return error

    def close(self) -> None:
        """Waits for the run that is on its way."""
        self._thread.shutdown()
