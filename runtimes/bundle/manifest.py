"""Defines the manifest of a bundle: contents, runtime, and the hash of every file.

    BUNDLE/manifest.json      read first; says how to run the rest
    BUNDLE/<artifact>         what the runtime loads
    BUNDLE/<other files>      external weights, reference.npz, report.json, …

A reader takes any manifest of its own schema version and ignores keys that it does not know, so
keys can be added without a new version. A change of meaning takes a new version.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokexport.runtimes.bundle.class_scores import ClassScores
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.input_checks import InputChecks
from tokexport.runtimes.bundle.requirements import Requirements

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
#: The file that the first artifact of a bundle is verified against.
REFERENCE_NAME = "reference.npz"
PASSED = "PASSED"
BUILT_NOT_RUN = "BUILT, NOT RUN"

Constant = float | int | str | bool | None


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: Its name.
        shape: Its sizes; -1 stands for a size that the runtime knows only after running.
        dtype: The name of its numpy dtype, ``float32``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Returns the spec as a user writes it: ``x float32 (1, 3, 224, 224)``."""
        return f"{self.name} {self.dtype} {self.shape}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an array of a shape fits the spec."""
        return len(shape) == len(self.shape) and all(
            wanted in (size, -1) for size, wanted in zip(shape, self.shape, strict=True)
        )


def batch_of(specs: Sequence[TensorSpec]) -> int:
    """Returns how many samples a model takes at once: the leading size of its first input.

    Args:
        specs: Its inputs.
    """
    first = specs[0].shape if specs else ()
    return first[0] if first else 1


