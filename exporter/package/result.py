"""The result of packaging a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokexport.exporter.json_values import plain


@dataclass(frozen=True)
class PackagedFile:
    """A file of a package.

    Attributes:
        name: Its name in the package.
        bytes: How long it is.
        sha256: Its hash, in hexadecimal.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PackagedBundle:
    """A bundle that was packaged.

    Attributes:
        format: The format, one of ``--format``.
        bundle: The bundle.
        output: The file or the folder that was written.
        digest: ``sha256:`` and the hash that names the package: that of the tar, of the manifest
            of an OCI layout, or of the list of names and hashes of a folder.
        contents: The files in it, sorted by name.
        next: What to do with it, a command or a sentence.
        notes: What a server does otherwise than ``tokexport run``, a sentence each.
    """

    format: str
    bundle: Path
    output: Path
    digest: str
    contents: tuple[PackagedFile, ...]
    next: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found
