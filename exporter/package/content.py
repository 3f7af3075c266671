"""Reads what goes into a package: the files of a bundle, checked against their hashes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_files import beside, check_files, file_in, hash_file
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.bundle.reference import read_reference
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.ir_contents import weights_beside
from tokexport.runtimes.files.onnx_contents import onnx_contents
from tokexport.runtimes.loading import check_contents
from tokexport.runtimes.signatures import SIGNATURE_NAME, trusted_manifest

#: A file of a package: its bytes, or the file that is copied.
Source = bytes | Path
#: The files of a package by their names, which have ``/`` between folders.
Files = Mapping[str, Source]


@dataclass(frozen=True)
class PackageFiles:
    """What a format writes of a bundle.

    Attributes:
        files: The files by their names.
        digest: ``sha256:`` and the hash of what names the package; '' for that of its bytes.
        notes: What a server does otherwise than ``tokexport run``, a sentence each.
    """

    files: Files
    digest: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Content:
    """The contents of a bundle.

    Attributes:
        folder: The bundle.
        name: The name that the package gives the model.
        manifest: Its manifest.
        files: Every file of it by its name, sorted: the manifest, those that it lists, and the
            signature of a bundle that is signed.
    """

    folder: Path
    name: str
    manifest: Manifest
    files: dict[str, Path]

    @property
    def created(self) -> str | None:
        """When it was made, ISO 8601; None where its manifest says no time with a zone."""
        try:
            found = datetime.fromisoformat(self.manifest.created)
        except ValueError:
            return None
        return found.isoformat() if found.tzinfo else None

    def ladder(self) -> tuple[Manifest, ...]:
        """The manifest of each artifact by itself, from the smallest batch to the largest."""
        return tuple(sorted(self.manifest.ladder, key=lambda one: one.batch))

    def read_by(self, artifact: str) -> dict[str, Path]:
        """The files that a runtime reads of an artifact: it, and those of its weights."""
        path = self.files[artifact]
        names = {artifact}
        if path.suffix == ".onnx":
            names |= beside(artifact, onnx_contents(path).files)
        elif weights := self.weights_of(artifact):
            names.add(weights)
        return {name: self.files[name] for name in sorted(names)}

    def weights_of(self, artifact: str) -> str | None:
        """The file of an IR's weights, which those of a ladder share; None for another artifact."""
        if not artifact.endswith(".xml"):
            return None
        name = weights_beside(Path(artifact)).as_posix()
        return name if name in self.files else None

    def sample(self) -> dict[str, Array]:
        """The first batch of the reference's inputs; empty where the bundle has no reference.

        Raises:
            BundleError: The reference is not what the manifest describes.
        """
        if self.manifest.reference not in self.files:
            return {}
        found = read_reference(self.folder, self.manifest)
        return {name: array[0] for name, array in found.inputs.items()}


def digest_of(source: Source) -> tuple[str, int]:
    """Returns ``sha256:`` with the hash of a file or of bytes, and how many they are."""
    if isinstance(source, Path):
        return f"sha256:{hash_file(source)}", source.stat().st_size
    return f"sha256:{hashlib.sha256(source).hexdigest()}", len(source)


def is_batched(manifest: Manifest) -> bool:
    """Returns whether every input and output of an artifact begins with its batch."""
    sizes = {spec.shape[:1] for spec in (*manifest.inputs, *manifest.outputs)}
    return sizes == {(manifest.batch,)}


def read_content(bundle: Path, name: str | None = None) -> Content:
    """Reads a bundle whose files have the hashes that its manifest says.

    Args:
        bundle: Its folder.
        name: The name that the package gives the model; by default that of the folder.

    Raises:
        BundleError: It is not whole, or its artifact is not one that tokexport writes.
    """
    manifest = trusted_manifest(bundle)
    check_files(bundle, manifest)
    for each in manifest.ladder:
        check_contents(bundle, each)
    names = {*manifest.files, MANIFEST_NAME}
    if os.path.lexists(bundle / SIGNATURE_NAME):
        names.add(SIGNATURE_NAME)
    for one in sorted(names):
        path = bundle / one
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(
                f"'{one}' of the bundle is a link or no file, and compile writes none of those.",
                where=str(path),
                fix="Copy the bundle again from where it was made.",
            )
    files = {one: file_in(bundle, one) for one in sorted(names)}
    return Content(bundle, bundle.resolve().name if name is None else name, manifest, files)