def common_ranges(each: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """Returns the whole numbers that every artifact of some takes, from the first to the last.

    Args:
        each: Those that one artifact takes, by input; an input that is left out takes all.
    """
    found = {}
    for name in {name for ranges in each for name in ranges}:
        ends = [ranges[name] for ranges in each if name in ranges]
        found[name] = max(low for low, _ in ends), min(high for _, high in ends)
    return found


def at_batch(name: str, batch: int) -> str:
    """Returns what an output of one artifact of several is called: ``logits at 8 samples``.

    Args:
        name: The output.
        batch: How many samples the artifact takes at once.
    """
    return f"{name} at {batch} sample{'s' * (batch != 1)}"


@dataclass(frozen=True)
class RuntimeInfo:
    """The runtime that an artifact was built by, or that runs it.

    Attributes:
        name: ``ort``, ``openvino`` or ``trt``.
        flavour: Which build of it: ``onnxruntime-cpu``, ``openvino-cpu``, ``tensorrt`` or
            ``tensorrt-rtx``.
        version: Its exact version.
        details: What else decides how it runs: threads, precision, compute capabilities.
    """

    name: str
    flavour: str
    version: str
    details: dict[str, str | int | list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rung:
    """One more artifact of a bundle: the same model for another number of samples at once.

    Attributes:
        artifact: Name of the file that the runtime loads.
        reference: Name of the file that it is verified against.
        inputs: Its inputs, in the order of the manifest's.
        outputs: The model's output tensors, in the order of the manifest's.
        gates: The gates that it is verified against, as those of the manifest.
        input_ranges: The ranges of whole numbers that it takes, as those of the manifest.
        checks: Its conditions, as those of the manifest.
        latency_ms: The median of a run where it was compiled, in milliseconds; None where it was
            not timed.
        kept_onnx: The ONNX file that it was built from, as that of the manifest.
    """

    artifact: str
    reference: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gates: dict[str, dict[str, float]]
    input_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    checks: InputChecks | None = None
    latency_ms: float | None = None
    kept_onnx: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle.

    Attributes:
        schema_version: The version of this layout.
        tokexport_version: The version that wrote the bundle.
        created: When, in UTC, ISO 8601.
        target: What was asked for: ``ort``, ``openvino`` or ``trt``.
        status: ``PASSED``, or ``BUILT, NOT RUN`` where no device could run the artifact.
        artifact: Name of the file that the runtime loads.
        runtime: What the artifact was built by.
        precision: The precision asked for, ``fp32``.
        inputs: The inputs of the artifact, in the model's order.
        outputs: The model's output tensors, in order.
        constant_outputs: Python values that the model returned beside its tensors, by name.
        token_schedule: The number of tokens at each attention.
        gates: For each output, the gate that it is verified against: ``relative_tolerance``, and
            the ``scale`` that the largest difference is divided by; or ``least_cosine``, with
            ``spread_tolerance`` and the ``spread`` that the root mean square is divided by.
        source: Where the model came from: kind, location, sha256.
        preprocessing: The preprocessing found with the source: mean, std, size, crop; None without
            any.
        files: The SHA-256 of every other file in the bundle, by name.
        reduction: The token reduction that was put into the model: recipe, method, options, blocks,
            special_tokens, tokens; None where the model was compiled as given.
        input_ranges: The lowest and the highest whole number of an input, by its name, where the
            artifact answers as the model did; a runner refuses others.
        forms: Which form the token operators have, by what the calls look like: ``form``,
            ``standard``, ``speedup`` and ``of_minima`` as measured, ``nodes``; None without tuning.
        checks: The conditions that an input has to meet, and the output that says whether it does,
            the artifact's last one; None without conditions.
        constant_inputs: The inputs of the model that were fixed, with their values: the artifact
            does not take them, and a runner refuses other values.
        fingerprint: The hashes of the model as it was traced, its reduction in it:
            ``weights_sha256``, whatever source brought it, and ``weights_set_sha256`` in whatever
            order they are used; and ``structure_sha256``, under the version of ``torch`` beside it.
            None in bundles made before.
        options: The options of the compile that shape the graph beside inputs and reduction:
            ``token_cap``, ``drop_noise``, ``quantization``, ``weight_bits``, and ``atol``. None in
            bundles made before.
        classes: The number of each class by its name, as the pictures of ``--inputs`` named them;
            None without any.
        scores: The output that scores the classes, and what its numbers are; None where none does.
        labels: The name of every class, in the order of that output, '' for one without a name;
            None where nothing says them.
        requires: What the artifact needs of a machine, which is checked before it is opened; None
            in bundles made before, of which ``runtime`` says a part.
        kept_onnx: The ONNX file in the bundle that the artifact was built from, for ``rebuild``;
            None where it was not kept, or is the artifact.
        rebuilt: How the artifact was built anew, where it was: ``created``, ``tokexport_version``,
            and under ``before`` the runtime that it was built by.
        reference: Name of the file that the artifact is verified against.
        samples_independent: Whether the artifact answers each sample of a batch alike, whatever
            the others are, so that samples can be split and filled up; None in bundles made before.
        latency_ms: The median of a run where it was compiled, in milliseconds; None where it was
            not timed.
        rungs: Further artifacts, each of the same model for another number of samples at once.
    """

    schema_version: int
    tokexport_version: str
    created: str
    target: str
    status: str
    artifact: str
    runtime: RuntimeInfo
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constant_outputs: dict[str, Constant]
    token_schedule: tuple[int, ...]
    gates: dict[str, dict[str, float]]
    source: dict[str, Any]
    preprocessing: dict[str, Any] | None
    files: dict[str, str]
    reduction: dict[str, Any] | None = None
    forms: dict[str, Any] | None = None
    input_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    checks: InputChecks | None = None
    constant_inputs: tuple[ConstantInput, ...] = ()
    fingerprint: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    classes: dict[str, int] | None = None
    scores: ClassScores | None = None
    labels: tuple[str, ...] | None = None
    requires: Requirements | None = None
    kept_onnx: str | None = None
    rebuilt: dict[str, Any] | None = None
    reference: str = REFERENCE_NAME
    samples_independent: bool | None = None
    latency_ms: float | None = None
    rungs: tuple[Rung, ...] = ()

    @property
    def batch(self) -> int:
        """How many samples the artifact takes at once: the leading size of its first input."""
        return batch_of(self.inputs)

    @property
    def ladder(self) -> tuple[Manifest, ...]:
        """The manifest of each artifact by itself, in the order of the bundle."""
        alone = dataclasses.replace(self, rungs=())
        return (alone, *(dataclasses.replace(alone, **_fields(rung)) for rung in self.rungs))

    @property
    def computed(self) -> tuple[TensorSpec, ...]:
        """The outputs of the artifact: the model's, and the one of its checks."""
        if self.checks is None:
            return self.outputs
        return (*self.outputs, TensorSpec(self.checks.output, (len(self.checks.held),), "bool"))

    def to_json(self) -> str:
        """The manifest as JSON text, keys in the order above."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    def write(self, bundle: Path) -> Path:
        """Writes ``manifest.json`` into the folder ``bundle`` and returns its path."""
        path = bundle / MANIFEST_NAME
        path.write_text(self.to_json() + "\n", encoding="utf-8", errors="backslashreplace")
        return path


def differs_beyond_batch(first: Manifest, other: Manifest) -> str:
    """Returns what of two artifacts differs by more than the number of samples; '' for nothing.

    Args:
        first: The manifest of one artifact by itself.
        other: That of another one of the same model.
    """
    for kind in ("inputs", "outputs"):
        one, two = getattr(first, kind), getattr(other, kind)
        if len(one) != len(two) or not all(
            _alike(a, b, first.batch, other.batch) for a, b in zip(one, two, strict=True)
        ):
            return kind
    return ""


def _alike(one: TensorSpec, two: TensorSpec, batch: int, other: int) -> bool:
    leading = one.shape[:1], two.shape[:1]
    of_samples = leading == ((batch,), (other,))
    rest = [(spec.name, spec.dtype, spec.shape[1:]) for spec in (one, two)]
    return (of_samples or leading[0] == leading[1]) and rest[0] == rest[1]


def _fields(rung: Rung) -> dict[str, Any]:
    """Returns the fields of a rung by name."""
    return {one.name: getattr(rung, one.name) for one in dataclasses.fields(rung)}
