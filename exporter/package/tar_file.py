"""Writes files as a tar archive that has the same bytes whenever its files have.

::

    NAME/manifest.json    names sorted, one folder; owner 0, mode 0644,
    NAME/model.onnx       time 0 (1970), POSIX.1-2001 (pax) without comments

Unpack it with ``tar -xf``; the folder in it is the bundle.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import BinaryIO, Final

from tokexport.exporter.package.content import Content, Files, PackageFiles, Source
from tokexport.exporter.package.options import PackageOptions

_FILE: Final = 0o644


def tar_files(content: Content, _: PackageOptions) -> PackageFiles:
    """Returns every file of the bundle, below a folder of its name."""
    return PackageFiles({f"{content.name}/{name}": path for name, path in content.files.items()})


def write_tar(files: Files, output: Path) -> None:
    """Writes an archive of files.

    Raises:
        OSError: The file cannot be written.
    """
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            source = files[name]
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = _size(source), _FILE
            with _opened(source) as file:
                archive.addfile(entry, file)


def _size(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _opened(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
