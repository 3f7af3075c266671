"""The command that times a model beside its alternatives, or bundles: it parses, calls, prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tokexport.exporter.cli.parts.given_options import given_options
from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show_result,
)
from tokexport.exporter.cli.parts.options import (
    Builder,
    Checkpoint,
    CodePath,
    Constant,
    Inputs,
    InputShape,
    Json,
    Preprocess,
    Recipe,
    RequireKernels,
    Restore,
    Samples,
    Seed,
    TrustPickle,
)

if TYPE_CHECKING:
    from tokexport.exporter.bench_bundle.remote import RemoteConfig

#: The options that a bundle takes; the others shape a compile.
_OF_BUNDLES: Final = frozenset(
    (
        "source",
        "other",
        "threads",
        "batches",
        "rounds",
        "time_limit",
        "output",
        "require_kernels",
        "force",
    )
    + ("json",)
)
#: Those of them that say where it is measured.
_OF_HOSTS: Final = frozenset(("on", "port", "ssh_option", "python", "wheel"))


def add_commands(app: typer.Typer) -> None:
    """Adds bench."""
    app.command("bench")(bench_command)


def bench_command(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A model, as for compile; or the folder of a bundle, which takes no torch."
        ),
    ],
    other: Annotated[
        Path | None, typer.Argument(help="Another bundle, timed in turns with the first.")
    ] = None,
    targets: Annotated[
        str, typer.Option(help="What to compile for: ort,openvino.")
    ] = "ort,openvino",
    precisions: Annotated[str, typer.Option(help="In which precisions: fp32,int8.")] = "fp32",
    batches: Annotated[
        str | None,
        typer.Option(help="How many samples at once: 1,8. By default 1; of bundles all they have."),
    ] = None,
    reduce: Recipe = None,
    restore: Restore = False,
    unreduced: Annotated[
        str | None,
        typer.Option(help="The unreduced model of a source that reduces its tokens by itself."),
    ] = None,
    torch_compile: Annotated[
        bool, typer.Option("--torch-compile", help="Time torch.compile too.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(help="The most interleaved rounds for each batch: 40; of bundles, 1000 runs."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Begin no round after this many seconds of a batch: 300; of bundles, 10."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The folder to write, NAME-bench by default; of bundles, a .json file."),
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
    threads: Annotated[
        str | None,
        typer.Option(
            help="The most threads for eager and the runtimes; of bundles several, 1,2,4, and by "
            "default one and all."
        ),
    ] = None,
    require_kernels: RequireKernels = False,
    on: Annotated[
        str | None, typer.Option(help="Measure bundles on this machine, over ssh: USER@HOST.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The port of ssh there.")] = None,
    ssh_option: Annotated[
        list[str] | None, typer.Option(help="An option of ssh, Name=value; may be repeated.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="The Python there: it has tokexport, or with --wheel makes its place."),
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="A wheel of tokexport, installed there for the measurement.")
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Write no plot.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the files in --output.")] = False,
    json: Json = False,
) -> None:
    """Time a model beside its alternatives, or one bundle or two on this machine."""
    with report_errors(json):
        from tokexport.exporter.bench_bundle.config import is_bundle
        from tokexport.exporter.number_lists import parse_numbers

        counts = () if threads is None else parse_numbers("--threads", threads, "1,2,4")
        sizes = () if batches is None else parse_numbers("--batches", batches, "1,8")
        if is_bundle(Path(source)):
            _refuse_of_models(context)
            _bench_bundles(
                (Path(source), *([] if other is None else [other])),
                counts,
                sizes,
                rounds,
                time_limit,
                output,
                require_kernels=require_kernels,
                remote=_remote(context, on, port, ssh_option, python, wheel),
                force=force,
                json=json,
            )
            return
        _refuse_of_bundles(context, source, other, counts)
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.bench.config import (
            ENOUGH_ROUNDS,
            MOST_SECONDS,
            BenchConfig,
            parse_names,
        )
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
            batches=sizes or (1,),
            reduce=reduce,
            restore=restore,
            rounds=ENOUGH_ROUNDS if rounds is None else rounds,
            time_limit_s=MOST_SECONDS if time_limit is None else time_limit,
            torch_compile=torch_compile,
            threads=counts[0] if counts else None,
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
            whole = None
            if unreduced is not None:
                whole = load_source(SourceOptions(unreduced, folders, trust_pickle=trust_pickle))
            found = bench(
                load_source(options),
                config,
                unreduced=whole,
                progress=Checklist(console(stderr=True), enabled=not json),
            )
        data, render = bench_json(found), partial(render_bench, found)
        show_result(data, render, files.write(render, data, partial(draw_bench, found)), json)


def _refuse_of_models(context: typer.Context) -> None:
    """Refuses the options of a compile: a bundle is measured as it is."""
    from tokexport.exporter.errors import UsageError

    given = given_options(context, context.params.keys() - _OF_BUNDLES - _OF_HOSTS)
    if given:
        raise UsageError(
            f"A bundle is measured as it is, without {', '.join(given)}.",
            fix="Leave the option out, or pass the model that the bundle was compiled from.",
        )


def _remote(
    context: typer.Context,
    on: str | None,
    port: int | None,
    ssh_option: list[str] | None,
    python: str | None,
    wheel: Path | None,
) -> RemoteConfig | None:
    """Returns the machine to measure on; None for this one."""
    from tokexport.exporter.bench_bundle.own_wheel import checkout
    from tokexport.exporter.bench_bundle.remote import RemoteConfig
    from tokexport.exporter.errors import UsageError

    if on is None:
        if given := given_options(context, _OF_HOSTS):
            raise UsageError(
                f"There is no --on HOST, and {', '.join(given)} says how to measure there.",
                fix="Pass --on HOST too, or leave the others out.",
            )
        return None
    built_from = checkout() if python is None and wheel is None else None
    if python is None and wheel is None and built_from is None:
        raise UsageError(
            f"Nothing says what runs on {on}.",
            fix="Pass --python with an interpreter there that has tokexport, or --wheel.",
        )
    return RemoteConfig(
        host=on,
        port=port,
        ssh_options=tuple(ssh_option or ()),
        python="python3" if python is None else python,
        wheel=wheel,
        built_from=built_from,
    )


def _refuse_of_bundles(
    context: typer.Context, source: str, other: Path | None, counts: tuple[int, ...]
) -> None:
    """Refuses what only bundles take."""
    from tokexport.exporter.errors import UsageError

    if given := given_options(context, _OF_HOSTS):
        raise UsageError(
            f"Only a bundle is measured on another machine: {', '.join(given)}.",
            where=f"{source} is no folder with a manifest.json.",
            fix="Compile the model first, and pass the bundle.",
        )
    if other is not None:
        raise UsageError(
            "Two arguments are two bundles, and the first is none.",
            where=source,
            fix="Pass folders that compile wrote; a model is timed beside its alternatives by "
            "itself.",
        )
    if len(counts) > 1:
        raise UsageError(
            "Several numbers of threads are measured of a bundle only.",
            where=f"{source} is no folder with a manifest.json.",
            fix="Pass one number, or the folder of a bundle.",
        )


def _bench_bundles(
    bundles: tuple[Path, ...],
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    rounds: int | None,
    time_limit: float | None,
    output: Path | None,
    *,
    require_kernels: bool,
    remote: RemoteConfig | None,
    force: bool,
    json: bool,
) -> None:
    """Measures bundles, and prints what was found."""
    from tokexport.exporter.bench_bundle.config import MOST_RUNS, BundleBenchConfig
    from tokexport.exporter.bench_bundle.measure import bench_bundles
    from tokexport.exporter.bench_bundle.remote import bench_on
    from tokexport.exporter.bench_bundle.tables import render_bundle_bench
    from tokexport.exporter.progress import Checklist
    from tokexport.exporter.system.output_file import check_outside, check_place, write_json

    if output is not None:
        for bundle in bundles:
            check_outside(output, bundle)
        check_place(output, force)
    config = BundleBenchConfig(
        bundles=bundles,
        threads=threads,
        batches=batches,
        rounds=MOST_RUNS if rounds is None else rounds,
        time_limit_s=time_limit,
        require_kernels=require_kernels,
    )
    checklist = Checklist(console(stderr=True), enabled=not json)
    if remote is None:
        found = bench_bundles(config, checklist)
    else:
        found = bench_on(remote, config, checklist)
    data, written = found.to_json(), [] if output is None else [output]
    if output is not None:
        write_json(output, data, "measurements")
    show_result(data, partial(render_bundle_bench, found), written, json)
