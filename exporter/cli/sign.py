"""The command that signs a bundle: it parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import report_errors, show
from tokexport.exporter.cli.parts.options import Bundle, Json

if TYPE_CHECKING:
    from rich.console import Console


def add_commands(app: typer.Typer) -> None:
    """Adds sign."""
    app.command("sign")(sign_command)


def sign_command(
    bundle: Bundle,
    key: Annotated[
        Path, typer.Option(metavar="PEM", help="The private key, on an elliptic curve.")
    ],
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="The key's certificate, to go with it.")
    ] = None,
    chain: Annotated[
        list[Path] | None,
        typer.Option(metavar="PEM", help="Certificates between it and the root; repeatable."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the signature of a signed bundle.")
    ] = False,
    json: Json = False,
) -> None:
    """Sign a bundle as OpenSSF Model Signing has it, offline: writes model.sig into it."""
    with report_errors(json):
        from tokexport.exporter.package.signing import sign_bundle

        done = sign_bundle(bundle, key, certificate=certificate, chain=chain or (), force=force)
        option = "--public-key PEM" if certificate is None else "--trusted-certificate PEM"

        def render(console: Console) -> None:
            said = (
                f"{done.signature} signs {len(done.covered)} files.\n"
                f"Verify it: tokexport verify {bundle} {option}"
            )
            console.print(said, highlight=False, markup=False, soft_wrap=True)

        show(json, done.to_json(), render, f"The signature is {done.signature}.")
