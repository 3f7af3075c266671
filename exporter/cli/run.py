"""Adds run: a bundle on arrays, or on pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show,
    show_judged,
    show_text,
)
from tokexport.exporter.cli.parts.options import (
    Bundle,
    Json,
    Labels,
    Preprocess,
    PublicKey,
    RequireKernels,
    Samples,
    Threads,
    TrustedCertificates,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tokexport.exporter.bundle.load_options import LoadOptions

#: Stands for standard output in place of a file.
_STDOUT: Final = Path("-")


def add_commands(app: typer.Typer) -> None:
    """Adds run."""
    app.command("run")(run_command)


def run_command(
    bundle: Bundle,
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="Pictures to classify, and folders of them.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Samples, as for compile: an .npz, or pictures.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The .npz to write with --inputs, an array per output.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="How many classes a picture gets; 5 by default.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the classes of the pictures as CSV; - prints it.")
    ] = None,
    preprocess: Preprocess = None,
    labels: Labels = None,
    samples: Samples = None,
    threads: Threads = None,
    require_kernels: RequireKernels = False,
    public_key: PublicKey = None,
    trusted_certificate: TrustedCertificates = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file at --output or --csv.")
    ] = False,
    json: Json = False,
) -> None:
    """Classify pictures with a bundle, or run it on the samples of a file."""
    with report_errors(json):
        from tokexport.exporter.bundle.load_options import LoadOptions
        from tokexport.exporter.errors import UsageError

        options = LoadOptions(
            threads=threads,
            require_kernels=require_kernels,
            public_key=public_key,
            certificates=tuple(trusted_certificate) if trusted_certificate else None,
        )
        if pictures:
            if (inputs, output, samples) != (None, None, None):
                raise UsageError(
                    "--inputs, --output and --samples do not go with pictures.",
                    fix="Name the pictures alone, or write the outputs: --inputs PICTURES "
                    "--output y.npz.",
                )
            if csv == _STDOUT and json:
                raise UsageError(
                    "--csv - and --json both print to standard output.",
                    fix="Pass one of them, or --csv with a file.",
                )
            _classify(
                *(bundle, pictures, 5 if top is None else top, csv, preprocess, labels),
                *(options, force, json),
            )
            return
        if inputs is None or output is None:
            raise UsageError(
                "Nothing says what the bundle runs on.",
                fix="Name pictures, or pass --inputs with samples and --output with an .npz.",
            )
        if top is not None or csv is not None:
            raise UsageError(
                "--top and --csv are of pictures that are classified.",
                fix="Name the pictures in place of --inputs, or leave these out.",
            )
        from tokexport.exporter.bundle.run_bundle import run_bundle
        from tokexport.exporter.progress import Checklist

        with redirect_user_output(json):
            done = run_bundle(
                bundle,
                inputs,
                output,
                force=force,
                samples=samples,
                preprocess=preprocess,
                labels=labels,
                options=options,
                progress=Checklist(console(stderr=True), enabled=not json),
            )

        def render(terminal: Console) -> None:
            terminal.print(done.sentence(), highlight=False, markup=False, soft_wrap=True)

        show(json, done.to_json(), render, f"The outputs are in {output}.")


def _classify(
    bundle: Path,
    pictures: list[Path],
    top: int,
    csv: Path | None,
    preprocess: str | None,
    labels: Path | None,
    options: LoadOptions,
    force: bool,
    json: bool,
) -> None:
    """Classifies pictures, and prints their classes."""
    from tokexport.exporter.bundle.class_tables import render_classes
    from tokexport.exporter.bundle.classify_pictures import classify_pictures
    from tokexport.exporter.progress import Checklist

    with redirect_user_output(json):
        found = classify_pictures(
            bundle,
            pictures,
            top=top,
            csv=None if csv == _STDOUT else csv,
            force=force,
            preprocess=preprocess,
            labels=labels,
            options=options,
            progress=Checklist(console(stderr=True), enabled=not json),
        )
    if csv == _STDOUT:
        show_text(found.as_csv())
        for warning in found.warnings:
            console(stderr=True).print(warning, markup=False, soft_wrap=True)
        if found.failed is not None:
            raise found.failed
        return
    show_judged(json, found.to_json(), partial(render_classes, found), found.failed)
