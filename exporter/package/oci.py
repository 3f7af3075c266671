"""Packages a bundle as an OCI artifact: a layer a file, named as the file is.

``skopeo copy`` or ``oras copy`` brings the layout to a registry; ``oras pull`` writes the bundle
again.
"""

from __future__ import annotations

from typing import Final

from tokexport.exporter.package.content import Content, PackageFiles
from tokexport.exporter.package.oci_layout import TITLE, Layer, annotations_of, image_layout
from tokexport.exporter.package.options import PackageOptions

ARTIFACT_TYPE: Final = "application/vnd.tokexport.bundle.v1"
#: The empty configuration of an artifact that has none, as the specification spells it.
EMPTY: Final = Layer(b"{}", "application/vnd.oci.empty.v1+json")
_TYPES: Final = {".json": "application/json", ".html": "text/html", ".xml": "application/xml"}
_BYTES: Final = "application/octet-stream"


def oci_files(content: Content, _: PackageOptions) -> PackageFiles:
    """Returns the files of the layout, under the digest of its manifest."""
    layers = [
        Layer(path, _TYPES.get(path.suffix, _BYTES), {TITLE: name})
        for name, path in content.files.items()
    ]
    return image_layout(
        layers, artifact_type=ARTIFACT_TYPE, config=EMPTY, annotations=annotations_of(content)
    )
