"""The command line: parses, calls, prints.

``--help`` imports nothing heavier than typer and rich; every command imports what it needs.
"""

from __future__ import annotations

import _thread
import io
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from tokexport.exporter.cli import bench as cli_bench
from tokexport.exporter.cli import bisect as cli_bisect
from tokexport.exporter.cli import compare as cli_compare
from tokexport.exporter.cli import lock as cli_lock
from tokexport.exporter.cli import package as cli_package
from tokexport.exporter.cli import rebuild as cli_rebuild
from tokexport.exporter.cli import reduce as cli_reduce
from tokexport.exporter.cli import report as cli_report
from tokexport.exporter.cli import run as cli_run
from tokexport.exporter.cli import schema as cli_schema
from tokexport.exporter.cli import verify as cli_verify
from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show,
    show_judged,
)
from tokexport.exporter.cli.parts.next_command import bisect_named
from tokexport.exporter.cli.parts.options import (
    Batch,
    Builder,
    Checkpoint,
    CodePath,
    Constant,
    EmbedPreprocess,
    Inputs,
    InputShape,
    Json,
    Labels,
    ModelSource,
    Precision,
    Preprocess,
    Quantization,
    Recipe,
    RequireKernels,
    Restore,
    Samples,
    Seed,
    Threads,
    TokenCap,
    TrustPickle,
    WeightBits,
    target_option,
)

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="tokexport",
    help="Ships token-reduced Vision Transformers, and proves parity and speed of what it ships.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

#: Seconds in which a finalizer has ended.
_MOMENT_S: Final = 0.02


@app.command("compile")
def compile_command(
    context: typer.Context,
    source: ModelSource,
    target: Annotated[str, target_option("What to build for.")],
    output: Annotated[
        Path | None, typer.Option(help="The bundle's folder; NAME-TARGET by default.")
    ] = None,
    code_path: CodePath = None,
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    embed_preprocess: EmbedPreprocess = None,
    labels: Labels = None,
    samples: Samples = None,
    input_shape: InputShape = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Samples that the artifact takes at once; an artifact each: 1,4,8."),
    ] = None,
    reduce: Recipe = None,
    restore: Restore = False,
    precision: Precision = "fp32",
    quantization: Quantization = None,
    weight_bits: WeightBits = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    atol: Annotated[
        float | None, typer.Option(help="Absolute tolerance of the parity gate.")
    ] = None,
    seed: Seed = 0,
    min_speedup: Annotated[
        float | None, typer.Option(help="Fail below this speed-up over eager PyTorch.")
    ] = None,
    require_run: Annotated[
        bool, typer.Option("--require-run", help="Fail when the engine cannot run here.")
    ] = False,
    require_kernels: RequireKernels = False,
    drop_noise: Annotated[
        bool,
        typer.Option("--drop-noise", help="Put the mean in place of each random number."),
    ] = False,
    token_cap: TokenCap = None,
    constant: Constant = None,
    threads: Threads = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Time the forms of the token operators; keep the best.")
    ] = False,
    keep_stages: Annotated[
        bool, typer.Option("--keep-stages", help="Leave every stage in OUTPUT.stages.")
    ] = False,
    keep_onnx: Annotated[
        bool | None,
        typer.Option(
            "--keep-onnx/--no-keep-onnx",
            help="Keep the ONNX file in the bundle, for rebuild on a device; by default of trt.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier bundle at the output.")
    ] = False,
    json: Json = False,
) -> None:
    """Compile a model, prove it against eager PyTorch, and write a bundle."""
    with report_errors(json), bisect_named(context):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.compile import compile
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.inputs.constant_inputs import parse_constants
        from tokexport.exporter.number_lists import parse_numbers
        from tokexport.exporter.progress import Checklist
        from tokexport.exporter.report.report import render
        from tokexport.exporter.source import SourceOptions, default_name, load_source
        from tokexport.exporter.source.code_path import on_code_path

        checklist = Checklist(console(stderr=True), enabled=not json)
        options = SourceOptions(source, tuple(code_path or ()), checkpoint, builder, trust_pickle)
        batches = None if batch is None else parse_numbers("--batch", batch, "1,4,8")
        first = None if batches is None else batches[0]
        # Under --json the user's own prints go to stderr; forward may import their modules.
        with redirect_user_output(json), on_code_path(options.code_path):
            result = compile(
                load_source(options),
                target=target,
                output=output or Path(default_name(source, target)),
                progress=checklist,
                inputs=inputs,
                preprocess=preprocess,
                embed_preprocess=embed_preprocess,
                labels=labels,
                samples=samples,
                input_shape=None if input_shape is None else parse_shape(input_shape, first),
                batch=first if batches is None or len(batches) == 1 else batches,
                reduce=reduce,
                restore=restore,
                precision=precision,
                quantization=quantization,
                weight_bits=weight_bits,
                atol=atol,
                seed=seed,
                min_speedup=min_speedup,
                require_run=require_run,
                require_kernels=require_kernels,
                keep_stages=keep_stages,
                keep_onnx=keep_onnx,
                force=force,
                drop_noise=drop_noise,
                token_cap=None
                if token_cap is None
                else parse_numbers("--token-cap", token_cap, "197,150,120"),
                constants=parse_constants(constant or ()),
                threads=threads,
                tune=tune,
            )
        kept = f"The bundle is whole, at {result.bundle}."
        show(json, result.report.to_json(), partial(render, result.report), kept)


