"""Holds the options of a compile or an inspection, checked once."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.batch_sizes import batches_of
from tokexport.exporter.errors import UsageError
from tokexport.runtimes.cores.thread_count import MOST_THREADS, is_thread_count
from tokexport.runtimes.pictures.steps_text import parse_preprocessing, read_sides

if TYPE_CHECKING:
    from tokexport.exporter.recipe import Recipe
    from tokexport.graph_passes.reduction.method import Method

#: How int8 finds the ranges of activations: anew for each input, or once on the samples.
QUANTIZATIONS: Final = ("dynamic", "static")
#: Puts scaling, normalisation and layout into the artifact, and no resizing.
NORMALISE: Final = "normalise"
#: The largest side of a picture that an artifact resizes.
_LARGEST_SIDE: Final = 1 << 13
#: Stands for the size of an input that is not known yet.
_ANY_SIZE: Final = (224, 224)


class EmbeddedOptions(TypedDict, total=False):
    """The options of a compile that only some bundles have."""

    embed_preprocess: str


class BundledOptions(EmbeddedOptions):
    """The options of a compile that shape the graph beside inputs and reduction.

    Attributes:
        token_cap: The caps on rows that the data choose; None without any.
        drop_noise: Whether the mean stands in place of each random number.
        quantization: How int8 was asked to find the ranges of activations; None by default.
        weight_bits: The bits of a weight in int8 that were asked for; None by default.
        atol: The absolute tolerance that was asked for; None by default.
        embed_preprocess: What of the preprocessing the artifact does itself: ``normalise``, or the
            size of the pictures that it resizes too, ``480x640``; not there without any.
    """

    token_cap: list[int] | None
    drop_noise: bool
    quantization: str | None
    weight_bits: int | None
    atol: float | None


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """The inputs that a model is run or traced on.

    Paths may be given as texts.

    Attributes:
        inputs: A file of real samples, or a folder of pictures; without it inputs are drawn from
            ``seed``.
        samples: How many of them are used, evenly spaced; None uses all.
        input_shape: The shape of the only input, batch first, where the source does not say it.
        batch: The number of samples the model takes at once; replaces what the source says.
        seed: The seed of synthetic inputs.
        constants: The inputs that are fixed: their values by name, None for that of the example; or
            names alone.
        preprocess: The steps from a picture to the input, ``size=224,crop=0.9,mean=imagenet``; None
            takes those of the source. The manifest holds them.
        labels: A file with the names of the classes, one a line, in the order of the outputs; the
            manifest holds them, and subfolders or a list may be named by them. None takes those
            that the source knows.
    """

    inputs: str | Path | None = None
    samples: int | None = None
    input_shape: tuple[int, ...] | None = None
    batch: int | None = None
    seed: int = 0
    constants: Mapping[str, Any] | Collection[str] | None = None
    preprocess: str | None = None
    labels: str | Path | None = None

    def __post_init__(self) -> None:
        """Refuses numbers below the smallest."""
        for name in ("inputs", "labels"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        if not isinstance(self.inputs, Path | None):
            raise UsageError(
                f"The inputs are a {type(self.inputs).__name__}.", fix="Pass the path of a file."
            )
        if self.samples is not None and not _is_count(self.samples):
            raise UsageError(f"--samples is {self.samples}.", fix="Pass a number of 1 or more.")
        if self.samples is not None and self.inputs is None:
            raise UsageError(
                "--samples says how many samples of --inputs are used, and there is no --inputs.",
                fix="Pass --inputs too, or leave --samples out.",
            )
        if self.preprocess is not None:
            parse_preprocessing(self.preprocess, _ANY_SIZE)
        if self.batch is not None and not _is_count(self.batch):
            raise UsageError(f"The batch is {self.batch}.", fix="Pass a batch of 1 or more.")
        if self.input_shape is not None and not all(map(_is_count, self.input_shape)):
            raise UsageError(
                f"The input shape is {self.input_shape}.",
                fix="Pass sizes of 1 or more: 1,3,224,224",
            )
        if self.seed < 0:
            raise UsageError(f"The seed is {self.seed}.", fix="Pass a seed of 0 or more.")


@dataclass(frozen=True, kw_only=True)
class ReduceConfig(InputConfig):
    """The inputs of a model, and the token reduction that is put into it first.

    Attributes:
        reduce: The recipe, ``tome:r=8``, a .toml or .json file, or a method object; None
            leaves the model as it is.
        restore: Whether every token is put back behind the last block, whatever the recipe says.
        token_cap: For how many tokens a choice by the data has room, or for how many each has, in
            order; None refuses a choice by the data.
    """

    reduce: str | Path | Method | Recipe | None = None
    restore: bool = False
    token_cap: int | Sequence[int] | None = None

    @property
    def caps(self) -> tuple[int, ...] | None:
        """For how many tokens each choice by the data has room; the last is of all that follow."""
        given = self.token_cap
        return (given,) if isinstance(given, int) else None if given is None else tuple(given)

    def __post_init__(self) -> None:
        """Refuses ``restore`` without ``reduce``, and caps below 1."""
        super().__post_init__()
        check_caps(self.caps)
        if self.restore and self.reduce is None:
            raise UsageError(
                "--restore puts back the tokens that --reduce takes out, and there is no --reduce.",
                fix="Pass --reduce too, or leave --restore out.",
            )


@dataclass(frozen=True)
class CompileConfig(ReduceConfig):
    """The options of a compile.

    Attributes:
        target: ``ort``, ``openvino`` or ``trt``.
        output: The folder that becomes the bundle.
        precision: The precision the artifact runs in.
        quantization: For ort in int8, ``dynamic`` or ``static``; None is ``dynamic``.
        weight_bits: For ort in int8, 7 or 8; None is 8 where this processor has VNNI, and 7 where
            sums of products saturate. A bundle of 7 runs right on every processor.
        atol: An absolute tolerance that replaces the default gate.
        min_speedup: The least speed-up over eager, as a ratio of medians, or of a noisy pair the
            smaller of its two ratios; None does not gate.
        require_run: Whether an engine that could not run here is a failure.
        require_kernels: Whether to fail where the target's native kernels do not load.
        keep_stages: Whether every stage leaves its artifact in ``OUTPUT.stages``.
        keep_onnx: Whether the bundle keeps the ONNX file that its artifact is built from, so that a
            device can build it anew; None is what the target does by default: trt keeps it.
        force: Whether an earlier bundle at ``output`` may be replaced.
        drop_noise: Whether random numbers drawn at inference become their means.
        timed: Whether the artifact is timed against eager.
        tune: Whether the forms of the token operators are timed, and the fastest are built.
        threads: The most threads that eager and the runtime may use; None leaves it to them.
        embed_preprocess: What of the preprocessing goes into the artifact, which then takes bytes
            (N, H, W, 3): ``normalise``, or the size of the pictures that it resizes too,
            ``480x640``. None leaves all of it to the runner.
    """

    target: str
    output: Path
    precision: str = "fp32"
    quantization: str | None = None
    weight_bits: int | None = None
    atol: float | None = None
    min_speedup: float | None = None
    require_run: bool = False
    require_kernels: bool = False
    keep_stages: bool = False
    keep_onnx: bool | None = None
    force: bool = False
    drop_noise: bool = False
    timed: bool = True
    tune: bool = False
    threads: int | None = None
    embed_preprocess: str | None = None

    def __post_init__(self) -> None:
        """Refuses options that no compile can serve."""
        super().__post_init__()
        check_target(self.target)
        if self.precision not in self.backend.precisions:
            raise UsageError(
                f"Target '{self.target}' has no precision '{self.precision}'.",
                fix=f"Pass one of {', '.join(self.backend.precisions)}.",
            )
        self._check_quantization()
        self._check_weight_bits()
        if self.keep_onnx and self.precision not in self.backend.rebuilds:
            raise UsageError(
                "--keep-onnx keeps what an artifact is built anew from, and this one cannot be.",
                where="The ONNX file is the artifact itself."
                if self.backend.runs_lowered
                else "Its int8 ranges are measured on samples, which no bundle holds.",
                fix="Leave it out.",
            )
        check_threads(self.threads)
        if self.embed_preprocess is not None:
            parse_embedded(self.embed_preprocess)
        if self.tune and not self.backend.tunes:
            others = [name for name, backend in BACKENDS.items() if backend.tunes]
            raise UsageError(
                "--tune times operators in the target's runtime, and no engine is timed.",
                fix=f"Leave it out: {self.backend.title} times its own kernels when it builds an "
                f"engine. Or compile for {' or '.join(others)}.",
            )
        if self.min_speedup is not None and not self.timed:
            raise UsageError(
                "A speed-up is asked for, and nothing is to be timed.",
                fix="Leave min_speedup out, or time the artifact: timed=True.",
            )
        for name, value in (("atol", self.atol), ("min-speedup", self.min_speedup)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{name} is {value}.", fix="Pass a number above 0.")

    def _check_quantization(self) -> None:
        """Refuses an unknown quantization, and a static one without samples."""
        if self.quantization is None:
            return
        if self.quantization not in QUANTIZATIONS:
            raise UsageError(
                f"There is no quantization '{self.quantization}'.",
                fix=f"Pass one of {', '.join(QUANTIZATIONS)}.",
            )
        if self.precision != "int8" or len(self.backend.quantizations) < 2:
            raise UsageError(
                "--quantization is a choice of --target ort --precision int8.",
                fix="Leave it out: int8 for openvino is always static.",
            )
        if self.quantization == "static" and self.inputs is None:
            raise UsageError(
                "Static ranges are measured on real samples, and there are none.",
                fix="Pass some with --inputs, or --quantization dynamic.",
            )

    def _check_weight_bits(self) -> None:
        """Refuses a number of bits that no weight has, or where the target chooses it."""
        if self.weight_bits is None:
            return
        if self.weight_bits not in (7, 8):
            raise UsageError(
                f"No weight has {self.weight_bits} bits.",
                fix="Pass --weight-bits 8, or 7 for processors without VNNI.",
            )
        if not self.backend.arithmetic_in_graph(self.precision):
            raise UsageError(
                "--weight-bits is a choice of --target ort --precision int8.",
                fix="Leave it out: another target, or precision, holds its weights in its own way.",
            )

    @property
    def backend(self) -> Backend:
        """The backend of the target."""
        return BACKENDS[self.target]

    @property
    def keeps_onnx(self) -> bool:
        """Whether the bundle keeps the ONNX file that its artifact is built from."""
        return self.backend.keeps_onnx if self.keep_onnx is None else self.keep_onnx

    @property
    def for_manifest(self) -> BundledOptions:
        """The options that shape graph and gates; inputs and reduction are said elsewhere."""
        caps = None if self.caps is None else list(self.caps)
        found: BundledOptions = {
            "token_cap": caps,
            "drop_noise": self.drop_noise,
            "quantization": self.quantization,
            "weight_bits": self.weight_bits,
            "atol": self.atol,
        }
        if self.embed_preprocess is not None:
            found["embed_preprocess"] = self.embed_preprocess
        return found

    @property
    def quantization_used(self) -> str | None:
        """The quantization of int8; None in another precision."""
        if self.precision != "int8":
            return None
        return self.quantization or self.backend.quantizations[0]

    @property
    def stages_folder(self) -> Path:
        """The folder of kept stages."""
        output = Path(os.path.abspath(self.output))
        return output.with_name(f"{output.name}.stages")


def check_target(target: str) -> None:
    """Refuses an unknown target.

    Raises:
        UsageError: No target has that name.
    """
    if target not in BACKENDS:
        raise UsageError(
            f"There is no target '{target}'.", fix=f"Pass one of {', '.join(BACKENDS)}."
        )


def check_threads(threads: int | None) -> None:
    """Refuses a number of threads that no runtime can take.

    Raises:
        UsageError: It is below 1, or too large.
    """
    if threads is not None and not is_thread_count(threads):
        raise UsageError(f"--threads is {threads}.", fix=f"Pass a number of 1 to {MOST_THREADS}.")


def parse_embedded(text: str) -> tuple[int, int] | None:
    """Returns the size of the pictures that an artifact resizes; None where it only normalises.

    Raises:
        UsageError: The text is neither ``normalise`` nor a height and a width.
    """
    if text == NORMALISE:
        return None
    sides = read_sides(text)
    if len(sides) != 2 or not all(1 <= side <= _LARGEST_SIDE for side in sides):
        raise UsageError(
            f"--embed-preprocess is {text!r:.40}.",
            fix="Pass normalise, or height and width of the pictures: 480x640.",
        )
    return sides[0], sides[1]


def parse_share(text: str) -> float:
    """Reads a share such as ``3%`` or ``0.03``.

    Args:
        text: A number, with a percent sign or without.

    Raises:
        UsageError: The text is no number above 0.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if rest or not 0 < share < math.inf:
        raise UsageError(f"The share {text!r} is no number above 0.", fix="Write 3%, or 0.03.")
    return share


