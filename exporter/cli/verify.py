"""The command that verifies a bundle, alone or against a source: it parses, calls and prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypedDict

import typer

from tokexport.exporter.cli.parts.given_options import given_options
from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show_judged,
)
from tokexport.exporter.cli.parts.next_command import bisect_named, name_bisect
from tokexport.exporter.cli.parts.options import (
    Builder,
    Bundle,
    Checkpoint,
    CodePath,
    Inputs,
    Json,
    Preprocess,
    PublicKey,
    Recipe,
    RequireKernels,
    Samples,
    Threads,
    TrustedCertificates,
    TrustPickle,
)

#: The options that say how a source is read and run.
_OF_SOURCES: Final = frozenset(
    {
        *("reduce", "inputs", "preprocess", "samples", "code_path", "checkpoint", "builder"),
        *("trust_pickle", "html", "force"),
    }
)

if TYPE_CHECKING:
    from tokexport.exporter.source.options import SourceOptions


class AgainstOptions(TypedDict):
    """The options of ``verify_against`` that the command takes."""

    recipe: str | None
    inputs: Path | None
    preprocess: str | None
    samples: int | None
    threads: int | None
    require_kernels: bool


def add_commands(app: typer.Typer) -> None:
    """Adds verify."""
    app.command("verify")(verify_command)


def verify_command(
    context: typer.Context,
    bundle: Bundle,
    against: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Hold the bundle to this source; needs torch."),
    ] = None,
    reduce: Recipe = None,
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    samples: Samples = None,
    code_path: CodePath = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    threads: Threads = None,
    require_kernels: RequireKernels = False,
    public_key: PublicKey = None,
    trusted_certificate: TrustedCertificates = None,
    html: Annotated[
        Path | None, typer.Option(help="With --against, also write what was found as a page.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --html.")] = False,
    json: Json = False,
) -> None:
    """Replay the reference data in a bundle and hold it to its gates; needs no torch."""
    with report_errors(json), bisect_named(context):
        from tokexport.exporter.config import check_threads
        from tokexport.exporter.errors import UsageError
        from tokexport.exporter.report.tables import (
            failed_gate,
            render_verification,
            verification_json,
        )
        from tokexport.exporter.source.options import SourceOptions
        from tokexport.runtimes.signatures import held_to, signer_of
        from tokexport.runtimes.verification import verify_bundle

        check_threads(threads)
        certificates = trusted_certificate or None
        if against is not None:
            folders = tuple(code_path or ())
            options = SourceOptions(against, folders, checkpoint, builder, trust_pickle)
            asked = AgainstOptions(
                recipe=reduce,
                inputs=inputs,
                preprocess=preprocess,
                samples=samples,
                threads=threads,
                require_kernels=require_kernels,
            )
            with held_to(signer_of(public_key, certificates)):
                _verify_against(bundle, options, asked, html, force, json, context)
            return
        if given := given_options(context, _OF_SOURCES):
            raise UsageError(
                f"A bundle alone is held to its own reference data, without {', '.join(given)}.",
                fix="Name the source too: --against SOURCE.",
            )
        with redirect_user_output(json):
            result = verify_bundle(
                bundle,
                threads=threads,
                require_kernels=require_kernels,
                public_key=public_key,
                certificates=certificates,
            )
        render = partial(render_verification, result)
        show_judged(json, verification_json(result), render, failed_gate(result))


def _verify_against(
    bundle: Path,
    options: SourceOptions,
    asked: AgainstOptions,
    html: Path | None,
    force: bool,
    json: bool,
    context: typer.Context,
) -> None:
    """Compares a bundle with a source, and prints what was found; writes it as a page too."""
    from tokexport.exporter.requirements import require_compile_packages

    require_compile_packages()
    from tokexport.exporter.comparison.against import verify_against
    from tokexport.exporter.comparison.against_tables import render_against
    from tokexport.exporter.progress import Checklist
    from tokexport.exporter.source import load_source
    from tokexport.exporter.source.code_path import on_code_path

    if html is not None:
        from tokexport.exporter.requirements import require_page_packages
        from tokexport.exporter.system.output_file import check_outside, check_place

        require_page_packages()
        check_outside(html, bundle)
        check_place(html, force)
    with redirect_user_output(json), on_code_path(options.code_path):
        found = verify_against(
            bundle,
            load_source(options),
            progress=Checklist(console(stderr=True), enabled=not json),
            **asked,
        )
    failed = found.failed()
    if failed is not None:
        name_bisect(failed, context)
    if html is not None:
        from tokexport.exporter.report_page.against_page import against_page
        from tokexport.exporter.report_page.page import write_page_whole

        fix = "" if failed is None else failed.fix
        write_page_whole(against_page(found.to_json(), fix), html)
    show_judged(json, found.to_json(), partial(render_against, found), failed)
