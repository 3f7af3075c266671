"""The commands that lock bundles and check them: they parse, call and print."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokexport.exporter.cli.parts.messages import (
    console,
    redirect_user_output,
    report_errors,
    show,
    show_judged,
)
from tokexport.exporter.cli.parts.options import (
    Builder,
    Checkpoint,
    CodePath,
    Json,
    RequireKernels,
    Samples,
    Threads,
    TrustPickle,
)

if TYPE_CHECKING:
    from tokexport.exporter.lock.check import CheckResult
    from tokexport.exporter.lock.measure import MeasureOptions
    from tokexport.exporter.source.options import SourceOptions

Labelled = Annotated[
    Path | None, typer.Option("--inputs", help="Labelled samples, whose accuracy is locked too.")
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", metavar="SOURCE", help="Hold each to this source too; needs torch."),
]


def add_commands(app: typer.Typer) -> None:
    """Adds lock and check."""
    app.command("lock")(lock_command)
    app.command("check")(check_command)


def lock_command(
    bundles: Annotated[list[Path], typer.Argument(help="The folders that compile wrote.")],
    file: Annotated[Path, typer.Option(help="The lock; it is added to if it exists.")] = Path(
        "parity.lock.json"
    ),
    inputs: Labelled = None,
    samples: Samples = None,
    source: SourceOption = None,
    code_path: CodePath = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    threads: Threads = None,
    require_kernels: RequireKernels = False,
    json: Json = False,
) -> None:
    """Lock what bundles are and how they do here, for check to hold them to."""
    with report_errors(json):
        from tokexport.exporter.config import check_threads
        from tokexport.exporter.lock.check import name_of
        from tokexport.exporter.lock.lock_file import Lock, read_lock
        from tokexport.exporter.lock.tables import render_lock
        from tokexport.exporter.lock.update import WrittenLock, differences, with_bundles
        from tokexport.exporter.source.options import SourceOptions
        from tokexport.exporter.system.output_file import check_outside, check_place

        check_threads(threads)
        check_outside(file, *bundles)
        check_place(file, force=True)
        folders = tuple(code_path or ())
        held = source and SourceOptions(source, folders, checkpoint, builder, trust_pickle)
        options = _options(inputs, samples, threads, require_kernels, held or None, json)
        before = read_lock(file) if file.exists() else Lock()
        with redirect_user_output(json):
            named = {name_of(bundle, file): bundle for bundle in bundles}
            after = with_bundles(before, file, named, options)
        after.write(file)
        done = WrittenLock(file, differences(before, after) if before.bundles else (), after)
        show(json, done.to_json(), partial(render_lock, done), f"The lock is at {file}.")


def check_command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="The folders that compile wrote; by default those of the lock."),
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(help="What they are held to; parity.lock.json, or none with --against."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Time a bundle in turns with this older one, too."),
    ] = None,
    slower: Annotated[
        str, typer.Option(help="How much slower than --against it may be: 3%, or 0.03.")
    ] = "3%",
    strict: Annotated[bool, typer.Option("--strict", help="Fail where one drifts, too.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Accept what changed; print it, and write the lock.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Let --update drop bundles whose folders are gone.")
    ] = False,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Write a summary and annotations for GitHub or GitLab."),
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit's XML here, a test case per bundle.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that says it all here.")] = None,
    inputs: Labelled = None,
    samples: Samples = None,
    source: SourceOption = None,
    code_path: CodePath = None,
    checkpoint: Checkpoint = None,
    builder: Builder = None,
    trust_pickle: TrustPickle = False,
    threads: Threads = None,
    require_kernels: RequireKernels = False,
    json: Json = False,
) -> None:
    """Check bundles against a lock: unchanged, drift inside their tolerance, or break."""
    with report_errors(json):
        from tokexport.exporter.config import check_threads, parse_share
        from tokexport.exporter.errors import UsageError
        from tokexport.exporter.lock.check import CheckResult, check_bundles, folders_of
        from tokexport.exporter.lock.junit import write_junit
        from tokexport.exporter.lock.lock_file import DEFAULT_NAME, Lock, read_lock
        from tokexport.exporter.lock.page import check_page
        from tokexport.exporter.lock.tables import render_check, render_lock
        from tokexport.exporter.lock.update import WrittenLock, differences, updated
        from tokexport.exporter.report_page.page import write_page_whole
        from tokexport.exporter.requirements import require_page_packages
        from tokexport.exporter.source.options import SourceOptions
        from tokexport.exporter.speed.paired_bundles import compare_speed
        from tokexport.exporter.system.output_file import check_outside, check_place

        check_threads(threads)
        folders = tuple(code_path or ())
        held = source and SourceOptions(source, folders, checkpoint, builder, trust_pickle)
        options = _options(inputs, samples, threads, require_kernels, held or None, json)
        if html is not None:
            require_page_packages()
        path = lock or (None if against is not None else Path(DEFAULT_NAME))
        if update and against is not None:
            raise UsageError(
                "--update writes a lock, and --against has none.", fix="Run the two by themselves."
            )
        new, share = None if against is None else _only(bundles or ()), parse_share(slower)
        before = Lock() if path is None else read_lock(path)
        known = () if path is None else folders_of(before, path).values()
        for output in filter(None, (junit, html, path if update else None)):
            check_outside(output, *(bundles or ()), *known, *filter(None, (against,)))
            check_place(output, force=True)
        with redirect_user_output(json):
            found = CheckResult(None, ())
            if path is not None:
                found = check_bundles(before, path, bundles or (), options, strict=strict)
            if against is not None and new is not None:
                speed = compare_speed(against, new, slower=share, threads=threads)
                found = replace(found, speed=speed)
        if junit is not None:
            write_junit(found, junit)
        if html is not None:
            write_page_whole(check_page(found), html)
        if summary:
            _summarise(found, json)
        if path is None or not update:
            show_judged(json, found.to_json(), partial(render_check, found), found.failed())
            return
        after = updated(before, found, remove=remove)
        after.write(path)
        done = WrittenLock(path, differences(before, after), after)
        data = replace(found, changes=done.changes).to_json()
        show(json, data, partial(render_lock, done), f"The lock is at {path}.")


def _only(bundles: Sequence[Path]) -> Path:
    """Returns the bundle that is timed.

    Raises:
        UsageError: No bundle was named, or several were.
    """
    from tokexport.exporter.errors import UsageError

    if len(bundles) != 1:
        raise UsageError(
            f"--against times one bundle, and {len(bundles) or 'none'} were named.",
            fix="Name the new bundle: tokexport check NEW --against OLD.",
        )
    return bundles[0]


def _summarise(found: CheckResult, json: bool) -> None:
    """Writes the summary where GitHub asks for it, else to the terminal; and the annotations."""
    from tokexport.exporter.lock.summary import (
        SUMMARY_VARIABLE,
        annotations_of,
        markdown,
        write_summary,
    )

    file = os.environ.get(SUMMARY_VARIABLE)
    if file:
        write_summary(found, Path(file))
        for each in annotations_of(found):
            typer.echo(each.command(), err=json)
    else:
        typer.echo(markdown(found), err=json)


def _options(
    inputs: Path | None,
    samples: int | None,
    threads: int | None,
    require_kernels: bool,
    source: SourceOptions | None,
    json: bool,
) -> MeasureOptions:
    """Returns what bundles are measured with; a source is held to through torch."""
    from tokexport.exporter.lock.measure import MeasureOptions

    hold = None
    if source is not None:
        from tokexport.exporter.requirements import require_compile_packages

        require_compile_packages()
        from tokexport.exporter.lock.source_check import hold_to_source
        from tokexport.exporter.progress import Checklist

        progress = Checklist(console(stderr=True), enabled=not json)
        hold = partial(hold_to_source, source=source, threads=threads, progress=progress)
    return MeasureOptions(inputs, samples, threads, require_kernels, hold)
