"""The command that writes the page of a bundle anew: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import report_errors, show
from tokexport.exporter.cli.parts.options import Json

if TYPE_CHECKING:
    from rich.console import Console


def add_commands(app: typer.Typer) -> None:
    """Adds report."""
    app.command("report")(report_command)


def report_command(
    bundle: Annotated[
        Path, typer.Argument(help="The folder of a bundle, or OUTPUT.failed.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    open_page: Annotated[
        bool, typer.Option("--open", help="Show it in the browser when it is written.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --output.")] = False,
    json: Json = False,
) -> None:
    """Write the page of a bundle, or of a compile that failed, as one HTML file; needs no torch."""
    with report_errors(json):
        from tokexport.exporter.report_page.bundle_page import write_bundle_page

        written = write_bundle_page(bundle, output, force)

        def render(terminal: Console) -> None:
            terminal.print(
                f"{written.verdict}  {written.sentence}\nThe page is {output}.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

        show(json, written.to_json(), render, f"The page is {output}.")
        if open_page:
            import webbrowser

            webbrowser.open(output.absolute().as_uri())


def check_page_options(image: Path, inputs: Path | None, output: Path, force: bool) -> None:
    """Refuses, before anything runs, a page of a picture that could not be written at the end.

    Args:
        image: The picture.
        inputs: The samples that were named beside it.
        output: The page.
        force: Whether a page that is there is replaced.
    """
    from tokexport.exporter.errors import UsageError
    from tokexport.exporter.requirements import require_page_packages
    from tokexport.exporter.system.output_file import check_place

    if inputs is not None:
        raise UsageError(
            "A picture is the sample by itself, and --inputs names others.",
            where=f"--image {image}, --inputs {inputs}",
            fix="Leave one of them out.",
        )
    require_page_packages()
    check_place(output, force)
