"""Runs two sides on the same inputs, and measures output by output how far they are apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tokexport.exporter.comparison.figures import Figures, figures
from tokexport.exporter.comparison.reference_batches import (
    reference_batches,
    values_of,
)
from tokexport.exporter.comparison.sides import (
    ANY_SIZE,
    SOURCE,
    RunnerSide,
    Side,
    SideInfo,
    SourceSide,
    kind_of,
)
from tokexport.exporter.config import ReduceConfig, check_threads
from tokexport.exporter.errors import GateError, UsageError, listed
from tokexport.exporter.inputs.batches import Batches, read_inputs, synthetic_inputs
from tokexport.exporter.inputs.kinds import kind_of_inputs
from tokexport.exporter.inputs.pictures import PictureOptions
from tokexport.exporter.inputs.samples import cut
from tokexport.exporter.json_values import plain
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec, batch_of
from tokexport.runtimes.pictures.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tokexport.exporter.source import SourceOptions

#: How many batches are drawn where neither a file nor a bundle has inputs.
DRAWN_BATCHES: Final = 4
IDENTICAL: Final = "identical"
DIFFERENT: Final = "different"


@dataclass(frozen=True)
class ComparedOutputs:
    """What a comparison of two sides found.

    Attributes:
        reference: The first side, which the other is held to.
        candidate: The second side.
        inputs: Where the inputs come from, a clause.
        samples: How many samples both ran.
        outputs: The figures of every output that both have, by the reference's name.
        alone: The outputs that one side alone has.
        notes: What a reader has to know, a sentence each: names that differ, outputs of one side.
        decision_agreement: The share of positions and truth values that a bundle decides as the
            source in eager does; None where the sides are no bundle and a source, or nothing is
            decided.
    """

    reference: SideInfo
    candidate: SideInfo
    inputs: str
    samples: int
    outputs: Mapping[str, Figures]
    alone: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decision_agreement: float | None = None

    @property
    def verdict(self) -> str:
        """``identical`` where all values of all outputs are equal, else ``different``."""
        same = not self.alone and all(one.identical for one in self.outputs.values())
        return IDENTICAL if same else DIFFERENT

    @property
    def tolerance(self) -> float:
        """The smallest local tolerance under which every output passes."""
        return max(one.tolerance for one in self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, and the verdict."""
        data: dict[str, Any] = plain(self)
        return {"verdict": self.verdict, "tolerance": plain(self.tolerance), **data}

    def failed(self, tolerance: float) -> GateError | None:
        """Returns the error that names the outputs that need a larger tolerance; None without any.

        Args:
            tolerance: The local tolerance, a share of the scale around each value.
        """
        wide = [
            f"output '{name}' needs {one.tolerance:.2e}"
            for name, one in self.outputs.items()
            if not one.tolerance <= tolerance
        ]
        wide += [f"output '{name}' is on one side only" for name in self.alone]
        if not wide:
            return None
        return GateError(
            f"The two differ by more than the tolerance {tolerance:g}: {listed(wide)}.",
            where=f"{self.candidate} against {self.reference}.",
            fix="Compare them in parts: compile --keep-stages leaves the graph of every stage.",
        )


def compare(
    reference: SourceOptions,
    candidate: SourceOptions,
    config: ReduceConfig,
    *,
    precision: str = "fp32",
    threads: int | None = None,
) -> ComparedOutputs:
    """Compares two models on the same inputs.

    Inputs are those of ``config.inputs``; else of the reference data of the first side that is a
    bundle; else drawn from ``config.seed``.

    Args:
        reference: Names what the other is held to: a bundle, an ``.onnx``, an ``.xml``, a source.
        candidate: Names the other.
        config: The inputs, and for a source its batch, shape and reduction.
        precision: What OpenVINO computes an IR in.
        threads: The most threads of a runtime; None leaves it to the runtime.

    Raises:
        UsageError: A side is not found, or the two take or give nothing alike.
        InputError: The inputs do not fit.
        tokexport.runtimes.errors.RuntimesError: A bundle is altered, or a side cannot run here.
    """
    check_threads(threads)
    with _opened((reference, candidate), config, precision, threads) as (one, other):
        specs = _concrete(one, other, config.batch)
        batches = _inputs(one, other, specs, config)
        theirs, notes = _adapted(batches, specs, _concrete(other, one, config.batch))
        wanted, found = one.answers(batches), other.answers(theirs)
        pairs, alone, unlike = _paired(wanted, found)
        outputs = {
            name: _measured(name, _samples(wanted[name], batches), _samples(found[its], theirs))
            for name, its in pairs.items()
        }
        said = (*notes, *unlike)
        if alone:
            said += (f"On one side only: {listed(alone)}.",)
        for side in (one, other):
            if side.other_batches:
                batches_left = " and ".join(map(str, side.other_batches))
                said += (f"{side.info.name} takes {batches_left} samples too, not compared here.",)
        sides = ((one, batches), (other, theirs))
        agreement = _agreement(sides, threads)
        return ComparedOutputs(
            one.info, other.info, batches.origin, batches.samples, outputs, alone, said, agreement
        )


