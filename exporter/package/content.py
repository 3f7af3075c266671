"""Reads what goes into a package: the files of a bundle, checked against their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.bundle_files import check_files, file_in
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest, read_manifest
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.onnx_contents import onnx_contents
from tokexport.runtimes.loading import check_contents
from tokexport.runtimes.verification import REFERENCE_NAME, read_reference

#: A file of a package: its bytes, or the file that is copied.
Source = bytes | Path
#: The files of a package by their names, which have ``/`` between folders.
Files = Mapping[str, Source]


@dataclass(frozen=True)
class Rung:
    """An artifact of a bundle.

    Attributes:
        batch: How many samples it takes at once; None where an input or output has no batch.
        artifact: The name of its file.
    """

    batch: int | None
    artifact: str


@dataclass(frozen=True)
class Content:
    """The contents of a bundle.

    Attributes:
        folder: The bundle.
        name: The name that the package gives the model.
        manifest: Its manifest.
        files: Every file of it by its name, sorted: the manifest, and those that it lists.
    """

    folder: Path
    name: str
    manifest: Manifest
    files: dict[str, Path]

    def rungs(self) -> tuple[Rung, ...]:
        """The artifacts, from the smallest batch to the largest."""
        return (Rung(batch_of(self.manifest), self.manifest.artifact),)

    def read_by(self, artifact: str) -> dict[str, Path]:
        """The files that a runtime reads of an artifact: it, and those of its weights."""
        path = self.files[artifact]
        names = {artifact}
        if path.suffix == ".onnx":
            names |= onnx_contents(path).files
        elif path.suffix == ".xml":
            names |= {path.with_suffix(".bin").name} & self.files.keys()
        return {name: self.files[name] for name in sorted(names)}

    def sample(self) -> dict[str, Array]:
        """The first batch of the reference's inputs; empty where the bundle has no reference.

        Raises:
            BundleError: The reference is not what the manifest describes.
        """
        if REFERENCE_NAME not in self.files:
            return {}
        found = read_reference(self.folder, self.manifest)
        return {name: array[0] for name, array in found.inputs.items()}


def batch_of(manifest: Manifest) -> int | None:
    """Returns the size that all inputs and outputs have first; None where they differ."""
    sizes = {spec.shape[:1] for spec in (*manifest.inputs, *manifest.outputs)}
    (size,) = sizes.pop() if len(sizes) == 1 and () not in sizes else (None,)
    return size


def read_content(bundle: Path, name: str | None = None) -> Content:
    """Reads a bundle whose files have the hashes that its manifest says.

    Args:
        bundle: Its folder.
        name: The name that the package gives the model; by default that of the folder.

    Raises:
        BundleError: It is not whole, or its artifact is not one that tokexport writes.
    """
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    check_contents(bundle, manifest)
    files = {one: file_in(bundle, one) for one in sorted({*manifest.files, MANIFEST_NAME})}
    for one, path in files.items():
        if path.is_symlink():
            raise BundleError(
                f"The file '{one}' of the bundle is a link, and compile writes none.",
                where=str(path),
                fix="Copy the bundle again from where it was made.",
            )
    return Content(bundle, bundle.resolve().name if name is None else name, manifest, files)
