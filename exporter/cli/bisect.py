"""The command that finds where a bundle or a compile first differs: parses, calls, prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show_judged,
)
from tokexport.exporter.cli.parts.options import (
    Batch,
    Builder,
    Checkpoint,
    CodePath,
    Constant,
    Inputs,
    InputShape,
    Json,
    ModelSource,
    Precision,
    Quantization,
    Recipe,
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
    from tokexport.exporter.bisection.result import Bisection


def add_commands(app: typer.Typer) -> None:
    """Adds bisect."""
    app.command("bisect")(bisect_command)


def bisect_command(
    source: ModelSource,
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle; without one the stages of a compile run.")
    ] = None,
    target: Annotated[str | None, target_option("What a compile is for, without a bundle.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The folder of the reproduction; NAME.bisect by default."),
    ] = None,
    code_path: CodePath = None,
    inputs: Inputs = None,
    samples: Samples = None,
    input_shape: InputShape = None,
    batch: Batch = None,
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
    drop_noise: Annotated[
        bool, typer.Option("--drop-noise", help="Put the mean in place of each random number.")
    ] = False,
    token_cap: TokenCap = None,
    constant: Constant = None,
    threads: Threads = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier reproduction at the output.")
    ] = False,
    json: Json = False,
) -> None:
    """Find the stage, the block and the node at which a bundle or a compile first differs."""
    with report_errors(json):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.bisection.bisect import bisect_bundle, bisect_compile
        from tokexport.exporter.bisection.tables import render_bisection
        from tokexport.exporter.config import CompileConfig
        from tokexport.exporter.errors import UsageError
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.inputs.constant_inputs import parse_constants
        from tokexport.exporter.number_lists import parse_numbers
        from tokexport.exporter.progress import Checklist
        from tokexport.exporter.source import SourceOptions, load_source
        from tokexport.exporter.source.code_path import on_code_path

        if (bundle is None) == (target is None):
            raise UsageError(
                "Nothing says what the source is compared with."
                if bundle is None
                else "A bundle has a target of its own.",
                fix="Name a bundle, or pass --target for the stages of a compile.",
            )
        options = SourceOptions(source, tuple(code_path or ()), checkpoint, builder, trust_pickle)
        checklist = Checklist(console(stderr=True), enabled=not json)
        folder = output or Path(f"{_stem(source, bundle)}.bisect")
        with redirect_user_output(json), on_code_path(options.code_path):
            found: Bisection
            if bundle is not None:
                found = bisect_bundle(
                    load_source(options),
                    bundle,
                    folder,
                    recipe=reduce,
                    inputs=inputs,
                    samples=samples,
                    threads=threads,
                    force=force,
                    progress=checklist,
                )
            else:
                assert target is not None
                config = CompileConfig(
                    target=target,
                    output=folder,
                    inputs=inputs,
                    samples=samples,
                    input_shape=None if input_shape is None else parse_shape(input_shape, batch),
                    batch=batch,
                    reduce=reduce,
                    restore=restore,
                    precision=precision,
                    quantization=quantization,
                    weight_bits=weight_bits,
                    atol=atol,
                    seed=seed,
                    drop_noise=drop_noise,
                    token_cap=None
                    if token_cap is None
                    else parse_numbers("--token-cap", token_cap, "197,150,120"),
                    constants=parse_constants(constant or ()),
                    threads=threads,
                    force=force,
                )
                found = bisect_compile(load_source(options), config, folder, progress=checklist)
        show_judged(json, found.to_json(), partial(render_bisection, found), found.failed())


def _stem(source: str, bundle: Path | None) -> str:
    return bundle.name if bundle is not None else Path(source.rpartition(":")[2]).stem or "model"
