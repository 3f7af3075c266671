"""Writes a bundle whole or not at all.

::

    .NAME.partial-1f0c…/   everything is written here, beside the place it goes to
        artifact, reference.npz, report.json, …
        manifest.json      last, once every other file is hashed
    NAME/                  one rename, once all of it is on the disk

A run that fails or is interrupted removes its partial folder; one that is killed leaves that
hidden folder to the next run, and nothing under NAME. When a bundle is replaced, the old one stays
under NAME until the new one is complete, and the two exchange their names in one step. Where the
system cannot, the old one is set aside as ``.NAME.old-1f0c…`` first; a process that is killed
between the two renames leaves it to the next run, which puts it back.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from tokexport.exporter.errors import (
    ExporterError,
    InternalError,
    OutputExistsError,
    WriteError,
    listed,
)
from tokexport.exporter.system.exchange import exchange
from tokexport.exporter.system.output_file import check_replaceable
from tokexport.exporter.system.output_folder import check_folder_place
from tokexport.exporter.system.scratch import HeldFolder, held_signals, sweep
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import BundleError, RuntimeMissingError
from tokexport.runtimes.signatures import SIGNATURE_NAME

# What a file system answers when nothing more goes into it: space, quota, file size, read-only.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Below this a file system counts as full: libraries in C++ say only that writing failed.
_FULL_BYTES = 1 << 16


class BundleWriter:
    """Writes into a partial folder, and makes it a bundle in one step.

    Args:
        output: The folder the bundle becomes; its parent must exist.
        force: Whether an earlier bundle at ``output`` may be replaced. Beside it and an empty
            folder nothing ever is: not a folder of other files, not a bundle with files in it
            that its manifest does not name, not a link.
    """

    def __init__(self, output: Path, force: bool = False) -> None:
        self._given = output
        self._output = Path(os.path.abspath(output))
        self._force = force
        self._held: HeldFolder | None = None
        self._aside: Path | None = None
        self._committed = False

    @property
    def path(self) -> Path:
        """The folder to write into, while the writer is open."""
        if self._held is None:
            raise InternalError("The bundle is written to outside its with block.")
        return self._held.path

    def __enter__(self) -> Self:
        """Checks the output and makes the partial folder; removes those of killed processes.

        Raises:
            UsageError: The output is no name, or the folder that this process is in.
            OutputExistsError: Something is at the output that may not be replaced.
            WriteError: The parent is missing, no folder, or not writable.
        """
        parent = self._output.parent
        try:
            check_replaceable(self._given)
            self._put_back()
            self._check_place()
            sweep(parent, self._names("partial"))
            self._held = HeldFolder(self._make_partial)
        except OSError as error:
            raise _cannot_write(error, parent) from error
        return self

    def _put_back(self) -> None:
        """Restores a bundle that a killed process had set aside for a new one."""
        if not self._output.parent.is_dir():
            return
        beside = self._output.parent.iterdir()
        found = [path for path in beside if re.fullmatch(self._names("old"), path.name)]
        if found and not os.path.lexists(self._output):
            newest = max(found, key=lambda path: path.stat().st_mtime)
            found.remove(newest)
            newest.rename(self._output)
        for path in found:
            shutil.rmtree(path, ignore_errors=True)

    def _names(self, role: str) -> str:
        """Returns the pattern of the names of hidden siblings."""
        return rf"\.{re.escape(self._output.name)}\.{role}-[0-9a-f]{{16}}"

    def _make_partial(self) -> Path:
        path = self._sibling("partial")
        path.mkdir()
        return path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes the partial folder unless it was committed; reports a full disk as WriteError.

        Raises:
            WriteError: ``error`` came of a disk that takes no more.
            KeyboardInterrupt: It came behind the commit; says that the bundle is whole.
        """
        said = self._as_write_error(error)
        stopped = error if isinstance(error, KeyboardInterrupt) else None
        try:
            with held_signals():
                self._clean_up()
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
        if said is not None:
            raise said from error
        if stopped is not None and self._committed:
            raise KeyboardInterrupt(f"The bundle is whole, at {self._output}.") from stopped
        if stopped is not None and stopped is not error:
            raise stopped

    def require_space(self, needed: int) -> None:
        """Refuses early when the disk has less room than ``needed`` bytes.

        Raises:
            WriteError: It has less; says how much is needed and how much is free.
        """
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise WriteError(
                f"The bundle needs {_size(needed)}, and only {_size(free)} are free.",
                where=str(self._output.parent),
                fix="Free some space, or pass --output on another disk.",
            )

    def commit(self, manifest: Manifest) -> Path:
        """Completes the bundle and moves it to its place.

        Args:
            manifest: The manifest; its ``files`` are replaced by the hashes of what was written.

        Returns:
            The bundle's folder.

        Raises:
            OutputExistsError: Another process made the output in the meantime.
            WriteError: The disk takes no more, or the folder cannot be renamed.
            InternalError: There is no artifact, a manifest was written before, or something is no
                plain file.
        """
        if self._committed:
            raise InternalError("The bundle is committed twice.")
        files = _plain_files(self.path)
        if manifest.artifact not in files or MANIFEST_NAME in files:
            raise InternalError(
                "A bundle is committed without its artifact, or with a manifest already in it.",
                where=listed(sorted(files)),
            )
        hashes = {name: hash_file(path) for name, path in files.items()}
        written = dataclasses.replace(manifest, files=hashes).write(self.path)
        for path in (*files.values(), written):
            _sync(path)
        for folder in (*(p for p in self.path.rglob("*") if p.is_dir()), self.path):
            _sync(folder)
        try:
            self._check_place()
            with held_signals():
                self._put_in_place()
        except OSError as error:
            raise _cannot_write(error, self._output) from error
        return self._output

    def _put_in_place(self) -> None:
        """Renames the partial folder to the output, in exchange for an earlier bundle."""
        if not (self._output.exists() and exchange(self.path, self._output)):
            if self._output.exists():
                self._aside = self._sibling("old")
                self._output.rename(self._aside)
            self.path.rename(self._output)
        self._committed = True
        _sync(self._output.parent)

    def _clean_up(self) -> None:
        """Leaves one bundle, the new one or the old one, and no hidden folder."""
        if self._aside is not None and self._aside.exists():
            if self._output.exists():
                shutil.rmtree(self._aside, ignore_errors=True)
            else:
                self._aside.rename(self._output)
        held, self._held = self._held, None
        if held is not None:
            held.take_away()

    def _sibling(self, role: str) -> Path:
        """Returns a hidden, unused name beside the output, on the same disk as it."""
        return self._output.parent / f".{self._output.name}.{role}-{secrets.token_hex(8)}"

    def _check_place(self) -> None:
        """Refuses an output that may not be written or replaced."""
        check_folder_place(self._output, "bundle", self._force, self._strangers)

    def _strangers(self, found: set[str]) -> set[str]:
        """Returns those files of the output that its manifest does not name."""
        try:
            return found - {*read_manifest(self._output).files, MANIFEST_NAME, SIGNATURE_NAME}
        except (BundleError, OSError) as error:
            raise OutputExistsError(
                "The output folder is there already, and it is no bundle.",
                where=str(self._output),
                fix="Pass another --output: --force replaces only bundles.",
            ) from error

    def _as_write_error(self, error: BaseException | None) -> WriteError | None:
        """Returns the error to raise instead of ``error`` if the disk is full."""
        if self._held is None or self._committed or not isinstance(error, Exception):
            return None
        if isinstance(error, ExporterError | RuntimeMissingError):
            return None
        if isinstance(error, OSError) and (
            error.errno in _UNWRITABLE or self._is_refused_here(error)
        ):
            return _cannot_write(error, self._output.parent)
        if shutil.disk_usage(self.path).free < _FULL_BYTES:
            return _cannot_write(OSError(errno.ENOSPC, str(error)), self._output.parent)
        return None

    def _is_refused_here(self, error: OSError) -> bool:
        """Returns whether the missing permission was that of a file in the partial folder."""
        named = str(error.filename) if error.filename is not None else ""
        return isinstance(error, PermissionError) and named.startswith(str(self.path))


def _plain_files(folder: Path) -> dict[str, Path]:
    """Returns every file below the folder by its relative name, sorted; refuses anything else."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise InternalError("Something in the bundle is no plain file.", where=name)
        if path.is_file():
            files[name] = path
    return files


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(error: OSError, place: Path) -> WriteError:
    """Returns why nothing can be written, with the free space if the disk is full."""
    where = str(error.filename or place)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next(folder for folder in (place, *place.parents) if folder.is_dir())
        free = shutil.disk_usage(folder).free
        quota = " for this user" if error.errno == errno.EDQUOT else ""
        return WriteError(
            f"The disk is full{quota}: {_size(free)} are free.",
            where=where,
            fix="Free some space, or pass --output on another disk.",
        )
    return WriteError(
        f"The bundle cannot be written: {error.strerror or error}.",
        where=where,
        fix="Check the permissions and limits of the folder, or pass another --output.",
    )


def _size(count: int) -> str:
    """Returns a number of bytes in decimal units, for example 1.5 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
