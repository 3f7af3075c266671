"""The command that compares two models: it parses, calls and prints."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from tokexport.exporter.cli.parts.messages import redirect_user_output, report_errors, show_judged
from tokexport.exporter.cli.parts.options import (
    Batch,
    Builder,
    Checkpoint,
    CodePath,
    Inputs,
    InputShape,
    Json,
    Preprocess,
    Recipe,
    Restore,
    Samples,
    Seed,
    Threads,
    TrustPickle,
)

_KINDS = "a bundle, an .onnx file, the .xml of an OpenVINO IR, or a source."


def add_commands(app: typer.Typer) -> None:
    """Adds compare."""
    app.command("compare")(compare_command)


def compare_command(
    reference: Annotated[str, typer.Argument(help=f"What the other is held to: {_KINDS}")],
    candidate: Annotated[str, typer.Argument(help=f"The other: {_KINDS}")],
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    samples: Samples = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Fail where more of a value's scale, or of whole numbers, differs."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="What OpenVINO computes an IR in: fp32, bf16, fp16.")
    ] = "fp32",
    reduce: Recipe = None,
    restore: Restore = False,
    code_path: CodePath = None,
    input_shape: InputShape = None,
    batch: Batch = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compare two models on the same inputs, output by output."""
    with report_errors(json):
        from tokexport.exporter.comparison.compare import compare
        from tokexport.exporter.comparison.tables import render_comparison
        from tokexport.exporter.config import ReduceConfig
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.source.code_path import on_code_path
        from tokexport.exporter.source.options import SourceOptions

        config = ReduceConfig(
            inputs=inputs,
            preprocess=preprocess,
            samples=samples,
            input_shape=None if input_shape is None else parse_shape(input_shape, batch),
            batch=batch,
            seed=seed,
            reduce=reduce,
            restore=restore,
        )
        folders = tuple(code_path or ())
        one, other = (
            SourceOptions(name, folders, checkpoint, builder, trust_pickle)
            for name in (reference, candidate)
        )
        with redirect_user_output(json), on_code_path(folders):
            found = compare(one, other, config, precision=precision, threads=threads)
        failed = None if tolerance is None else found.failed(tolerance)
        show_judged(json, found.to_json(), partial(render_comparison, found), failed)
