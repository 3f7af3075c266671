"""The commands that package, sign and list what is in a bundle: they parse, call and print."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import report_errors, show
from tokexport.exporter.cli.parts.options import Bundle, Json

if TYPE_CHECKING:
    from rich.console import Console

    from tokexport.exporter.package.result import PackagedBundle


def add_commands(app: typer.Typer) -> None:
    """Adds package, sign and bom."""
    app.command("package")(package_command)
    app.command("sign")(sign_command)
    app.command("bom")(bom_command)


def package_command(
    bundle: Bundle,
    format: Annotated[
        str, typer.Option(help="What to write.", metavar="[tar|triton|ovms|oci|modelpack]")
    ],
    output: Annotated[Path, typer.Option(help="The file of a tar, else the folder, to write.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name in it; by default that of the folder.")
    ] = None,
    batching: Annotated[
        bool, typer.Option("--batching", help="Let Triton join requests (python backend).")
    ] = False,
    delay_us: Annotated[
        int, typer.Option("--delay-us", help="Microseconds that a request waits for others.")
    ] = 0,
    instances: Annotated[int, typer.Option(help="Instances that a server runs at once.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each; by default the runtime chooses.")
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The library of native kernels, where the server has it."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier package at the output.")
    ] = False,
    json: Json = False,
) -> None:
    """Package a bundle for an archive, a server or a registry; needs no torch."""
    with report_errors(json):
        from tokexport.exporter.package.options import PackageOptions
        from tokexport.exporter.package.package import package_bundle

        options = PackageOptions(name, batching, delay_us, instances, threads, kernels)
        done = package_bundle(bundle, format, output, options, force=force)
        show(json, done.to_json(), partial(_render, done), f"The package is {output}.")


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
                f"Verify it: tokexport verify {shlex.quote(str(bundle))} {option}"
            )
            console.print(said, highlight=False, markup=False, soft_wrap=True)

        show(json, done.to_json(), render, f"The signature is {done.signature}.")


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


def _render(done: PackagedBundle, console: Console) -> None:
    from rich.text import Text

    size = sum(one.bytes for one in done.contents)
    line = f"{done.output}  ({done.format}, {len(done.contents)} files, {size / 1e6:.1f} MB)"
    console.print(Text.assemble(("package  ", "bold"), line), soft_wrap=True)
    console.print(Text(f"         {done.digest}"), soft_wrap=True)
    for note in done.notes:
        console.print(Text.assemble(("note     ", "yellow"), note), soft_wrap=True)
    console.print(Text.assemble(("next     ", "bold"), done.next), soft_wrap=True)
