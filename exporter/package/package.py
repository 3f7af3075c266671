"""Packages a bundle, whole or not at all; needs no torch."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from tokexport.exporter.errors import UsageError
from tokexport.exporter.package.content import Files, digest_of, read_content
from tokexport.exporter.package.formats import FORMATS, PackageFormat
from tokexport.exporter.package.options import PackageOptions, check_name
from tokexport.exporter.package.result import PackagedBundle, PackagedFile
from tokexport.exporter.package.tar_file import write_tar
from tokexport.exporter.system.output_file import check_outside, check_place, written_whole
from tokexport.exporter.system.output_folder import check_folder_place, folder_written_whole
from tokexport.runtimes.bundle.bundle_files import hash_file


def package_bundle(
    bundle: Path,
    format: str,
    output: Path,
    options: PackageOptions | None = None,
    *,
    force: bool = False,
) -> PackagedBundle:
    """Packages a bundle for a server, a registry or an archive.

    Args:
        bundle: The folder that compile wrote; its files are checked against their hashes, and its
            signature where one is asked for.
        format: One of ``FORMATS``.
        output: The file or the folder to write.
        options: How.
        force: Whether an earlier package at the output is replaced.

    Returns:
        What was written.

    Raises:
        UsageError: The format is not known, does not take an option or this bundle, the name is
            no name for a package, or the output lies in the bundle.
        BundleError: The bundle is not whole.
        OutputExistsError: Something is at the output that may not be replaced.
        WriteError: The output cannot be written.
    """
    options = options or PackageOptions()
    chosen = _format(format, options)
    content = read_content(bundle, options.name)
    check_name(content.name, given=options.name is not None)
    check_outside(output, bundle)
    if chosen.is_file:
        check_place(output, force)
    made = chosen.files(content, options)
    files = tuple(_described(name, made.files) for name in sorted(made.files))
    # Behind the block the package is in its place, and nothing is left that takes time.
    if chosen.is_file:
        with written_whole(output, "package") as partial:
            write_tar(made.files, partial)
            digest = f"sha256:{hash_file(partial)}"
    else:
        names = made.files.keys()
        own = re.compile(chosen.own.replace("{name}", re.escape(content.name)))
        check_folder_place(
            output,
            "package",
            force,
            lambda found: [one for one in found - names if not own.fullmatch(one)],
        )
        with folder_written_whole(output) as folder:
            _write(made.files, folder)
        lines = "".join(f"{one.sha256}  {one.name}\n" for one in files)
        digest = made.digest or f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    said = chosen.next(output, content.name)
    return PackagedBundle(format, bundle, output, digest, files, said, made.notes)


def _format(name: str, options: PackageOptions) -> PackageFormat:
    """Returns a format that takes the options."""
    found = FORMATS.get(name)
    if found is None:
        raise UsageError(f"There is no format '{name}'.", fix=f"Pass one of {', '.join(FORMATS)}.")
    if others := sorted(options.given() - found.options):
        shown = ", ".join(f"--{one.replace('_', '-')}" for one in others)
        raise UsageError(f"A package of format {name} takes no {shown}.", fix="Leave it out.")
    return found


def _write(files: Files, folder: Path) -> None:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            path.write_bytes(source)
        else:
            shutil.copyfile(source, path)
        path.chmod(0o644)


def _described(name: str, files: Files) -> PackagedFile:
    digest, size = digest_of(files[name])
    return PackagedFile(name, size, digest.removeprefix("sha256:"))
