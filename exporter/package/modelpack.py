"""Packages a bundle as a model artifact of CNCF ModelPack: an OCI artifact of its media types.

Every file is a layer of its own, neither archived nor compressed; its annotation says its name.
Source: the ModelPack specification v1, github.com/modelpack/model-spec: docs/spec.md,
docs/config.md, schema/config-schema.json.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tokexport.exporter.package.content import Content, PackageFiles, digest_of
from tokexport.exporter.package.oci_layout import (
    TITLE,
    Layer,
    annotations_of,
    as_json,
    image_layout,
)
from tokexport.exporter.package.options import PackageOptions
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.signatures import SIGNATURE_NAME

_PREFIX: Final = "application/vnd.cncf.model"
ARTIFACT_TYPE: Final = f"{_PREFIX}.manifest.v1+json"
CONFIG_TYPE: Final = f"{_PREFIX}.config.v1+json"
FILE_PATH: Final = "org.cncf.model.filepath"
#: The reports of a bundle, one an artifact.
_REPORT: Final = re.compile(r"(report|page)(\.batch\d+)?\.(json|html)")
#: The format of the artifact, by the flavour of its runtime.
_FORMATS: Final = {
    "onnxruntime-cpu": "onnx",
    "openvino-cpu": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}


def modelpack_files(content: Content, _: PackageOptions) -> PackageFiles:
    """Returns the files of the layout, under the digest of its manifest."""
    references = {one.reference for one in content.ladder()}
    layers = [
        Layer(
            path,
            f"{_PREFIX}.{_kind(name, references)}.v1.raw",
            {FILE_PATH: name, TITLE: name},
        )
        for name, path in content.files.items()
    ]
    config = Layer(as_json(_config(content, layers)), CONFIG_TYPE)
    return image_layout(
        layers, artifact_type=ARTIFACT_TYPE, config=config, annotations=annotations_of(content)
    )


def _kind(name: str, references: set[str]) -> str:
    """Returns what kind of file the specification takes a file of a bundle for."""
    if name == MANIFEST_NAME:
        return "weight.config"
    if name in references:
        return "dataset"
    return "doc" if _REPORT.fullmatch(name) or name == SIGNATURE_NAME else "weight"


def _config(content: Content, layers: list[Layer]) -> dict[str, Any]:
    """Returns the configuration of the model, as ``config-schema.json`` has it."""
    manifest = content.manifest
    return {
        "descriptor": {
            **({} if content.created is None else {"createdAt": content.created}),
            "name": content.name,
            "description": _description(manifest),
        },
        "modelfs": {"type": "layers", "diffIds": [digest_of(one.source)[0] for one in layers]},
        "config": {
            **({"architecture": "transformer"} if manifest.token_schedule else {}),
            "format": _FORMATS.get(manifest.runtime.flavour, manifest.runtime.flavour),
            "precision": manifest.precision,
        },
    }


def _description(manifest: Manifest) -> str:
    """Returns what was compiled, for what, and by what, a sentence."""
    runtime = manifest.runtime
    reduced = f", reduced by {manifest.reduction['recipe']}" if manifest.reduction else ""
    return (
        f"Compiled by tokexport {manifest.tokexport_version} for {runtime.flavour} "
        f"{runtime.version}{reduced}."
    )
