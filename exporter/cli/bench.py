"""The command that times a model beside its alternatives: it parses, calls and prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tokexport.exporter.cli.messages import (
    console,
    redirect_user_output,
    report_errors,
    show_result,
)
from tokexport.exporter.cli.options import (
    Builder,
    Checkpoint,
    CodePath,
    Constant,
    Inputs,
    InputShape,
    Json,
    ModelSource,
    Preprocess,
    Recipe,
    RequireKernels,
    Restore,
    Samples,
    Seed,
    Threads,
    TrustPickle,
)


def add_commands(app: typer.Typer) -> None:
    """Adds bench."""
    app.command("bench")(bench_command)


def bench_command(
    source: ModelSource,
    targets: Annotated[
        str, typer.Option(help="What to compile for: ort,openvino.")
    ] = "ort,openvino",
    precisions: Annotated[str, typer.Option(help="In which precisions: fp32,int8.")] = "fp32",
    batches: Annotated[str, typer.Option(help="How many samples at once: 1,8.")] = "1",
    reduce: Recipe = None,
    restore: Restore = False,
    unreduced: Annotated[
        str | None,
        typer.Option(help="The unreduced model of a source that reduces its tokens by itself."),
    ] = None,
    torch_compile: Annotated[
        bool, typer.Option("--torch-compile", help="Time torch.compile too.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds for each batch.")] = 40,
    time_limit: Annotated[
        float, typer.Option(help="Begin no round after this many seconds of a batch.")
    ] = 300.0,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; NAME-bench by default.")
    ] = None,
    code_path: CodePath = None,
    inputs: Inputs = None,
    preprocess: Preprocess = None,
    samples: Samples = None,
    input_shape: InputShape = None,
    constant: Constant = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    seed: Seed = 0,
    threads: Threads = None,
    require_kernels: RequireKernels = False,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Write no plot.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the files in --output.")] = False,
    json: Json = False,
) -> None:
    """Time a model beside eager, plain exports, the unreduced model and the GEMM floor."""
    with report_errors(json):
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.bench.config import BenchConfig, parse_batches, parse_names
        from tokexport.exporter.bench.plot import draw_bench
        from tokexport.exporter.bench.run import bench
        from tokexport.exporter.bench.tables import bench_json, render_bench
        from tokexport.exporter.inputs.batches import parse_shape
        from tokexport.exporter.inputs.constant_inputs import parse_constants
        from tokexport.exporter.progress import Checklist
        from tokexport.exporter.report.result_files import ResultFiles
        from tokexport.exporter.source import SourceOptions, default_name, load_source
        from tokexport.exporter.source.code_path import on_code_path

        files = ResultFiles(output or Path(default_name(source, "bench")), "bench", not no_plot)
        files.check(force)
        config = BenchConfig(
            targets=parse_names(targets),
            precisions=parse_names(precisions),
            batches=parse_batches(batches),
            reduce=reduce,
            restore=restore,
            rounds=rounds,
            time_limit_s=time_limit,
            torch_compile=torch_compile,
            threads=threads,
            require_kernels=require_kernels,
            inputs=inputs,
            preprocess=preprocess,
            samples=samples,
            input_shape=None if input_shape is None else parse_shape(input_shape),
            seed=seed,
            constants=parse_constants(constant or ()),
        )
        folders = tuple(code_path or ())
        options = SourceOptions(source, folders, checkpoint, builder, trust_pickle)
        with redirect_user_output(json), on_code_path(folders):
            other = None
            if unreduced is not None:
                other = load_source(SourceOptions(unreduced, folders, trust_pickle=trust_pickle))
            found = bench(
                load_source(options),
                config,
                unreduced=other,
                progress=Checklist(console(stderr=True), enabled=not json),
            )
        data, render = bench_json(found), partial(render_bench, found)
        show_result(data, render, files.write(render, data, partial(draw_bench, found)), json)