def check_caps(caps: Sequence[int] | None) -> None:
    """Refuses caps below 1."""
    if caps is not None and not (caps and all(map(_is_count, caps))):
        text = ",".join(map(str, caps))
        raise UsageError(
            f"--token-cap is {text}.",
            fix="Pass a cap of 1 or more, or one for each choice: 197,150,120.",
        )


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


class CompileOptions(TypedDict, total=False):
    """The fields of ``CompileConfig`` that have a default, as keywords of ``compile``."""

    inputs: str | Path | None
    samples: int | None
    input_shape: tuple[int, ...] | None
    batch: int | Sequence[int] | None
    seed: int
    reduce: str | Path | Method | Recipe | None
    restore: bool
    precision: str
    quantization: str | None
    weight_bits: int | None
    atol: float | None
    min_speedup: float | None
    require_run: bool
    require_kernels: bool
    keep_stages: bool
    keep_onnx: bool | None
    force: bool
    drop_noise: bool
    token_cap: int | Sequence[int] | None
    timed: bool
    tune: bool
    threads: int | None
    constants: Mapping[str, Any] | Collection[str] | None
    preprocess: str | None
    labels: str | Path | None
    embed_preprocess: str | None


def compile_config(
    target: str, output: str | Path | None, options: CompileOptions
) -> CompileConfig:
    """Returns the options of a compile as keywords of Python give them.

    Args:
        target: The target.
        output: The folder that becomes the bundle.
        options: The others, by name.

    Raises:
        UsageError: An option is unknown, the output is missing, or a value is invalid.
    """
    known = [one.name for one in fields(CompileConfig)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise UsageError(
                f"tokexport.compile has no option '{name}'.",
                fix=f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}.",
            )
    if output is None:
        raise UsageError("tokexport.compile has no output.", fix='Pass output="a new folder".')
    settings: dict[str, Any] = {**options, "batch": batches_of(options.get("batch"))[0]}
    return CompileConfig(target=target, output=Path(output), **settings)
