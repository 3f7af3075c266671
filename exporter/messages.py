"""Shows a result, or an error as a message with its exit code; a bug leaves its trace."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def shown_to_the_person(as_json: bool) -> Iterator[None]:
    """Turns whatever is raised inside into a message, without a traceback, and an exit code."""
    try:
        yield
    except (typer.Exit, BrokenPipeError, SystemExit):  # the last two: nobody reads on, `| head`
        raise
    except BaseException as error:
        end = describe(error)
        report = getattr(error, "report", None)
        if as_json:
            write_json({**end, **({} if report is None else report.to_json())})
        else:
            _print(end["error"], report)
        raise typer.Exit(end["exit_code"]) from None


def prints_aside(as_json: bool) -> AbstractContextManager[object]:
    """Sends what the person's own code prints to stderr, where stdout holds one JSON object."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def console(stderr: bool = False) -> Console:
    """Returns the terminal, stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


def describe(error: BaseException) -> dict[str, Any]:
    """Returns the exit code of an error, and under ``error`` what to say of it."""
    from tokexport.exporter.exit_codes import ExitCode, exit_code_of

    code = exit_code_of(error)
    return {"exit_code": int(code), "error": _said(error, code is ExitCode.INTERNAL)}


def write_json(data: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def show_result(
    data: Mapping[str, Any],
    render: Callable[[Console], None],
    written: Sequence[Path],
    as_json: bool,
) -> None:
    """Prints what a measurement found, its files with it: as one JSON object, or as tables."""
    paths = [str(path) for path in written]
    if as_json:
        write_json({"exit_code": 0, "error": None, **data, "files": paths})
    else:
        render(console())
        typer.echo("\n".join(("", *paths)))


def _said(error: BaseException, is_bug: bool) -> dict[str, str]:
    """Returns what happened, where, and what to do."""
    if isinstance(error, KeyboardInterrupt):
        return {
            "kind": "Interrupted",
            "what": "Stopped. Nothing was left behind.",
            "where": "",
            "fix": "",
        }
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        from tokexport.runtimes.memory import FIX

        return {
            "kind": kind,
            "what": "There is too little memory.",
            "where": str(error),
            "fix": FIX,
        }
    parts = {name: str(getattr(error, name, "")) for name in ("what", "where", "fix")}
    if not is_bug:
        return {"kind": kind, **parts}
    trace = f"The trace: {_write_trace(error)}"
    return {
        "kind": kind,
        "what": f"This is a bug in tokexport: {parts['what'] or f'{kind}: {error}'}",
        "where": f"{parts['where']}\n{trace}" if parts["where"] else trace,
        "fix": "Please report it with that file.",
    }


def _write_trace(error: BaseException) -> str:
    """Writes the traceback into a file and returns its path; or the text, if no file takes it."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tokexport-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:
        return text
    return file.name


def _print(said: Mapping[str, str], report: Any) -> None:
    from rich.text import Text

    if report is not None:
        from tokexport.exporter.report import render

        render(report, console())
    aside = console(stderr=True)
    aside.print(Text.assemble(("error: ", "bold red"), said["what"]), soft_wrap=True)
    for part in ("where", "fix"):
        if said[part]:
            aside.print(Text(indent(said[part], "  ")), soft_wrap=True)
    sys.stderr.flush()
