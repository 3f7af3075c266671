"""Writes the bill of materials of a bundle: CycloneDX 1.6, with a model card (an ML-BOM).

It says what can be checked against bytes (hashes, formats, versions, the source), and what a
compile measured (parity, accuracy, latency), and nothing else. The same bundle gives the same
bytes.
Source: the CycloneDX specification 1.6, schema/bom-1.6.schema.json. Its Python library has no model
cards, so the JSON is written here; the library's strict validator holds it to the schema in the
tests.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokexport
from tokexport.exporter.bundle.ladder import rung_name
from tokexport.exporter.json_values import plain
from tokexport.exporter.package.bom_metrics import metrics_of
from tokexport.exporter.package.content import Content, read_content
from tokexport.exporter.report.file_names import REPORT_NAME
from tokexport.exporter.system.output_file import check_outside, check_place, written_whole
from tokexport.runtimes.artifact_needs import PACKAGES
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.bundle.manifest_reader import ANEW
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.regular_files import read_at_most

SPEC_VERSION: Final = "1.6"
#: Bytes of a report; those of large models have a few million.
_LARGEST: Final = 1 << 27
_ON_PYPI: Final = {"onnxruntime", "openvino"}
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class WrittenBom:
    """A bill of materials that was written.

    Attributes:
        bundle: The bundle.
        output: The file.
        serial_number: The name of the bill, which comes from the hash of the bundle's manifest.
        components: How many components it lists.
        metrics: How many measured figures it has.
    """

    bundle: Path
    output: Path
    serial_number: str
    components: int
    metrics: int

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found


def write_bom(bundle: Path, output: Path, *, force: bool = False) -> WrittenBom:
    """Writes the bill of materials of a bundle; needs no torch.

    Args:
        bundle: Its folder; its files are checked against their hashes, and its signature where
            ``TOKEXPORT_PUBLIC_KEY`` asks for one.
        output: The JSON file.
        force: Whether a file that is there is replaced.

    Raises:
        UsageError: The output lies in the bundle.
        BundleError: The bundle is not whole, or its report is none.
        OutputExistsError: There is something at the output already.
        WriteError: The file cannot be written.
    """
    content = read_content(bundle)
    check_outside(output, bundle)
    check_place(output, force)
    made = bom_of(content)
    with written_whole(output, "bill of materials") as partial:
        partial.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    model = made["metadata"]["component"]
    metrics = model["modelCard"].get("quantitativeAnalysis", {}).get("performanceMetrics", ())
    listed = len(made["components"]) + len(model["components"])
    return WrittenBom(bundle, output, made["serialNumber"], listed, len(metrics))


def bom_of(content: Content) -> dict[str, Any]:
    """Returns the bill of materials of a bundle, as JSON values.

    Raises:
        BundleError: Its report is none.
    """
    manifest, digest = content.manifest, hash_file(content.files[MANIFEST_NAME])
    runtime, maker = _runtime(manifest), _tokexport(manifest.tokexport_version)
    found: dict[str, Any] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:sha256:{digest}')}",
        "version": 1,
        "metadata": {
            **({} if content.created is None else {"timestamp": content.created}),
            "tools": {"components": [_tokexport(tokexport.__version__)]},
            "component": _model(content, digest),
        },
        "components": [runtime, {**maker, "bom-ref": "tokexport"}],
        "dependencies": [
            {"ref": "model", "dependsOn": [runtime["bom-ref"]]},
            {"ref": runtime["bom-ref"]},
            {"ref": "tokexport"},
        ],
    }
    return found


def _model(content: Content, digest: str) -> dict[str, Any]:
    """Returns the component of the model, with its files and its card."""
    manifest = content.manifest
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": _hashes(hash_file(path)),
        }
        for name, path in content.files.items()
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": content.name,
        "description": f"A bundle of tokexport for {manifest.runtime.flavour}, whose manifest has "
        f"the hash of this component. {manifest.status}.",
        "hashes": _hashes(digest),
        "pedigree": {"ancestors": [_source(manifest)]},
        "components": files,
        "properties": _properties(manifest),
        "modelCard": _card(content),
    }


def _card(content: Content) -> dict[str, Any]:
    """Returns the model card: what goes in and out, what was measured, and what is refused."""
    manifest = content.manifest
    parameters: dict[str, Any] = {
        "inputs": [{"format": str(spec)} for spec in manifest.inputs],
        "outputs": [{"format": str(spec)} for spec in manifest.outputs],
    }
    if manifest.scores is not None:
        parameters["task"] = "classification"
    if manifest.token_schedule:
        parameters["architectureFamily"] = "transformer"
    card: dict[str, Any] = {"bom-ref": "model-card", "modelParameters": parameters}
    if metrics := _metrics(content):
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if limits := _limits(manifest):
        card["considerations"] = {"technicalLimitations": limits}
    return card


def _metrics(content: Content) -> list[dict[str, Any]]:
    """Returns what was measured of each artifact; nothing where it was built anew since."""
    ladder = content.manifest.ladder
    if content.manifest.rebuilt is not None:  # the report stays that of the compile
        return []
    names = [REPORT_NAME, *(rung_name(REPORT_NAME, one.batch) for one in ladder[1:])]
    return [
        figure
        for name, one in zip(names, ladder, strict=True)
        for figure in metrics_of(_report(content, name), one)
    ]


def _limits(manifest: Manifest) -> list[str]:
    """Returns which inputs the artifact refuses, a sentence each."""
    found = [
        f"Input {name} takes whole numbers from {low} to {high}."
        for name, (low, high) in manifest.input_ranges.items()
    ]
    if manifest.checks is not None:
        found += [f"Refused where an input breaks this: {one}." for one in manifest.checks.held]
    found += [f"Input {one.name} is fixed." for one in manifest.constant_inputs]
    return list(dict.fromkeys(found))


def _properties(manifest: Manifest) -> list[dict[str, str]]:
    """Returns what a manifest says beside, each under a name of this project's."""
    mark = manifest.fingerprint or {}
    values = {
        "precision": manifest.precision,
        "artifact": manifest.artifact,
        "reduction": (manifest.reduction or {}).get("recipe"),
        "weights_sha256": mark.get("weights_sha256"),
        "structure_sha256": mark.get("structure_sha256"),
        "torch": mark.get("torch"),
    }
    return [
        {"name": f"tokexport:{name}", "value": value}
        for name, value in values.items()
        if isinstance(value, str)
    ]