@app.command("inspect")
def inspect_command(
    source: ModelSource,
    target: Annotated[str | None, target_option("Ask this target only.")] = None,
    code_path: CodePath = None,
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    samples: Samples = None,
    input_shape: InputShape = None,
    batch: Batch = None,
    reduce: Recipe = None,
    restore: Restore = False,
    token_cap: TokenCap = None,
    constant: Constant = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    image: Annotated[
        Path | None, typer.Option(help="A picture whose merged tokens are drawn, on a page.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The page of --image, an HTML file.")] = Path(
        "tokens.html"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --output.")] = False,
    json: Json = False,
) -> None:
    """Show a model block by block: tokens, what is recognised, cost, and what targets refuse."""
    with report_errors(json):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.backends.known import BACKENDS
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.inputs.constant_inputs import parse_constants
        from tokexport.exporter.inspection.inspect import inspect
        from tokexport.exporter.inspection.tables import render_inspection
        from tokexport.exporter.number_lists import parse_numbers
        from tokexport.exporter.progress import Checklist
        from tokexport.exporter.source import SourceOptions, load_source
        from tokexport.exporter.source.code_path import on_code_path

        options = SourceOptions(source, tuple(code_path or ()), checkpoint, builder, trust_pickle)
        if image is not None:
            cli_report.check_page_options(image, inputs, output, force)
        # Under --json the user's own prints go to stderr; forward may import their modules.
        with redirect_user_output(json), on_code_path(options.code_path):
            found = inspect(
                load_source(options),
                targets=(target,) if target else tuple(BACKENDS),
                draw=image is not None,
                progress=Checklist(console(stderr=True), enabled=not json),
                inputs=inputs or image,
                preprocess=preprocess,
                samples=samples,
                input_shape=None if input_shape is None else parse_shape(input_shape, batch),
                batch=batch,
                reduce=reduce,
                restore=restore,
                token_cap=None
                if token_cap is None
                else parse_numbers("--token-cap", token_cap, "197,150,120"),
                constants=parse_constants(constant or ()),
            )
        if image is None:
            show(json, found.to_json(), partial(render_inspection, found))
            return
        from tokexport.exporter.report_page.inspection_page import inspection_page
        from tokexport.exporter.report_page.page import write_page_whole

        write_page_whole(inspection_page(found.to_json(), image.name), output)
        kept = f"The page is {output}."

        def render(terminal: Console) -> None:
            render_inspection(found, terminal)
            terminal.print(f"\n{kept}", highlight=False, markup=False, soft_wrap=True)

        show(json, found.to_json(), render, kept)


cli_run.add_commands(app)
cli_verify.add_commands(app)
cli_rebuild.add_commands(app)
cli_report.add_commands(app)


@app.command("doctor")
def doctor_command(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle: say whether this machine can run it.")
    ] = None,
    json: Json = False,
) -> None:
    """Say which runtimes are here, what to install for the rest, and whether a bundle runs."""
    with report_errors(json):
        from tokexport.exporter.report.tables import (
            Diagnosis,
            diagnosis_of,
            render_bundle_diagnosis,
            render_components,
        )
        from tokexport.runtimes.doctor import diagnose

        with redirect_user_output(json):
            asked = None if bundle is None else diagnosis_of(bundle)
            components = diagnose() if asked is None or json else ()
        render = partial(render_components, components)
        if asked is not None:
            render = partial(render_bundle_diagnosis, asked)
        failed = None if asked is None else asked.failed()
        show_judged(json, Diagnosis(components, asked).to_json(), render, failed)


cli_reduce.add_commands(app)
cli_bench.add_commands(app)
cli_compare.add_commands(app)
cli_lock.add_commands(app)
cli_bisect.add_commands(app)
cli_package.add_commands(app)
cli_schema.add_commands(app)


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    """Ships token-reduced Vision Transformers, and proves parity and speed of what it ships."""
    if version:
        from tokexport import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Runs the command; SIGTERM ends it as Ctrl-C does, so that nothing is left behind."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _unraised
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters that are printed
            with suppress(OSError):  # it is closed: what prints to it says so
                stream.reconfigure(errors="replace")
    app()


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _unraised(ignored: Any) -> None:
    """Interrupts anew, in a moment, where Python drops an interrupt: that of a finalizer."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        again = threading.Timer(_MOMENT_S, _thread.interrupt_main, [signal.SIGTERM])
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ignored)


if __name__ == "__main__":
    main()
