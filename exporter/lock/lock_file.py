"""Defines a lock: what bundles are, and how far each is from its reference, runtime by runtime.

    parity.lock.json    bundles/<folder>           what the bundle is: its facts
                        bundles/<folder>/measured  how it did, an entry per environment

An environment is a runtime in its version on an instruction set. Nothing in a lock depends on the
clock, so the same bundle measured twice leaves the same file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import UsageError
from tokexport.exporter.json_values import plain
from tokexport.exporter.lock.projections import numbers
from tokexport.exporter.system.output_file import written_whole
from tokexport.exporter.typed_json import typed
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.printable import all_printable, printable

SCHEMA_VERSION: Final = 1
DEFAULT_NAME: Final = "parity.lock.json"
#: What the name of a lock ends in.
SUFFIX: Final = ".lock.json"
#: What stands in every lock, so that no other JSON file is taken for one.
KIND: Final = "tokexport parity lock"
_LARGEST: Final = 1 << 26


@dataclass(frozen=True)
class Environment:
    """What ran a bundle.

    Attributes:
        runtime: Which build of the runtime: ``onnxruntime-cpu``.
        version: Its version.
        instruction_set: The widest instruction set of the processor: ``avx512_vnni``.
        kernels: The instruction set of the native kernels that ran; ``none`` without them.
    """

    runtime: str
    version: str
    instruction_set: str
    kernels: str

    def __str__(self) -> str:
        """Returns it in a clause."""
        return f"{self.runtime} {self.version} on {self.instruction_set}, kernels {self.kernels}"


@dataclass(frozen=True)
class OutputFigures:
    """How far an output is from the reference data of its bundle.

    Attributes:
        verdict: ``identical``; ``arithmetic``, inside its tolerance; ``ties only``, where samples
            with a near-tie are left out; or ``wrong``.
        max_abs: The largest absolute difference, in the units of the output.
        mean_abs: The mean absolute difference.
        rms: The root of the mean squared difference.
        cosine: The cosine of output and reference.
        top1_agreement: The share of rows whose largest entry stands at the same place; None for an
            output of one class or of whole numbers.
        share_of_allowed: What the value that is nearest to its tolerance uses of it, 0 to 1; None
            where the tolerance is one over all samples.
        allowance: How far a value, a channel or a largest entry may be off, the mean over all; None
            where the tolerance is one number.
        scale: The largest magnitude of the reference.
    """

    verdict: str
    max_abs: float
    mean_abs: float
    rms: float
    cosine: float
    top1_agreement: float | None
    share_of_allowed: float | None
    allowance: float | None
    scale: float


@dataclass(frozen=True)
class LabelledInputs:
    """How a bundle classifies labelled samples.

    Attributes:
        path: The file or folder of the samples, relative to the lock.
        samples: How many were classified.
        inputs_sha256: The hash of the samples, as the model takes them.
        labels_sha256: The hash of their labels.
        accuracy: The share that is classified right, 0 to 1.
        predictions: The class of every sample, in order, with blanks between.
    """

    path: str
    samples: int
    inputs_sha256: str
    labels_sha256: str
    accuracy: float
    predictions: str


@dataclass(frozen=True)
class HeldToSource:
    """How a bundle stood to its source, where the lock was made with one.

    Attributes:
        verdict: The farthest verdict of an output.
        outputs: The verdict of every output.
        ties: How many samples a near-tie excuses.
        decision_agreement: The share of all positions and truth values, of every decision, that are
            eager's; None where the model decides nothing, or its artifact does not show it.
        why_not: Why it is not the model of its source, a clause; '' where it is.
        line: The line of the first decision that its scores do not explain, ``file:line``; or ''.
    """

    verdict: str
    outputs: Mapping[str, str]
    ties: int
    decision_agreement: float | None = None
    why_not: str = ""
    line: str = ""


@dataclass(frozen=True)
class Measured:
    """How a bundle did in one environment.

    Attributes:
        environment: What ran it.
        outputs: The figures of every output.
        layer_precisions: What the runtime's layers compute in; empty where it does not say.
        kernel_calls: How many native kernels the runtime calls; None where it does not say.
        labelled: How labelled samples were classified; None without any.
        source: How it stood to its source; None where none was given.
    """

    environment: Environment
    outputs: Mapping[str, OutputFigures]
    layer_precisions: tuple[str, ...] = ()
    kernel_calls: int | None = None
    labelled: LabelledInputs | None = None
    source: HeldToSource | None = None


@dataclass(frozen=True)
class ModelHashes:
    """The hashes of the model that a bundle was compiled from, its reduction in it.

    Attributes:
        weights_sha256: Its weights in the order of their use.
        weights_set_sha256: Its weights in whatever order.
        structure_sha256: Its traced graph, under the version of torch.
        torch: That version.
    """

    weights_sha256: str
    weights_set_sha256: str
    structure_sha256: str
    torch: str

    @property
    def structure(self) -> str:
        """The traced graph's hash with the version that it is of."""
        return f"{self.structure_sha256[:12]} of torch {self.torch}"


