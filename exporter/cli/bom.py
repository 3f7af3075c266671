"""The command that writes a bill of materials: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import report_errors, show
from tokexport.exporter.cli.parts.options import Bundle, Json

if TYPE_CHECKING:
    from rich.console import Console


def add_commands(app: typer.Typer) -> None:
    """Adds bom."""
    app.command("bom")(bom_command)


def bom_command(
    bundle: Bundle,
    output: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("bom.json"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --output.")] = False,
    json: Json = False,
) -> None:
    """Write the bill of materials of a bundle, as CycloneDX 1.6 with a model card."""
    with report_errors(json):
        from tokexport.exporter.package.bom import write_bom

        done = write_bom(bundle, output, force=force)

        def render(console: Console) -> None:
            said = f"{output}: {done.components} components, {done.metrics} measured figures"
            console.print(said, highlight=False, markup=False, soft_wrap=True)

        show(json, done.to_json(), render, f"The bill of materials is {output}.")
