"""Writes an artifact as an OCI image layout, which registries take.

::

    OUTPUT/oci-layout             the version of the layout
    OUTPUT/index.json             the manifest, and its tag
    OUTPUT/blobs/sha256/<hash>    the manifest, its configuration, and each file

Source: the OCI Image Format Specification 1.1 (image-layout.md, manifest.md, annotations.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tokexport.exporter.package.content import Content, PackageFiles, Source, digest_of

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
#: The annotation that says what a layer's file is called; `oras pull` writes it under that name.
TITLE: Final = "org.opencontainers.image.title"
CREATED: Final = "org.opencontainers.image.created"
_TAG_NAME: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Layer:
    """A file of an artifact.

    Attributes:
        source: The file, or its bytes.
        media_type: What kind it is.
        annotations: Texts about it.
    """

    source: Source
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    def descriptor(self) -> dict[str, Any]:
        """Returns what the manifest says of it."""
        digest, size = digest_of(self.source)
        described = {"mediaType": self.media_type, "digest": digest, "size": size}
        return (
            {**described, "annotations": dict(self.annotations)} if self.annotations else described
        )


def annotations_of(content: Content) -> dict[str, str]:
    """Returns what an artifact says of a bundle: its name, and when it was made."""
    made = {} if content.created is None else {CREATED: content.created}
    return {**made, TITLE: content.name}


def as_json(value: object) -> bytes:
    """Returns JSON in one form: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def image_layout(
    layers: Sequence[Layer],
    *,
    artifact_type: str,
    config: Layer,
    annotations: Mapping[str, str],
    tag: str = "latest",
) -> PackageFiles:
    """Returns the files of a layout, under the digest of the manifest in it.

    Args:
        layers: The files of the artifact, in order.
        artifact_type: The media type of the whole.
        config: Its configuration.
        annotations: Texts about it.
        tag: The name of the manifest in the layout.
    """
    manifest = as_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": config.descriptor(),
            "layers": [layer.descriptor() for layer in layers],
            "annotations": dict(annotations),
        }
    )
    digest, size = digest_of(manifest)
    named = {
        "mediaType": MANIFEST_TYPE,
        "artifactType": artifact_type,
        "digest": digest,
        "size": size,
        "annotations": {_TAG_NAME: tag},
    }
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]}
    files: dict[str, Source] = {
        "oci-layout": as_json({"imageLayoutVersion": "1.0.0"}),
        "index.json": as_json(index),
    }
    for source in (manifest, config.source, *(layer.source for layer in layers)):
        files[f"blobs/sha256/{digest_of(source)[0].removeprefix('sha256:')}"] = source
    return PackageFiles(files, digest)