@dataclass(frozen=True)
class ArtifactFiles:
    """The files that a runtime loads.

    Attributes:
        sha256: The hash of their hashes, in the order of their names.
        bytes: Their size together.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ReferenceData:
    """The reference data of a bundle.

    Attributes:
        inputs_sha256: The hash of the inputs.
        samples: How many samples it has.
        left_out: How many of them are not compared, for a near-tie in each.
        projections: Of every output the projections of each sample, numbers with blanks between;
            see ``exporter.lock.projections``.
    """

    inputs_sha256: str
    samples: int
    left_out: int
    projections: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle is, wherever it runs.

    Attributes:
        target: What it was compiled for.
        precision: What it computes in.
        options: The options that shaped its graph; None in bundles made before.
        reduction: The recipe of the token reduction that was put in; None without one.
        token_schedule: The number of tokens at each attention.
        inputs: Its inputs, ``x float32 (1, 3, 224, 224)`` each.
        outputs: Its outputs, in order.
        returned: The numbers and texts that it returns beside tensors.
        fixed_inputs: The hash of every fixed input, by name.
        preprocessing: What is done to a picture; None where nothing says it.
        tolerances: What every output is held to, by output: the fields of its gate.
        model: The hashes of the model; None in bundles made before.
        artifact: What the runtime loads.
        reference: Its reference data.
        flips: How many decisions of the artifact fell otherwise than eager's on the samples of the
            compile, near-ties all; None where its report does not say.
    """

    target: str
    precision: str
    options: Mapping[str, Any] | None
    reduction: str | None
    token_schedule: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    returned: Mapping[str, Any]
    fixed_inputs: Mapping[str, str]
    preprocessing: Mapping[str, Any] | None
    tolerances: Mapping[str, Mapping[str, float]]
    model: ModelHashes | None
    artifact: ArtifactFiles
    reference: ReferenceData
    flips: int | None


@dataclass(frozen=True)
class LockedBundle:
    """A bundle in a lock.

    Attributes:
        facts: What it is.
        measured: How it did, an entry per environment; empty where no device could run it.
        of_a_test: Whether a test compiles it, under its own name, so that it has no folder.
    """

    facts: BundleFacts
    measured: tuple[Measured, ...] = ()
    of_a_test: bool = False


@dataclass(frozen=True)
class Lock:
    """What a team holds its bundles to.

    Attributes:
        bundles: The bundles, by their folders relative to the lock.
        kind: What this file is.
        schema_version: The version of this layout.
    """

    bundles: Mapping[str, LockedBundle] = field(default_factory=dict)
    kind: str = KIND
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, bundles in the order of their names."""
        named = {name: plain(self.bundles[name]) for name in sorted(self.bundles)}
        return {"kind": self.kind, "schema_version": self.schema_version, "bundles": named}

    def write(self, path: Path) -> None:
        """Writes the lock, whole or not at all.

        Raises:
            UsageError: The name of a bundle cannot be read back.
            WriteError: The file cannot be written.
        """
        for name in self.bundles:
            if why := _bad_name(name):
                raise UsageError(
                    f"The lock cannot hold the bundle: {why}.",
                    where=str(path),
                    fix="Rename its folder.",
                )
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        with written_whole(path, "lock") as partial:
            partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_lock(path: Path) -> Lock:
    """Reads a lock.

    Args:
        path: The file.

    Raises:
        UsageError: It is missing, no lock, or of a version that is not known.
    """
    try:
        data = all_printable(json.loads(read_at_most(path, _LARGEST).decode("utf-8")))
    except FileNotFoundError as error:
        raise UsageError(
            "The lock does not exist.",
            where=str(path),
            fix=f"Write it first: tokexport lock BUNDLE --file {shlex.quote(str(path))}",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _not_read(path, printable(str(error))) from error
    if not is_lock(data):
        raise _not_read(path, f"its kind is not {KIND!r}")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"The lock has schema version {data.get('schema_version')!r:.20}, and this tokexport "
            f"reads {SCHEMA_VERSION}.",
            where=str(path),
            fix="Update tokexport, or write the lock anew.",
        )
    try:
        lock = typed(Lock, data)
        for name, locked in lock.bundles.items():
            _require_sound(name, locked)
    except (ValueError, OverflowError) as error:
        raise _not_read(path, printable(str(error))) from error
    return lock


def _require_sound(name: str, locked: LockedBundle) -> None:
    """Refuses a bundle whose texts are not what they stand for.

    Raises:
        ValueError: A name, a projection or a list of predictions is damaged.
    """
    if why := _bad_name(name):
        raise ValueError(why)
    for output, rows in locked.facts.reference.projections.items():
        if not rows:
            raise ValueError(f"{name} has no projections of {output}")
        for row in rows:
            numbers(row)
    for ran in locked.measured:
        if not ran.outputs:
            raise ValueError(f"a run of {name} has no outputs")
        found = ran.labelled
        if found is not None and len(found.predictions.split()) != found.samples:
            raise ValueError(f"a run of {name} has not as many predictions as samples")


def _bad_name(name: str) -> str:
    """Returns why a name cannot stand in a lock, a clause; '' where it can."""
    if name and name == " ".join(name.split()) and name == printable(name):
        return ""
    return f"the name {name!r:.80} has blanks or characters that a terminal does not show"


def is_lock(data: Any) -> bool:
    """Returns whether parsed JSON says that it is a lock."""
    return isinstance(data, dict) and data.get("kind") == KIND


def _not_read(path: Path, why: str) -> UsageError:
    return UsageError(
        f"The lock cannot be read: {why}.",
        where=str(path),
        fix="Restore it from your version control, or write it anew with tokexport lock.",
    )
