"""Leaves the report of a compile that failed its gate in a folder beside the output.

::

    OUTPUT.failed/      replaced by the next failure
        report.html     to be read; not there where its packages are missing
        report.json     the report so far
        page.json       what the page shows beside it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokexport.exporter.errors import GateError
from tokexport.exporter.report.file_names import PAGE_NAME
from tokexport.exporter.report_page.bundle_page import write_results
from tokexport.exporter.report_page.page_data import Failure
from tokexport.exporter.stages.run import CompileRun
from tokexport.runtimes.printable import printable


@contextmanager
def failure_kept(run: CompileRun) -> Iterator[None]:
    """Writes what was found until a gate failed, and names the file in the error.

    Nothing is written for a compile that gathers no page.

    Args:
        run: The compile.
    """
    try:
        yield
    except GateError as error:
        if error.report is not None:  # of a further artifact, whose page is written
            raise
        error.report, error.batch = run.report(), run.config.batch
        if not run.page.enabled:
            raise
        folder = failed_folder(run.config.output)
        parts = (printable(one) for one in (error.what, error.where, error.fix))
        data = run.page.data(Failure(type(error).__name__, *parts))
        try:
            folder.mkdir(exist_ok=True)
            (folder / PAGE_NAME).unlink(missing_ok=True)
            shown = folder / write_results(folder, error.report, data, None)
        except OSError:  # the gate is what failed; that its page cannot be written is nothing
            raise error from None
        error.fix = f"{error.fix} {shown} shows what was found.".lstrip()
        raise


def failed_folder(output: Path) -> Path:
    """Returns the folder for the report of a compile that failed.

    Args:
        output: The folder that would have become the bundle.
    """
    return output.with_name(f"{output.name}.failed")
