"""Checks the files of a bundle against the hashes in its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Final

from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.bundle.manifest_reader import ANEW, broken_manifest
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.regular_files import open_regular

_CHUNK: Final = 1 << 20


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_files(bundle: Path, manifest: Manifest, but: Collection[str] = ()) -> None:
    """Checks every file of the bundle against its hash in the manifest.

    Args:
        bundle: The bundle's folder.
        manifest: Its manifest.
        but: Files that are not looked at, as those that are about to be built anew.

    Raises:
        BundleError: A file is missing, is not what was written, or has a name that leads out of
            the folder; or an artifact has no hash.
    """
    for one in manifest.ladder:
        if one.artifact not in manifest.files:
            raise broken_manifest(bundle / MANIFEST_NAME, f"{one.artifact!r} has no hash in it")
    for name, wanted in manifest.files.items():
        path = file_in(bundle, name)
        if name in but:
            continue
        try:
            found = hash_file(path)
        except FileNotFoundError as error:
            raise BundleError(
                f"The bundle is not whole: {name} is missing.", where=str(path), fix=ANEW
            ) from error
        except OSError as error:
            raise BundleError(
                f"The file '{name}' of the bundle cannot be read: {error.strerror}.",
                where=str(path),
                fix="Check its permissions, or copy the bundle again.",
            ) from error
        if found != wanted.lower():
            raise BundleError(
                f"The file '{name}' is not the one that was written: it was truncated or altered.",
                where=f"{path}: SHA-256 {found[:12]}…, and the manifest says {wanted[:12]}…",
                fix=ANEW,
            )


def beside(name: str, read: Collection[str]) -> set[str]:
    """Returns the names of files that a file of the bundle reads, by how it calls them itself.

    Args:
        name: The file.
        read: What it reads, relative to its own folder.
    """
    folder, slash, _ = name.rpartition("/")
    return {f"{folder}{slash}{one}" for one in read}


def file_in(bundle: Path, name: str) -> Path:
    """The path of a file of the bundle.

    Raises:
        BundleError: The name is empty or absolute, leads out of the folder or nowhere, also
            through a link, or is another spelling of a name.
    """
    one = PurePosixPath(name)
    outside = not one.parts or ".." in one.parts or one.as_posix() != name
    outside |= "\\" in name or "\0" in name or Path(name).is_absolute()
    path = bundle / name
    if outside or not _lies_in(path, bundle):
        raise BundleError(
            f"The manifest names a file outside the bundle: {name!r}.",
            where=str(bundle / MANIFEST_NAME),
            fix="Do not use this bundle: tokexport writes names inside the folder only.",
        )
    return path


def _lies_in(path: Path, folder: Path) -> bool:
    """Returns whether a path leads to a place in a folder; links in a circle lead nowhere."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # RuntimeError: a circle, up to Python 3.12
        return False
