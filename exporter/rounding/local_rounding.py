"""Brings rounding errors of outputs to their neighbourhoods, for measured batches and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.rounding.column_rounding import Columns, columns_of
from tokexport.exporter.rounding.measure import Rounding
from tokexport.exporter.rounding.score_rounding import few
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.tolerances.neighbourhoods import Neighbourhoods, RoundingError, as_samples

#: How many times what rounding does an output may be off, in fp32.
ROUNDING_FACTOR: Final = 4.0
#: How many batches of one kind of inputs are measured.
MEASURED: Final = 4
#: What an axis of an output is called, by how many it has in a sample.
_AXIS_NAMES: Final = {2: ("row", "channel"), 3: ("channel", "line", "column")}


@dataclass(frozen=True)
class LocalRounding:
    """The rounding error of one floating output, in every neighbourhood.

    Attributes:
        rounding_error: How far rounding moves the values, (batches × samples, …).
        half: The same for a half type; None where none was asked for.
        shares: ``rounding_error`` as a share of each neighbourhood's own scale.
        half_shares: The same of ``half``.
        kinds: The rows of ``rounding_error`` of every kind of inputs.
        samples: How many samples a batch has, as the output counts them.
        largest: The largest difference found, an absolute number.
        from_float64: The largest distance of eager from float64; None without a float64 run.
        why_not: The reason for that.
        int8: What int8 does to the values measured, (some samples, …); None where none was asked
            for.
        decides: Whether the model decides something by comparing numbers.
        times_few: The largest factor by which it counts where it is estimated from few values.
        columns: What rounding does to the columns of an output of one row a sample; else None.
        half_columns: The same of a half type; None where none was asked for.
    """

    rounding_error: RoundingError
    half: RoundingError | None
    shares: tuple[Array, ...]
    half_shares: tuple[Array, ...]
    kinds: tuple[Array, ...]
    samples: int
    largest: float
    from_float64: float | None
    why_not: str = ""
    int8: Array | None = None
    decides: bool = False
    times_few: float = 1.0
    columns: Columns | None = None
    half_columns: Columns | None = None

    def scale_of_numbers(self, expected: Array) -> Array | None:
        """Returns the scale of each sample (batches × samples,) of an output of one number each.

        It is that of all samples of its kind of inputs, of which a bundle keeps a few; None where
        samples have more numbers.
        """
        flat = as_samples(expected, self.samples)
        scale = np.zeros(len(flat))
        for rows in self.kinds:
            around = Neighbourhoods(flat[rows])
            if not around.is_one_number:
                return None
            scale[rows] = around.scales[0][:, 0]
        return scale

    def error(self, scale: float) -> float | None:
        """Returns the largest distance of eager from float64 as a share of a scale."""
        return None if self.from_float64 is None else self.from_float64 / (scale or 1.0)

    @property
    def typical(self) -> float:
        """The share of its scale by which rounding moves an ordinary neighbourhood."""
        return _typical(self.shares)

    @property
    def typical_half(self) -> float:
        """The same of rounding to a half type; 0 where none was asked for."""
        return _typical(self.half_shares)

    def of_kind(self, position: int) -> LocalRounding:
        """Returns the same of one kind of inputs alone."""
        rows = self.kinds[position]
        return replace(
            self,
            rounding_error=self.rounding_error.of(rows),
            half=None if self.half is None else self.half.of(rows),
            shares=tuple(one[rows] for one in self.shares),
            half_shares=tuple(one[rows] for one in self.half_shares),
            kinds=(np.arange(len(rows)),),
            columns=None if self.columns is None else self.columns.of(rows),
            half_columns=None if self.half_columns is None else self.half_columns.of(rows),
        )

    def unstable(self, share: float) -> str:
        """Names the neighbourhoods that rounding moves by more than a share of their own scale."""
        said = []
        names = _AXIS_NAMES.get(len(self.shares), ("sample",) * len(self.shares))
        parts = list(zip(names, self.shares, strict=True))
        if self.columns is not None:
            parts.append(("column", self.columns.shares))
        for word, shares in parts:
            most = shares.max(axis=0, initial=0.0)
            over = np.flatnonzero(most > share)
            if over.size:
                which = f"{over.size} of {most.size} {word}s"
                said.append(f"{which}, up to {most.max():.1e} of their own scale")
        alone = float(self.rounding_error.share.max(initial=0.0))
        if alone > share:
            said.append(f"values far beyond all others, up to {alone:.1e} of themselves")
        return "; ".join(said)


def _typical(shares: tuple[Array, ...]) -> float:
    return min((float(np.median(one)) for one in shares if one.size), default=0.0)


def local_rounding(
    outputs: Mapping[str, Array],
    rounding: Rounding,
    batches: Batches,
    samples: int,
    *,
    with_float64: bool = True,
) -> dict[str, LocalRounding]:
    """Returns the rounding error of each floating output, by neighbourhood.

    What was measured on some batches of a kind of inputs holds for all of that kind: the largest in
    each neighbourhood, in proportion where a batch that was not measured has larger values there.

    Args:
        outputs: What the model answered, (batches, …) by name.
        rounding: What was measured.
        batches: The inputs.
        samples: How many samples a batch has.
        with_float64: Whether the distance of eager from float64 counts.
    """
    found = {}
    for name, expected in outputs.items():
        if expected.dtype.kind != "f":
            continue
        parts = [rounding.by_chance[name]]
        if with_float64 and name in rounding.from_float64:
            parts.append(rounding.from_float64[name])
        far = rounding.from_float64.get(name)
        own = _Pooled(expected, rounding.rows, batches, samples)
        rounding_error, shares = own.of(np.maximum.reduce(parts))
        half: RoundingError | None = None
        half_shares: tuple[Array, ...] = ()
        half_columns: Columns | None = None
        if name in rounding.by_half:
            half, half_shares = own.of(rounding.by_half[name])
            half_columns = own.columns([rounding.by_half[name]], rounding.draws)
        found[name] = LocalRounding(
            rounding_error,
            half,
            shares,
            half_shares,
            own.kinds,
            own.samples,
            max((float(part.max(initial=0.0)) for part in parts), default=0.0),
            None if far is None else float(far.max(initial=0.0)),
            rounding.why_not,
            _int8(rounding, name, parts, own.samples),
            bool(rounding.scores),
            own.times_few,
            own.columns(parts, rounding.draws),
            half_columns,
        )
    return found


def _int8(rounding: Rounding, name: str, parts: Sequence[Array], samples: int) -> Array | None:
    """Returns the error of int8, with rounding, in an output, (some samples, …)."""
    if name not in rounding.by_int8:
        return None
    found = rounding.by_int8[name]
    times = len(found) // len(rounding.rows)
    beside = np.repeat(np.maximum.reduce(parts), times, axis=0)
    return as_samples(np.maximum(found, ROUNDING_FACTOR * beside), samples)


def rows_to_measure(batches: Batches) -> tuple[int, ...]:
    """Returns the batches that rounding is measured on: the first few of every kind of inputs."""
    return tuple(sorted(row for rows in batches.by_kind().values() for row in rows[:MEASURED]))


class _Pooled:
    """Spreads the measurements on some batches of an output over all batches."""

    def __init__(
        self, expected: Array, measured: Sequence[int], batches: Batches, samples: int
    ) -> None:
        per_sample = expected.ndim > 1 and expected.shape[1] == samples
        self.samples = samples if per_sample else 1
        self.times_few = 1.0
        self._flat = as_samples(expected, samples)
        self._measured = measured
        self._rows = [np.array(rows) for rows in batches.by_kind().values()]
        self.kinds = tuple(self._samples_of(rows) for rows in self._rows)

    def _samples_of(self, rows: Array) -> Array:
        if self.samples == 1:
            return rows
        return np.concatenate([np.arange(self.samples) + row * self.samples for row in rows])

    def of(self, differences: Array) -> tuple[RoundingError, tuple[Array, ...]]:
        """Returns the rounding error of all samples, and its share of each scale."""
        flat = differences.reshape(-1, *self._flat.shape[1:])
        parts = [self._kind(flat, *each) for each in zip(self._rows, self.kinds, strict=True)]
        order = np.argsort(np.concatenate(self.kinds))
        rounding_errors = [rounding_error for rounding_error, _ in parts]
        by_axis = tuple(
            np.concatenate(columns)[order]
            for columns in zip(
                *(rounding_error.by_axis for rounding_error in rounding_errors), strict=True
            )
        )
        share, fills = (
            np.concatenate(columns)[order]
            for columns in zip(
                *(
                    (rounding_error.share, rounding_error.fills)
                    for rounding_error in rounding_errors
                ),
                strict=True,
            )
        )
        shares = tuple(
            np.concatenate(columns)[order]
            for columns in zip(*(shares for _, shares in parts), strict=True)
        )
        return RoundingError(by_axis, share, fills), shares

    def columns(self, parts: Sequence[Array], draws: int) -> Columns | None:
        """Returns the rounding error of the columns of an output of one row a sample."""
        inner = self._flat.shape[1:]
        flat = [one.reshape(-1, *inner) for one in parts]
        measured = self._samples_of(np.array(self._measured))
        return columns_of(self._flat, measured, flat, self.kinds, draws)

    def _kind(
        self, flat: Array, rows: Array, samples: Array
    ) -> tuple[RoundingError, tuple[Array, ...]]:
        """Returns the rounding error of the samples of one kind of inputs."""
        places = [place for place, row in enumerate(self._measured) if row in set(rows.tolist())]
        measured = self._samples_of(np.array([self._measured[place] for place in places]))
        around = Neighbourhoods(self._flat[samples])
        some = Neighbourhoods(self._flat[measured])
        rounding_error = some.rounding_error(flat[self._samples_of(np.array(places))])
        by_axis = []
        for position, (one, scales) in enumerate(
            zip(rounding_error.by_axis, around.scales, strict=True)
        ):
            members = some.members(position)
            known_top = members.max(axis=(0, 2), initial=0.0)[None]
            known = some.scales[position].max(axis=0, keepdims=True)
            top = around.members(position).max(axis=2, initial=0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                count = members.sum(axis=(0, 2))[None] / known_top  # of those as large as it
                larger = np.maximum(scales / known, top / known_top)
            largest, times = one.max(axis=0, keepdims=True), few(np.nan_to_num(count))
            self.times_few = max(self.times_few, times[(known > 0) & (largest > 0)].max(initial=1))
            most = largest * times
            seen = most * np.maximum(np.nan_to_num(larger, posinf=1.0), 1.0)
            by_axis.append(np.where(known > 0, seen, _unseen(most, known, scales)))
        share, fills = (
            np.full(len(samples), one.max(initial=0.0) * few(int(np.count_nonzero(where))))
            for one, where in (
                (rounding_error.share, some.alone),
                (rounding_error.fills, some.computed_fills),
            )
        )
        found = RoundingError(tuple(by_axis), share, fills)
        return found, around.share_of_scale(found)


def _unseen(most: Array, known: Array, scales: Array) -> Array:
    """Returns the rounding error of neighbourhoods that held only zeros when measured.

    It is that of an ordinary one, and at most the largest share of their scale.
    """
    if not (known > 0).any():
        return np.zeros_like(scales)
    share = most[known > 0] / known[known > 0]
    found: Array = np.minimum(np.median(most[known > 0]), share.max() * scales)
    return found


def stored(
    rounding_error: RoundingError,
    scale: Array | None,
    columns: Array | None,
    rows: Sequence[int],
    samples: int,
) -> Iterator[tuple[str, Array]]:
    """Yields the arrays that a bundle keeps of a rounding error, by the last part of a name.

    Args:
        rounding_error: The rounding error of all samples.
        scale: The scale of each where it has one number.
        columns: How far their values may be off for their columns, where they have some.
        rows: The batches.
        samples: How many samples a batch has.
    """
    parts: dict[int | str, Array] = dict(enumerate(rounding_error.by_axis))
    parts |= {"share": rounding_error.share, "fills": rounding_error.fills}
    known = {"scale": scale, "column": columns}
    parts |= {name: one for name, one in known.items() if one is not None}
    for name, one in parts.items():
        by_batch = one.reshape(-1, samples, *one.shape[1:])[list(rows)]
        # The next larger float32, so that the tolerance does not shrink by being stored.
        yield str(name), np.nextafter(by_batch.astype(np.float32), np.float32(np.inf))
