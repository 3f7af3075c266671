"""The command that builds an artifact anew on a device: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import console, redirect_user_output, report_errors, show
from tokexport.exporter.cli.parts.options import Bundle, Json

if TYPE_CHECKING:
    from rich.console import Console


def add_commands(app: typer.Typer) -> None:
    """Adds rebuild."""
    app.command("rebuild")(rebuild_command)


def rebuild_command(
    bundle: Bundle,
    output: Annotated[
        Path | None, typer.Option(help="The new bundle's folder; the old one is replaced without.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that is at --output.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a bundle's artifact anew from the ONNX kept in it, and verify it; no torch."""
    with report_errors(json):
        from tokexport.exporter.bundle.rebuild import rebuild
        from tokexport.exporter.progress import Checklist

        with redirect_user_output(json):
            checklist = Checklist(console(stderr=True), enabled=not json)
            done = rebuild(bundle, output, force=force, progress=checklist)

        def render(terminal: Console) -> None:
            terminal.print(done.sentence(), highlight=False, markup=False, soft_wrap=True)

        show(json, done.to_json(), render, f"The bundle is whole, at {done.output}.")
