"""Reads the manifest of a bundle, and names the field that does not fit."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokexport.runtimes.bundle.class_scores import ClassScores, read_labels
from tokexport.runtimes.bundle.constant_inputs import ConstantInput
from tokexport.runtimes.bundle.input_checks import InputChecks
from tokexport.runtimes.bundle.manifest import (
    BUILT_NOT_RUN,
    MANIFEST_NAME,
    PASSED,
    REFERENCE_NAME,
    SCHEMA_VERSION,
    Constant,
    Manifest,
    Rung,
    RuntimeInfo,
    TensorSpec,
    differs_beyond_batch,
)
from tokexport.runtimes.bundle.requirements import Requirements
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.printable import all_printable

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


def read_manifest(bundle: Path) -> Manifest:
    """Reads the manifest of a bundle.

    Args:
        bundle: The bundle's folder.

    Raises:
        BundleError: The folder or its manifest is missing, it is no JSON, its schema version is
            unknown, a field is missing or of another type, or its artifacts are of several models.
    """
    path = bundle / MANIFEST_NAME
    fix = "Pass the folder that compile wrote."
    try:
        if not bundle.is_dir():
            is_file = bundle.exists()
            what = "The bundle is a file, not a folder." if is_file else "There is no bundle."
            raise BundleError(what, where=str(bundle), fix=fix)
    except OSError as error:  # a name that is too long, a folder that may not be searched
        what = f"The bundle cannot be reached: {error.strerror}."
        raise BundleError(what, where=str(bundle), fix=fix) from error
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
    except OSError as error:
        raise broken_manifest(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise broken_manifest(path, f"it is not UTF-8: {error}") from error
    try:
        parsed = json.loads(
            text, object_pairs_hook=_each_once, parse_constant=_finite, parse_float=_finite
        )
        data = all_printable(parsed)
    except (ValueError, RecursionError) as error:
        raise broken_manifest(path, f"it is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise broken_manifest(path, "it is not a JSON object")
    if _RETURNED in parsed:  # constants that the model returned are data, and stay unchanged
        data[_RETURNED] = parsed[_RETURNED]
    _check_version(data.get("schema_version"), path)
    manifest = _Reader(path).manifest(data)
    _check_ladder(manifest, path)
    return manifest


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {names.most_common(1)[0][0]!r:.80} stands twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.80} is no finite number")
    return number


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


def _check_ladder(manifest: Manifest, path: Path) -> None:
    """Refuses artifacts that are not those of one model for different numbers of samples."""
    if not manifest.rungs:
        return
    ladder = manifest.ladder
    if len({one.batch for one in ladder}) < len(ladder):
        raise broken_manifest(path, "two of its artifacts take the same number of samples")
    if len({one.artifact for one in ladder}) < len(ladder):
        raise broken_manifest(path, "two of its artifacts are one file")
    for one in ladder:
        if one.batch < 1:
            raise broken_manifest(path, "an artifact takes no samples")
        if kind := differs_beyond_batch(manifest, one):
            said = f"the {kind} of the artifact for {one.batch} samples are not those of the first"
            raise broken_manifest(path, said)


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
        inputs = {spec.name for spec in self._specs(data, "inputs")}
        for name in given:
            if name not in inputs:
                raise self._wrong("input_ranges", "of its inputs", name)
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