def _agreement(sides: Sequence[tuple[Side, Batches]], threads: int | None) -> float | None:
    """Returns how far a bundle decides as a source does, where the sides are these two."""
    bundles = [one.bundle for one, _ in sides if isinstance(one, RunnerSide) and one.bundle]
    for side, batches in sides:
        if isinstance(side, SourceSide) and bundles:
            return side.decision_agreement(bundles[0], batches, threads)
    return None


@contextmanager
def _opened(
    names: Sequence[SourceOptions], config: ReduceConfig, precision: str, threads: int | None
) -> Iterator[list[Side]]:
    """Opens both sides; a source takes batch, shape and fixed inputs of the other."""
    kinds = [kind_of(name.source) for name in names]
    if SOURCE not in kinds and config.reduce is not None:
        raise UsageError(
            "--reduce goes into a source, and neither side is one.",
            fix="Leave it out: a bundle and a file compute what is in them.",
        )
    with ExitStack() as stack:
        runners: dict[int, RunnerSide] = {}
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True)):
            if kind != SOURCE:
                path = Path(name.source)
                runners[place] = RunnerSide(path, kind, precision=precision, threads=threads)
                stack.callback(runners[place].close)
        for runner in runners.values():
            config = _like(runner, config)
        known = [one.inputs for one in runners.values() if all(map(_is_fixed, one.inputs))]
        shape = known[0] if known else ()
        steps = _steps(runners.values()) if _of_pictures(config) else None
        yield [
            runners[place] if place in runners else SourceSide(name, config, shape, steps)
            for place, name in enumerate(names)
        ]


def _steps(sides: Iterable[Side]) -> Preprocessing | None:
    """Returns the steps that a side says; the first that says some."""
    pictures = [PictureOptions(own=side.preprocessing) for side in sides if side.preprocessing]
    return pictures[0].steps(()) if pictures else None


def _of_pictures(config: ReduceConfig) -> bool:
    return config.inputs is not None and kind_of_inputs(Path(config.inputs)).of_pictures


def _is_fixed(spec: TensorSpec) -> bool:
    return ANY_SIZE not in spec.shape


def _like(side: Side, config: ReduceConfig) -> ReduceConfig:
    """Returns the configuration of a source with the batch and the fixed inputs of a side."""
    batch = side.inputs[0].shape[:1] if side.inputs else ()
    return replace(
        config,
        batch=config.batch or next((size for size in batch if size != ANY_SIZE), None),
        constants=config.constants or values_of(side.constants) or None,
    )


def _concrete(side: Side, other: Side, batch: int | None) -> tuple[TensorSpec, ...]:
    """Returns the inputs of a side; sizes that it leaves open are the other's, and the batch 1."""
    known = _by_name_or_order(side.inputs, other.inputs)
    return tuple(_filled(spec, known.get(spec.name), batch) for spec in side.inputs)


def _filled(spec: TensorSpec, other: TensorSpec | None, batch: int | None) -> TensorSpec:
    sizes = list(spec.shape)
    if other is not None and len(other.shape) == len(sizes):
        pairs = zip(sizes, other.shape, strict=True)
        sizes = [its if size == ANY_SIZE else size for size, its in pairs]
    if sizes and sizes[0] == ANY_SIZE:
        sizes[0] = batch or 1
    if ANY_SIZE in sizes:
        raise UsageError(
            f"Input '{spec.name}' leaves sizes open, and the other side does not say them: {spec}.",
            fix="Compare with a side of fixed shapes, as a bundle or a source is.",
        )
    return replace(spec, shape=tuple(sizes))


def _by_name_or_order(
    ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]
) -> dict[str, TensorSpec]:
    """Returns what each of our inputs is on the other side."""
    named = {spec.name: spec for spec in theirs}
    if len(ours) != len(theirs):
        return {spec.name: named[spec.name] for spec in ours if spec.name in named}
    used = {spec.name for spec in ours}
    others = iter([spec for spec in theirs if spec.name not in used])
    return {spec.name: named.get(spec.name) or next(others) for spec in ours}


