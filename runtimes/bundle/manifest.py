"""Reads and writes the manifest of a bundle: contents, runtime, and the hash of every file.

    BUNDLE/manifest.json      read first; says how to run the rest
    BUNDLE/<artifact>         what the runtime loads
    BUNDLE/<other files>      external weights, reference.npz, report.json, …

A reader takes any manifest of its own schema version and ignores keys that it does not know, so
keys can be added without a new version. A change of meaning takes a new version.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokexport.runtimes.bundle.class_scores import ClassScores, read_labels
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.input_checks import InputChecks
from tokexport.runtimes.bundle.requirements import Requirements
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.printable import all_printable

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
#: The file that the first artifact of a bundle is verified against.
REFERENCE_NAME = "reference.npz"
PASSED = "PASSED"
BUILT_NOT_RUN = "BUILT, NOT RUN"

Constant = float | int | str | bool | None
_RETURNED = "constant_outputs"
_LARGEST = 1e300
#: Bytes of a manifest; one of a few hundred kilobytes is large.
_LARGEST_MANIFEST = 1 << 24
#: Artifacts of a ladder beside the first.
_MOST_RUNGS = 32
#: The most numbers of a tensor.
_MOST_NUMBERS = 1 << 44
#: The types of the tensors that runtimes take and give.
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)


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
        first = self.inputs[0].shape if self.inputs else ()
        return first[0] if first else 1

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


def _fields(rung: Rung) -> dict[str, Any]:
    """Returns the fields of a rung by name."""
    return {one.name: getattr(rung, one.name) for one in dataclasses.fields(rung)}


def read_manifest(bundle: Path) -> Manifest:
    """Reads the manifest of a bundle.

    Args:
        bundle: The bundle's folder.

    Raises:
        BundleError: The folder or its manifest is missing, it is no JSON, its schema version is
            unknown, or a field is missing or of another type.
    """
    path = bundle / MANIFEST_NAME
    if not bundle.is_dir():
        what = "The bundle is a file, not a folder." if bundle.exists() else "There is no bundle."
        raise BundleError(what, where=str(bundle), fix="Pass the folder that compile wrote.")
    try:
        if path.is_symlink():
            raise broken_manifest(path, "it is a link, and compile writes none")
        text = read_at_most(path, _LARGEST_MANIFEST).decode("utf-8")
    except FileNotFoundError as error:
        raise BundleError(
            f"The folder has no {MANIFEST_NAME}, so it is no bundle.",
            where=str(bundle),
            fix="Pass the folder that compile wrote.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise broken_manifest(path, f"it cannot be read: {error}") from error
    try:
        parsed = json.loads(text)
        data = all_printable(parsed)
    except (ValueError, RecursionError) as error:
        raise broken_manifest(path, f"it is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise broken_manifest(path, "it is not a JSON object")
    if _RETURNED in parsed:  # constants that the model returned are data, and stay unchanged
        data[_RETURNED] = parsed[_RETURNED]
    _check_version(data.get("schema_version"), path)
    return _Reader(path).manifest(data)


#: What to do about a bundle that is not whole.
ANEW = "Copy the bundle again from where it was made, or compile it anew."


def broken_manifest(path: Path, why: str) -> BundleError:
    """Returns the error of an invalid manifest; ``why`` is a clause."""
    return BundleError(f"The manifest is not valid: {why}.", where=str(path), fix=ANEW)


def _check_version(version: object, path: Path) -> None:
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise BundleError(
            f"The bundle has schema version {version}, and this tokexport reads {SCHEMA_VERSION}.",
            where=str(path),
            fix="Update tokexport: pip install --upgrade tokexport",
        )
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise broken_manifest(path, f"schema_version is {version!r}, not {SCHEMA_VERSION}")


class _Reader:
    """Turns parsed JSON into a manifest, naming the field that does not fit."""

    def __init__(self, path: Path, within: str = "") -> None:
        self._path = path
        self._within = within

    def manifest(self, data: Mapping[str, Any]) -> Manifest:
        return Manifest(
            schema_version=SCHEMA_VERSION,
            tokexport_version=self._get(data, "tokexport_version", str),
            created=self._get(data, "created", str),
            target=self._get(data, "target", str),
            status=self._status(data),
            artifact=self._get(data, "artifact", str),
            runtime=self._runtime(self._get(data, "runtime", dict)),
            precision=self._get(data, "precision", str),
            inputs=self._specs(data, "inputs"),
            outputs=self._specs(data, "outputs"),
            constant_outputs=self._constants(data),
            token_schedule=self._whole_numbers(data, "token_schedule", ""),
            gates=self._gates(data),
            source=self._get(data, "source", dict),
            preprocessing=self._object_or_null(data, "preprocessing"),
            files=self._files(data),
            reduction=self._object_or_null(data, "reduction"),
            forms=self._object_or_null(data, "forms"),
            input_ranges=self._ranges(data),
            checks=self._checks(data),
            constant_inputs=self._constant_inputs(data),
            fingerprint=self._object_or_null(data, "fingerprint"),
            options=self._object_or_null(data, "options"),
            classes=self._classes(data),
            scores=self._scores(data),
            labels=self._labels(data),
            requires=self._requires(data),
            kept_onnx=self._text_or_null(data, "kept_onnx"),
            rebuilt=self._object_or_null(data, "rebuilt"),
            reference=self._get(data, "reference", str) if "reference" in data else REFERENCE_NAME,
            samples_independent=self._truth_or_null(data, "samples_independent"),
            latency_ms=self._time_or_null(data, "latency_ms"),
            rungs=self._rungs(data),
        )

    def _rungs(self, data: Mapping[str, Any]) -> tuple[Rung, ...]:
        given = self._get(data, "rungs", list) if "rungs" in data else []
        if len(given) > _MOST_RUNGS:
            raise self._wrong("rungs", f"a list of at most {_MOST_RUNGS}", len(given))
        return tuple(self._rung(one, f"rungs[{place}]") for place, one in enumerate(given))

    def _rung(self, given: object, name: str) -> Rung:
        if not isinstance(given, dict):
            raise self._wrong(name, "an object", given)
        reader = _Reader(self._path, f"{name}.")
        return Rung(
            artifact=reader._get(given, "artifact", str),
            reference=reader._get(given, "reference", str),
            inputs=reader._specs(given, "inputs"),
            outputs=reader._specs(given, "outputs"),
            gates=reader._gates(given),
            input_ranges=reader._ranges(given),
            checks=reader._checks(given),
            latency_ms=reader._time_or_null(given, "latency_ms"),
            kept_onnx=reader._text_or_null(given, "kept_onnx"),
        )

    def _truth_or_null(self, data: Mapping[str, Any], key: str) -> bool | None:
        value = data.get(key)
        if not isinstance(value, bool | None):
            raise self._wrong(key, "true, false or null", value)
        return value

    def _time_or_null(self, data: Mapping[str, Any], key: str) -> float | None:
        value = data.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, float | int)
            or not 0 < value < _LARGEST
        ):
            raise self._wrong(key, "a number above 0, or null", value)
        return float(value)

    def _wrong(self, key: str, wanted: str, found: object) -> BundleError:
        said = f"{self._within}{key} should be {wanted}, and it is {found!r:.80}"
        return broken_manifest(self._path, said)

    def _get(self, data: Mapping[str, Any], key: str, kind: type, within: str = "") -> Any:
        names: dict[type, str] = {str: "a text", dict: "an object", list: "a list"}
        if key not in data:
            raise broken_manifest(self._path, f"{self._within}{within}{key} is missing")
        value = data[key]
        if not isinstance(value, kind):
            raise self._wrong(within + key, names[kind], value)
        return value

    def _object_or_null(self, data: Mapping[str, Any], key: str) -> dict[str, Any] | None:
        value = data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object or null", value)
        return value

    def _text_or_null(self, data: Mapping[str, Any], key: str) -> str | None:
        value = data.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a text or null", value)
        return value

    def _status(self, data: Mapping[str, Any]) -> str:
        status: str = self._get(data, "status", str)
        if status not in (PASSED, BUILT_NOT_RUN):
            raise self._wrong("status", f"{PASSED!r} or {BUILT_NOT_RUN!r}", status)
        return status

    def _runtime(self, data: Mapping[str, Any]) -> RuntimeInfo:
        texts = {
            key: self._get(data, key, str, "runtime.") for key in ("name", "flavour", "version")
        }
        details = self._get(data, "details", dict, "runtime.") if "details" in data else {}
        return RuntimeInfo(**texts, details=details)

    def _specs(self, data: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
        specs = []
        for index, item in enumerate(self._get(data, key, list)):
            within = f"{key}[{index}]"
            if not isinstance(item, dict):
                raise self._wrong(within, "an object", item)
            name = self._get(item, "name", str, within + ".")
            dtype = self._get(item, "dtype", str, within + ".")
            if dtype not in _DTYPES:
                raise self._wrong(f"{within}.dtype", "a numpy dtype of numbers", dtype)
            specs.append(TensorSpec(name, self._whole_numbers(item, "shape", within + "."), dtype))
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise broken_manifest(self._path, f"{self._within}{key} has a name twice: {names}")
        return tuple(specs)

    def _whole_numbers(self, data: Mapping[str, Any], key: str, within: str) -> tuple[int, ...]:
        values = self._get(data, key, list, within)
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        if not whole or not all(value >= 0 for value in values):
            raise self._wrong(within + key, "a list of whole numbers of 0 or more", values)
        if math.prod(max(value, 1) for value in values) > _MOST_NUMBERS and key == "shape":
            raise self._wrong(within + key, f"of at most {_MOST_NUMBERS} numbers", values)
        return tuple(values)

    def _constants(self, data: Mapping[str, Any]) -> dict[str, Constant]:
        constants: dict[str, Constant] = self._get(data, _RETURNED, dict)
        for name, value in constants.items():
            if not isinstance(value, float | int | str | bool | None):
                raise self._wrong(f"constant_outputs.{name}", "a number, text, true or null", value)
        return constants

    def _gates(self, data: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        gates = {}
        for output in self._get(data, "gates", dict):
            gate = self._get(data["gates"], output, dict, "gates.")
            for key, value in gate.items():
                number = isinstance(value, float | int) and not isinstance(value, bool)
                if not number or not 0 <= value <= _LARGEST:
                    raise self._wrong(f"gates.{output}.{key}", "a number of 0 or more", value)
            gates[output] = {key: float(value) for key, value in gate.items()}
        return gates

    def _ranges(self, data: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        found = {}
        given = self._object_or_null(data, "input_ranges") or {}
        for name in given:
            ends = self._get(given, name, list, "input_ranges.")
            whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
            if len(ends) != 2 or not whole or ends[0] > ends[1]:
                raise self._wrong(f"input_ranges.{name}", "a lowest and a highest number", ends)
            found[name] = ends[0], ends[1]
        return found

    def _classes(self, data: Mapping[str, Any]) -> dict[str, int] | None:
        found = self._object_or_null(data, "classes")
        for name, number in (found or {}).items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise self._wrong(f"classes.{name}", "a whole number of 0 or more", number)
        return found

    def _scores(self, data: Mapping[str, Any]) -> ClassScores | None:
        given = self._object_or_null(data, "scores")
        try:
            return None if given is None else ClassScores.from_json(given)
        except ValueError as error:
            raise broken_manifest(self._path, str(error)) from error

    def _labels(self, data: Mapping[str, Any]) -> tuple[str, ...] | None:
        given = data.get("labels")
        try:
            return None if given is None else read_labels(given)
        except ValueError as error:
            raise broken_manifest(self._path, str(error)) from error

    def _requires(self, data: Mapping[str, Any]) -> Requirements | None:
        given = self._object_or_null(data, "requires")
        try:
            return None if given is None else Requirements.from_json(given)
        except ValueError as error:
            raise broken_manifest(self._path, f"requires.{error}") from error

    def _checks(self, data: Mapping[str, Any]) -> InputChecks | None:
        given = self._object_or_null(data, "checks")
        if given is None:
            return None
        self._get(given, "output", str, "checks.")
        for index, one in enumerate(self._get(given, "held", list, "checks.")):
            within = f"checks.held[{index}]"
            if not isinstance(one, dict):
                raise self._wrong(within, "an object", one)
            for key in ("kind", "said", "line"):
                self._get(one, key, str, f"{within}.")
        return InputChecks.from_json(given)

    def _constant_inputs(self, data: Mapping[str, Any]) -> tuple[ConstantInput, ...]:
        given = data.get("constant_inputs", [])  # bundles made before have none
        specs = self._specs({"constant_inputs": given}, "constant_inputs")
        try:
            return tuple(map(ConstantInput.from_json, given))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise self._wrong("constant_inputs", "; ".join(map(str, specs)), given) from error

    def _files(self, data: Mapping[str, Any]) -> dict[str, str]:
        files: dict[str, str] = self._get(data, "files", dict)
        for name, digest in files.items():
            if not isinstance(digest, str) or len(digest) != 64:
                raise self._wrong(f"files.{name}", "a SHA-256 of 64 digits", digest)
        return files
