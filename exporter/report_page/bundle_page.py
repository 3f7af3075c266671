"""Reads what a page of a bundle is made of, and writes it; needs no torch."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokexport.exporter.errors import InputError, PackageMissingError
from tokexport.exporter.json_values import plain
from tokexport.exporter.report.file_names import PAGE_DATA_NAME, PAGE_NAME, REPORT_NAME
from tokexport.exporter.report_page.compile_page import compile_page
from tokexport.exporter.report_page.page import Page, write_page, write_page_whole
from tokexport.exporter.requirements import require_page_packages
from tokexport.exporter.system.output_file import check_outside, check_place
from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import MANIFEST_NAME, Manifest
from tokexport.runtimes.errors import BundleError
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.printable import printable
from tokexport.runtimes.signatures import trusted_manifest

if TYPE_CHECKING:
    from tokexport.exporter.report.report import Report
    from tokexport.exporter.report_page.page_data import PageData

_PICTURE: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
#: Bytes of a report; those of large models have a few million.
_LARGEST: Final = 1 << 27


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written.

    Attributes:
        verdict: The verdict on it: ``PASSED``, ``BUILT, NOT RUN`` or ``FAILED``.
        sentence: What that means, a sentence.
        title: What was compiled, and for what.
        output: The file.
    """

    verdict: str
    sentence: str
    title: str
    output: Path

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found


def page_of(folder: Path) -> Page:
    """Returns the page of a bundle, or of what a failed compile left.

    Args:
        folder: The folder, with ``report.json``; it may lack ``page.json`` and the manifest.

    Raises:
        InputError: There is no report in it, or it is not what a compile writes.
        BundleError: The manifest is broken, or does not have the hash of the report.
    """
    manifest = trusted_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
    report = _read(folder / REPORT_NAME, manifest)
    data = _read(folder / PAGE_DATA_NAME, manifest) if (folder / PAGE_DATA_NAME).exists() else {}
    pictures = data.get("pictures") or []
    if not all(isinstance(one, str) and _PICTURE.fullmatch(one) for one in pictures):
        raise _not_ours(folder / PAGE_DATA_NAME, "a picture is no PNG")
    described = None if manifest is None else dataclasses.asdict(manifest)
    try:
        return compile_page(report, data, described)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _not_ours(folder / REPORT_NAME, f"{type(error).__name__}: {error}") from error


def _read(path: Path, manifest: Manifest | None) -> dict[str, Any]:
    """Reads a JSON object, which has the hash that the manifest says."""
    try:
        text = read_at_most(path, _LARGEST)
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"There is no {path.name} that can be read.",
            where=f"{path}: {error}",
            fix="Name the folder of a bundle, or OUTPUT.failed of a compile that failed.",
        ) from error
    if manifest is not None and manifest.files.get(path.name) != hash_file(path):
        raise BundleError(
            f"{path.name} is not the one that the compile wrote.",
            where=str(path),
            fix="Take an unaltered copy of the bundle, or compile the model anew.",
        )
    if not isinstance(data, dict):
        raise _not_ours(path, "it holds no object")
    return data


def _not_ours(path: Path, why: str) -> InputError:
    return InputError(
        f"{path.name} does not hold what a compile of this version writes.",
        where=f"{path}: {printable(why)}",
        fix="Compile the model anew, or use the version of tokexport that wrote it.",
    )


def missing_packages() -> str:
    """Returns what to install for pages to be written, a sentence; '' where nothing is missing."""
    try:
        require_page_packages()
    except PackageMissingError as error:
        return f"{PAGE_NAME} was left out. {error.what} {error.fix}"
    return ""


def write_results(folder: Path, report: Report, data: PageData, manifest: Manifest | None) -> str:
    """Writes ``report.json``, ``page.json`` and ``report.html``; the last where it can be.

    Args:
        folder: The folder.
        report: The report.
        data: What the page shows beside it.
        manifest: The manifest; None where no bundle is written.

    Returns:
        The name of the file to open: the page, or ``report.json`` without it.
    """
    report.write(folder / REPORT_NAME)
    data.write(folder / PAGE_DATA_NAME)
    if missing_packages():
        return REPORT_NAME
    described = None if manifest is None else dataclasses.asdict(manifest)
    try:
        page = compile_page(report.to_json(), data.to_json(), described)
        write_page(page, folder / PAGE_NAME)
    except OSError:
        raise
    except Exception as error:  # a bug of the page, for which no compile is thrown away
        said = f"{PAGE_NAME} was left out, by a bug in tokexport: {type(error).__name__}: {error}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
        (folder / PAGE_NAME).unlink(missing_ok=True)
        return REPORT_NAME
    return PAGE_NAME


def write_bundle_page(folder: Path, output: Path, force: bool = False) -> WrittenPage:
    """Writes the page of a bundle, or of a compile that failed, into a file; needs no torch.

    Args:
        folder: The bundle, or ``OUTPUT.failed``.
        output: The HTML file.
        force: Whether a file that is there is replaced.

    Returns:
        What the page says, and where it is.

    Raises:
        PackageMissingError: jinja2 or matplotlib is not installed.
        OutputExistsError: There is something at the output already.
        UsageError: The output lies in the bundle, whose files have hashes.
        InputError: The folder holds no report, or one that no compile of this version wrote.
        BundleError: The report is not the one that the manifest has the hash of.
        WriteError: The file cannot be written.
    """
    require_page_packages()
    check_place(output, force)
    check_outside(output, folder)
    page = page_of(folder)
    write_page_whole(page, output)
    return WrittenPage(page.verdict.word, page.verdict.sentence, page.title, output)
