"""Runs two sides on the same inputs, and measures output by output how far they are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokexport.exporter.comparison.figures import Figures, figures
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
from tokexport.exporter.inputs.batches import Batches, cut, read_inputs, synthetic_inputs
from tokexport.exporter.json_values import plain
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.manifest import TensorSpec

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
        notes: What a reader has to know, a sentence each: outputs of one side alone, names that
            differ.
    """

    reference: SideInfo
    candidate: SideInfo
    inputs: str
    samples: int
    outputs: Mapping[str, Figures]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``identical`` where all values of all outputs are equal, else ``different``."""
        same = all(one.identical for one in self.outputs.values())
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
        pairs, unlike = _paired(wanted, found)
        outputs = {
            name: _measured(name, _samples(wanted[name], batches), _samples(found[its], theirs))
            for name, its in pairs.items()
        }
        said = (*notes, *unlike)
        return ComparedOutputs(one.info, other.info, batches.origin, batches.samples, outputs, said)


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
        yield [
            runners[place] if place in runners else SourceSide(name, config)
            for place, name in enumerate(names)
        ]


def _like(side: Side, config: ReduceConfig) -> ReduceConfig:
    """Returns the configuration of a source that takes what a side takes."""
    shape = side.inputs[0].shape if len(side.inputs) == 1 and not side.constants else ()
    known = bool(shape) and ANY_SIZE not in shape
    batch = side.inputs[0].shape[:1] if side.inputs else ()
    fixed = {one.name: one.array for one in side.constants}
    return replace(
        config,
        input_shape=config.input_shape or (shape if known else None),
        batch=config.batch or next((size for size in batch if size != ANY_SIZE), None),
        constants=config.constants or fixed or None,
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
            fix="Pass samples with --inputs, or compare with a side of fixed shapes.",
        )
    return replace(spec, shape=tuple(sizes))


def _by_name_or_order(
    ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]
) -> dict[str, TensorSpec]:
    """Returns what each of our inputs is on the other side."""
    named = {spec.name: spec for spec in theirs}
    if {spec.name for spec in ours} == named.keys():
        return named
    if len(ours) != len(theirs):
        return {}
    return {spec.name: its for spec, its in zip(ours, theirs, strict=True)}


def _inputs(one: Side, other: Side, specs: tuple[TensorSpec, ...], config: ReduceConfig) -> Batches:
    """Returns what the first side is run on."""
    if config.inputs is not None:
        batch = _batch(specs)
        return read_inputs(Path(config.inputs), specs, batch, config.samples, one.constants)
    for side in (one, other):
        if (own := side.own_inputs()) is not None:
            batches = _of_bundle(own, side)
            return batches if side is one else _adapted(batches, side.inputs, specs)[0]
    for side in (one, other):
        if isinstance(side, SourceSide):
            return side.drawn if side is one else _adapted(side.drawn, side.inputs, specs)[0]
    return synthetic_inputs(specs, DRAWN_BATCHES, config.seed)


def _of_bundle(arrays: Mapping[str, Array], side: Side) -> Batches:
    """Returns the inputs of a bundle's reference data as batches."""
    names = tuple(spec.name for spec in side.inputs)
    count = len(arrays[names[0]])
    samples = count * _batch(side.inputs)
    origin = f"{samples} samples of the reference data of {side.info.name}"
    return Batches(names, dict(arrays), samples, None, origin)


def _batch(specs: Sequence[TensorSpec]) -> int:
    """Returns how many samples inputs hold at once."""
    return specs[0].shape[0] if specs and specs[0].shape else 1


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
    unlike = [spec for spec in specs if not _fit(spec, known.get(spec.name))]
    if unlike or len(specs) != len(wanted):
        raise UsageError(
            "The two sides take other inputs: "
            f"{'; '.join(map(str, specs))}, and {'; '.join(map(str, wanted))}.",
            fix="Compare models of the same inputs, or pass --batch for a source.",
        )
    before, after = _batch(specs), _batch(wanted)
    arrays = {
        known[spec.name].name: _recut(batches.arrays[spec.name], before, after, batches.samples)
        for spec in specs
    }
    renamed = [f"{name} is {its.name}" for name, its in known.items() if name != its.name]
    notes = (f"The inputs are paired by their order: {listed(renamed)}.",) if renamed else ()
    names = tuple(spec.name for spec in wanted)
    return replace(batches, names=names, arrays={name: arrays[name] for name in names}), notes


def _fit(spec: TensorSpec, other: TensorSpec | None) -> bool:
    """Returns whether two inputs take the same samples; the number at once may differ."""
    return other is not None and (spec.dtype, spec.shape[1:], bool(spec.shape)) == (
        other.dtype,
        other.shape[1:],
        bool(other.shape),
    )


def _recut(array: Array, before: int, after: int, samples: int) -> Array:
    """Cuts (batches, before, …) anew into batches of another size."""
    if before == after or array.shape[1:2] != (before,):
        return array
    return cut(array.reshape(-1, *array.shape[2:])[:samples], after)


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
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the candidate's output for each of the reference's, and what is left over."""
    pairs = {name: name for name in wanted if name in found}
    if not pairs and len(wanted) == len(found):
        pairs = dict(zip(wanted, found, strict=True))
        said = [f"{name} is {its}" for name, its in pairs.items()]
        return pairs, (f"The outputs are paired by their order: {listed(said)}.",)
    if not pairs:
        raise UsageError(
            f"The two sides have no output in common: {listed([*wanted])}, and {listed([*found])}.",
            fix="Compare models of the same outputs.",
        )
    alone = [
        f"Only {which} has output {listed(left)}."
        for which, left in (
            ("the reference", [name for name in wanted if name not in pairs]),
            ("the candidate", [name for name in found if name not in pairs]),
        )
        if left
    ]
    return pairs, tuple(alone)


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