def _source(manifest: Manifest) -> dict[str, Any]:
    """Returns the model that the bundle was compiled from."""
    source = manifest.source
    digest = str(source.get("sha256", ""))
    return {
        "type": "machine-learning-model",
        "bom-ref": "source",
        "name": str(source.get("location") or source.get("kind") or "source"),
        "description": f"The source that was compiled, of kind {source.get('kind')}.",
        **({"hashes": _hashes(digest)} if _HASH.fullmatch(digest) else {}),
    }


def _runtime(manifest: Manifest) -> dict[str, Any]:
    """Returns the library that the artifact was built by and runs in."""
    name, version = manifest.runtime.flavour, manifest.runtime.version
    package = PACKAGES.get(name, name)
    found = {"type": "library", "bom-ref": package, "name": package, "version": version}
    if package in _ON_PYPI and _VERSION.fullmatch(version):
        found["purl"] = f"pkg:pypi/{package}@{version}"
    return found


def _tokexport(version: str) -> dict[str, Any]:
    return {"type": "application", "name": "tokexport", "version": version}


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _report(content: Content, name: str) -> Mapping[str, Any] | None:
    """Returns the report of the compile of an artifact; None where the bundle has none."""
    path = content.files.get(name)
    if path is None:
        return None
    try:
        found = json.loads(read_at_most(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"The file {name} of the bundle cannot be read.",
            where=f"{path}: {error}",
            fix=ANEW,
        ) from error
    return found if isinstance(found, dict) else None
