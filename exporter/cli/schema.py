"""The command that prints the JSON Schemas: it parses, calls and prints."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import report_errors, show, show_text
from tokexport.exporter.cli.parts.options import Json

if TYPE_CHECKING:
    from rich.console import Console

    from tokexport.exporter.schemas.stored import SchemaList


def add_commands(app: typer.Typer) -> None:
    """Adds schema."""
    app.command("schema")(schema_command)


def schema_command(
    name: Annotated[
        str | None, typer.Argument(help="A file (report.json) or a command (compile).")
    ] = None,
    json: Json = False,
) -> None:
    """Print the JSON Schema of a file or of a command's --json, or list the schemas."""
    with report_errors(json):
        from tokexport.exporter.schemas.stored import all_schemas, schema

        if name is None:
            found = all_schemas()
            show(json, found.to_json(), partial(_render, found))
        else:
            show_text(schema(name).text)


def _render(found: SchemaList, console: Console) -> None:
    """Prints a line per schema."""
    from rich.text import Text

    width = max(len(one.name) for one in found.schemas)
    for one in found.schemas:
        parts = (f"{one.name:{width}}  ", (str(one.version), "cyan"), (f"  {one.about}", "dim"))
        console.print(Text.assemble(*parts), soft_wrap=True)
