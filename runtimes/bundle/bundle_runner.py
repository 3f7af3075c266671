"""Runs a bundle on any number of samples, with its artifacts for one number each.

::

    11 samples, artifacts for 1, 4 and 8     →  8 and 4, of which the last has one sample's room
    11 samples, one artifact for 8           →  8 and 8, of which the last has room for five

Room that is left is filled by repeating the last sample; what the artifact gives for the repeats is
dropped. That is right where an artifact answers each sample alike whatever the others are, which a
compile shows and writes into the manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.array_checks import check_inputs
from tokexport.runtimes.bundle.batch_plan import BatchPlan
from tokexport.runtimes.bundle.manifest import Manifest, TensorSpec, common_ranges
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.errors import InputMismatchError


class BundleRunner(Runner):
    """Runs the artifacts of a bundle; made by ``tokexport.runtimes.load``.

    Its ``inputs`` and ``outputs`` are those of the first artifact.

    Args:
        runners: The runner of each artifact that is to be used, in the order of the bundle.
        manifests: The manifest of each of them by itself.
        cores: The cores that the thread of ``submit`` is kept on; None leaves it to the system.

    Attributes:
        runners: The runner of each artifact, by the number of samples that it takes at once.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        manifests: Sequence[Manifest],
        cores: Collection[int] | None = None,
    ) -> None:
        first = runners[0]
        super().__init__(first.inputs, first.outputs, first.runtime)
        self.cores = cores
        self._counting = threading.Lock()
        self._runs, self._freed = 0, False
        self.manifest: Manifest = manifests[0]
        self.runners = {
            manifest.batch: runner for manifest, runner in zip(manifests, runners, strict=True)
        }
        self.constants = first.constants
        self.ranges = common_ranges([runner.ranges for runner in runners])
        ladder = [(manifest.batch, manifest) for manifest in manifests]
        self._batched = _batched([(batch, one.inputs) for batch, one in ladder])
        outputs = _batched([(batch, one.outputs) for batch, one in ladder])
        self._unsplit = [spec.name for spec in first.outputs if spec.name not in outputs]
        self._independent = all(
            batch == 1 or manifest.samples_independent for batch, manifest in ladder
        )
        self._plan = BatchPlan({batch: one.latency_ms for batch, one in ladder})

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of samples that an artifact takes at once, in the order of the bundle."""
        return tuple(self.runners)

    @property
    def shares_runs(self) -> bool:
        """Whether samples of several callers may share a run, each being answered by itself."""
        return self._splits and len(self._batched) == len(self.inputs)

    @property
    def _splits(self) -> bool:
        return self._independent and not self._unsplit and bool(self._batched)

    def plan(self, samples: int) -> list[int]:
        """Returns the batches that a run of some samples is cut into; the last may have room left.

        Args:
            samples: How many samples there are, 1 or more.
        """
        return self._plan.cut(samples) if self._splits else [samples]

    def warm_up(self) -> dict[int, float]:
        """Warms up each artifact, and cuts samples from now on by what the runs took.

        Returns:
            The median of three runs in milliseconds, by the number of samples of a run.

        Raises:
            RunError: As ``run`` raises it.
        """
        times = {batch: runner.warm_up()[batch] for batch, runner in self.runners.items()}
        self._plan = BatchPlan(times)
        return times

    def _taken(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        samples = self._samples(arrays)
        specs = self.inputs if samples is None else _sized(self.inputs, self._batched, samples)
        taken = check_inputs(specs, arrays, self.ranges, self.constants)
        if samples is not None and samples not in self.runners:
            self._require_splitting(samples)
        return taken

    def _samples(self, arrays: Mapping[str, Array]) -> int | None:
        """Returns how many samples are given; None where their input does not say it.

        Raises:
            InputMismatchError: There are none.
        """
        for spec in self.inputs:
            array = arrays.get(spec.name)
            if spec.name in self._batched and isinstance(array, np.ndarray):
                if array.ndim != len(spec.shape):
                    return None
                if array.shape[0] == 0:
                    raise InputMismatchError(
                        f"Input {spec.name} holds no samples: its shape is {array.shape}.",
                        where=f"Input: {spec}",
                        fix="Pass one sample or more.",
                    )
                return len(array)
        return None

    def _require_splitting(self, samples: int) -> None:
        """Refuses a number of samples that has no artifact of its own, where they stay together."""
        if self._splits:
            return
        takes = " or ".join(map(str, self.batches))
        if self._unsplit:
            why = f"The output {self._unsplit[0]} is one of all samples together."
        else:
            why = (
                "An answer of the artifact may depend on the other samples of its batch: the "
                "compile did not show that it does not."
            )
        raise InputMismatchError(
            f"{samples} samples are given, and the bundle takes {takes} at once.",
            where=why,
            fix=f"Pass {takes}; or compile with --batch {samples}.",
        )

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """Keeps the artifacts open until a run has ended, whoever closes meanwhile."""
        with self._counting:
            if self._freed:
                raise self._closed_error()
            self._runs += 1
        try:
            yield
        finally:
            with self._counting:
                self._runs -= 1
                last = self._closed and self._runs == 0
            if last:
                self._free()

    def _run_impl(self, arrays: dict[str, Array]) -> dict[str, Array]:
        with self._under_way():
            return self._answer(arrays)

    def _run_into(self, arrays: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
        with self._under_way():
            return self._answer_into(arrays, out)

    def _answer(self, arrays: dict[str, Array]) -> dict[str, Array]:
        samples = self._count(arrays)
        if self.plan(samples) == [samples]:
            runner = self.runners[samples]
            return runner._checked(runner._run_impl(arrays))
        specs = _sized(self.outputs, {spec.name for spec in self.outputs}, samples)
        return self._answer_into(
            arrays, {spec.name: np.empty(spec.shape, spec.dtype) for spec in specs}
        )

    def _answer_into(self, arrays: dict[str, Array], out: dict[str, Array]) -> dict[str, Array]:
        begin = 0
        samples = self._count(arrays)
        plan = self.plan(samples)
        if plan == [samples]:  # also of outputs that are one of all samples
            runner = self.runners[samples]
            return runner._checked(runner._run_into(arrays, runner._room(arrays, out)))
        for batch in plan:
            runner, count = self.runners[batch], min(batch, samples - begin)
            piece = {
                name: _cut(array, begin, count, batch) if name in self._batched else array
                for name, array in arrays.items()
            }
            if count == batch:
                room = {name: array[begin : begin + batch] for name, array in out.items()}
                runner._checked(runner._run_into(piece, runner._room(piece, room)))
            else:
                for name, found in runner._checked(runner._run_impl(piece)).items():
                    out[name][begin : begin + count] = found[:count]
            begin += count
        return out

    def _count(self, arrays: Mapping[str, Array]) -> int:
        """Returns how many samples checked arrays hold."""
        samples = self._samples(arrays)
        return self.batches[0] if samples is None else samples

    def _outputs_of(self, taken: Mapping[str, Array]) -> dict[str, TensorSpec]:
        samples = self._count(taken)
        given = {spec.name for spec in self.outputs} - set(self._unsplit)
        return {spec.name: spec for spec in _sized(self.outputs, given, samples)}

    def _close_impl(self) -> None:
        with self._counting:
            waits = self._runs > 0  # the last run frees them
        if not waits:
            self._free()

    def _free(self) -> None:
        self._freed = True
        for runner in self.runners.values():
            runner.close()


def _sized(
    specs: Sequence[TensorSpec], batched: Collection[str], samples: int
) -> tuple[TensorSpec, ...]:
    """Returns the specs for another number of samples."""
    return tuple(
        replace(spec, shape=(samples, *spec.shape[1:])) if spec.name in batched else spec
        for spec in specs
    )


def _batched(ladder: Sequence[tuple[int, Sequence[TensorSpec]]]) -> frozenset[str]:
    """Returns the names of the tensors whose leading axis is the samples, at each batch."""
    at_each = [
        {spec.name for spec in specs if spec.shape[:1] == (batch,)} for batch, specs in ladder
    ]
    return frozenset(set.intersection(*at_each))


def _cut(array: Array, begin: int, count: int, batch: int) -> Array:
    """Returns some samples of an array, filled up to a batch by repeating the last."""
    piece = array[begin : begin + count]
    if count == batch:
        return piece
    return np.concatenate([piece, np.repeat(piece[-1:], batch - count, axis=0)])
