"""The commands around token reduction: they parse, call and print, as those of ``cli`` do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show,
    show_result,
)
from tokexport.exporter.cli.parts.options import (
    RECIPE_HELP,
    Batch,
    Builder,
    Checkpoint,
    CodePath,
    Constant,
    Inputs,
    InputShape,
    Json,
    Labels,
    ModelSource,
    Precision,
    Preprocess,
    Quantization,
    Restore,
    Samples,
    Seed,
    Threads,
    TrustPickle,
    WeightBits,
    target_option,
)

NeededRecipe = Annotated[str, typer.Option("--reduce", help=RECIPE_HELP)]


def add_commands(app: typer.Typer) -> None:
    """Adds reduce, methods and sweep."""
    app.command("reduce")(reduce_command)
    app.command("methods")(methods_command)
    app.command("sweep")(sweep_command)


def reduce_command(
    source: ModelSource,
    reduce: NeededRecipe,
    output: Annotated[Path, typer.Option(help="The exported program to write: NAME.pt2.")],
    restore: Restore = False,
    code_path: CodePath = None,
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    samples: Samples = None,
    input_shape: InputShape = None,
    batch: Batch = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --output.")] = False,
    json: Json = False,
) -> None:
    """Put a token reduction into a plain ViT and save it; torch alone loads what is written."""
    with report_errors(json):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.config import ReduceConfig
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.progress import Checklist
        from tokexport.exporter.reduction.reduced_file import reduce_to_file, render_reduced
        from tokexport.exporter.source import SourceOptions, load_source
        from tokexport.exporter.source.code_path import on_code_path

        options = SourceOptions(source, tuple(code_path or ()), checkpoint, builder, trust_pickle)
        with redirect_user_output(json), on_code_path(options.code_path):
            done = reduce_to_file(
                load_source(options),
                output,
                ReduceConfig(
                    reduce=reduce,
                    restore=restore,
                    inputs=inputs,
                    preprocess=preprocess,
                    samples=samples,
                    input_shape=None if input_shape is None else parse_shape(input_shape, batch),
                    batch=batch,
                    seed=seed,
                ),
                force=force,
                progress=Checklist(console(stderr=True), enabled=not json),
            )
        show(json, done.to_json(), partial(render_reduced, done), f"The model is in {output}.")


def methods_command(json: Json = False) -> None:
    """List the reduction methods with their options, defaults and papers."""
    with report_errors(json):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.reduction.method_list import methods_json, render_methods

        show(json, methods_json(), render_methods)


def sweep_command(
    source: ModelSource,
    reduce: NeededRecipe,
    values: Annotated[str, typer.Option(help="The values to try: 4,8,12,16.")],
    target: Annotated[str, target_option("What to build for.")],
    option: Annotated[
        str | None, typer.Option(help="The option they go to; the method's main one by default.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; NAME-sweep by default.")
    ] = None,
    code_path: CodePath = None,
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    labels: Labels = None,
    samples: Samples = None,
    input_shape: InputShape = None,
    constant: Constant = None,
    batch: Batch = None,
    precision: Precision = "fp32",
    quantization: Quantization = None,
    weight_bits: WeightBits = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    seed: Seed = 0,
    threads: Threads = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Write no plot.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the files in --output.")] = False,
    json: Json = False,
) -> None:
    """Measure speed against agreement at several values of an option, and name the best."""
    with report_errors(json):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.config import CompileConfig
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.inputs.constant_inputs import parse_constants
        from tokexport.exporter.progress import Checklist
        from tokexport.exporter.recipe import parse_values
        from tokexport.exporter.report.result_files import ResultFiles
        from tokexport.exporter.source import SourceOptions, default_name, load_source
        from tokexport.exporter.source.code_path import on_code_path
        from tokexport.exporter.sweep.plot import draw_sweep
        from tokexport.exporter.sweep.sweep import sweep
        from tokexport.exporter.sweep.tables import render_sweep, sweep_json

        files = ResultFiles(output or Path(default_name(source, "sweep")), "sweep", not no_plot)
        files.check(force)
        options = SourceOptions(source, tuple(code_path or ()), checkpoint, builder, trust_pickle)
        with redirect_user_output(json), on_code_path(options.code_path):
            found = sweep(
                load_source(options),
                reduce,
                parse_values(values),
                CompileConfig(
                    target=target,
                    output=files.folder,
                    precision=precision,
                    quantization=quantization,
                    weight_bits=weight_bits,
                    inputs=inputs,
                    preprocess=preprocess,
                    labels=labels,
                    samples=samples,
                    input_shape=None if input_shape is None else parse_shape(input_shape, batch),
                    batch=batch,
                    seed=seed,
                    threads=threads,
                    constants=parse_constants(constant or ()),
                ),
                option=option,
                progress=Checklist(console(stderr=True), enabled=not json),
            )
        data, render = sweep_json(found), partial(render_sweep, found)
        show_result(data, render, files.write(render, data, partial(draw_sweep, found)), json)