def _inputs(one: Side, other: Side, specs: tuple[TensorSpec, ...], config: ReduceConfig) -> Batches:
    """Returns what the first side is run on."""
    if config.inputs is not None:
        batch = batch_of(specs)
        pictures = PictureOptions(config.preprocess, one.preprocessing or other.preprocessing)
        path, samples = Path(config.inputs), config.samples
        return read_inputs(path, specs, batch, samples, one.constants, pictures)
    for side in (one, other):
        if (own := side.own_inputs()) is not None:
            batches = reference_batches(own, side.inputs, side.info.name)
            return batches if side is one else _adapted(batches, side.inputs, specs)[0]
    for side in (one, other):
        if isinstance(side, SourceSide):
            return side.drawn if side is one else _adapted(side.drawn, side.inputs, specs)[0]
    return synthetic_inputs(specs, DRAWN_BATCHES, config.seed)


def _adapted(
    batches: Batches, specs: Sequence[TensorSpec], wanted: Sequence[TensorSpec]
) -> tuple[Batches, tuple[str, ...]]:
    """Brings batches to the names and the batch of the other side.

    Args:
        batches: Those of one side.
        specs: What that side takes.
        wanted: What the other takes.

    Returns:
        The batches, and what a reader has to know.

    Raises:
        UsageError: The two sides take other inputs.
    """
    known = _by_name_or_order(specs, wanted)
    before, after = batch_of(specs), batch_of(wanted)
    unlike = [spec for spec in specs if not _fit(spec, known.get(spec.name), before, after)]
    if unlike or len(specs) != len(wanted):
        raise UsageError(
            "The two sides take other inputs: "
            f"{'; '.join(map(str, specs))}, and {'; '.join(map(str, wanted))}.",
            fix="Compare models of the same inputs, or pass --batch for a source.",
        )
    arrays = {
        known[spec.name].name: _recut(spec, batches, known[spec.name], before, after)
        for spec in specs
    }
    renamed = [f"{name} is {its.name}" for name, its in known.items() if name != its.name]
    notes = (f"The inputs are paired by their order: {listed(renamed)}.",) if renamed else ()
    names = tuple(spec.name for spec in wanted)
    return replace(batches, names=names, arrays={name: arrays[name] for name in names}), notes


def _fit(spec: TensorSpec, other: TensorSpec | None, before: int, after: int) -> bool:
    """Returns whether two inputs take the same values; the number of samples at once may differ."""
    if other is None or spec.dtype != other.dtype:
        return False
    return spec.shape == other.shape or _of_samples(spec, other, before, after)


def _of_samples(spec: TensorSpec, other: TensorSpec, before: int, after: int) -> bool:
    """Returns whether an input begins with the samples, on both sides."""
    sizes = spec.shape[:1], other.shape[:1]
    return sizes == ((before,), (after,)) and spec.shape[1:] == other.shape[1:]


def _recut(spec: TensorSpec, batches: Batches, other: TensorSpec, before: int, after: int) -> Array:
    """Cuts an input (batches, …) anew, where the other side takes more or fewer samples at once."""
    array = batches.arrays[spec.name]
    if before == after:
        return array
    if _of_samples(spec, other, before, after):
        return cut(array.reshape(-1, *array.shape[2:])[: batches.samples], after)
    if any(not np.array_equal(one, array[0]) for one in array):
        raise UsageError(
            f"Input '{spec.name}' is none of samples, and differs between the batches.",
            fix="Give both sides the same batch, or one value of it with --inputs.",
        )
    return np.stack([array[0]] * -(-batches.samples // after))


def _samples(array: Array, batches: Batches) -> Array:
    """Brings an output (batches, …) to (samples, …), repeats that fill up the last batch left out.

    One that does not begin with the batch stays as it is.
    """
    size = batches.arrays[batches.names[0]].shape[1:2]
    if not size or array.shape[1:2] != size:
        return array
    return array.reshape(-1, *array.shape[2:])[: batches.samples]


def _paired(
    wanted: Mapping[str, Array], found: Mapping[str, Array]
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Returns the candidate's output for each of the reference's, what is left over, and notes."""
    pairs = {name: name for name in wanted if name in found}
    if not pairs and len(wanted) == len(found):
        pairs = dict(zip(wanted, found, strict=True))
        said = [f"{name} is {its}" for name, its in pairs.items()]
        return pairs, (), (f"The outputs are paired by their order: {listed(said)}.",)
    if not pairs:
        raise UsageError(
            f"The two sides have no output in common: {listed([*wanted])}, and {listed([*found])}.",
            fix="Compare models of the same outputs.",
        )
    alone = [name for name in (*wanted, *found) if name not in pairs]
    return pairs, tuple(alone), ()


def _measured(name: str, one: Array, other: Array) -> Figures:
    """Compares two outputs; refuses those of other shapes or kinds."""
    floats = one.dtype.kind == "f", other.dtype.kind == "f"
    if one.shape == other.shape and floats[0] == floats[1]:
        return figures(one, other)
    raise UsageError(
        f"Output '{name}' is {one.dtype} {one.shape} on one side, and {other.dtype} {other.shape} "
        "on the other.",
        fix="Compare models of the same outputs; give both the same --reduce.",
    )
