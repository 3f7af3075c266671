"""Shows a result, or an error as a message with its exit code; a bug leaves its trace."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final, TextIO, TypedDict

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tokexport.exporter.errors import ExporterError

#: The descriptors that native code prints to.
_STDOUT: Final = 1
_STDERR: Final = 2
#: What the system answers to a path that a user mistook: its length, its folders, its permissions.
_REFUSED: Final = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP)
#: Characters of a part of a message.
_MOST_SAID: Final = 6000


class SaidError(TypedDict):
    """What is said of an error.

    Attributes:
        kind: The class of the error; ``Interrupted`` where a signal ended the command.
        what: What happened.
        where: The file, node, input or source line it happened at; '' where that is not known.
        fix: What the user can do now; '' where nothing can be done.
    """

    kind: str
    what: str
    where: str
    fix: str


class Failure(TypedDict):
    """How a command that failed ended.

    Attributes:
        exit_code: Its exit code, which is not 0.
        error: What is said of the error.
    """

    exit_code: int
    error: SaidError


@contextmanager
def report_errors(as_json: bool) -> Iterator[None]:
    """Turns whatever is raised inside into a message, without a traceback, and an exit code."""
    _import_what_shows_errors()
    try:
        with _kernel_warnings_shown():
            yield
    except (typer.Exit, BrokenPipeError, SystemExit):  # the last two: nobody reads on, `| head`
        raise
    except BaseException as error:
        end = describe(error)
        _show_error(as_json, end, error)
        raise typer.Exit(end["exit_code"]) from None


@contextmanager
def _kernel_warnings_shown() -> Iterator[None]:
    """Prints what Python warns of native kernels like the warnings of a report, on stderr."""
    import warnings

    from rich.text import Text

    from tokexport.runtimes.native_library import KernelsWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", KernelsWarning)
        others = warnings.showwarning

        def shown(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, KernelsWarning):
                return others(message, category, filename, lineno, file, line)
            said = Text.assemble(("warning  ", "yellow"), str(message))
            console(stderr=True).print(said, soft_wrap=True)

        warnings.showwarning = shown
        yield


def _import_what_shows_errors() -> None:
    """Imports the console early, while files can still be opened."""
    from rich.console import Console
    from rich.text import Text

    describe(KeyboardInterrupt())
    Console(file=io.StringIO()).print(Text("ready", "bold red"), soft_wrap=True)


def _show_error(as_json: bool, end: Failure, error: BaseException) -> None:
    """Prints an error, on stderr where stdout takes nothing more."""
    from tokexport.exporter.errors import StandardOutputError

    report = getattr(error, "report", None)
    try:
        if as_json and not isinstance(error, StandardOutputError):
            _print_json({**end, **({} if report is None else report.to_json())})
            sys.stdout.flush()
        else:
            _print(end["error"], report)
    except BrokenPipeError:
        raise
    except OSError:
        _leave_stdout()
        with suppress(OSError):  # where nothing can be said, the exit code still is
            _print(end["error"], None)


@contextmanager
def redirect_user_output(as_json: bool) -> Iterator[None]:
    """Sends what the user's own code prints to stderr, where stdout holds one JSON object.

    Native code prints past Python, to descriptor 1, which stands for stderr meanwhile.
    """
    if not as_json:
        yield
        return
    sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
    except OSError:  # one of them is closed: nothing native reaches stdout, or nothing at all
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered belongs to stderr too
        os.dup2(kept, _STDOUT)
        os.close(kept)


def console(stderr: bool = False) -> Console:
    """Returns the terminal, stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


def describe(error: BaseException) -> Failure:
    """Returns the exit code of an error, and under ``error`` what to say of it."""
    from tokexport.exporter.exit_codes import ExitCode, exit_code_of

    error = _of_a_path(error)
    code = exit_code_of(error)
    return {"exit_code": int(code), "error": _said(error, code is ExitCode.INTERNAL)}


def _of_a_path(error: BaseException) -> BaseException:
    """Returns the error of a path that the system refuses, whoever asked for it, or the error."""
    if not isinstance(error, OSError) or error.errno not in _REFUSED:
        return error
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return error
    from tokexport.exporter.errors import UsageError

    return UsageError(
        f"The system refuses a path: {error.strerror}.",
        where=os.fsdecode(error.filename),
        fix="Check the path, and the permissions of the folders in it.",
    )


def show(
    as_json: bool, data: Mapping[str, Any], render: Callable[[Console], None], kept: str = ""
) -> None:
    """Prints what a command found: as one JSON object, or as tables.

    Args:
        as_json: Whether it is the object.
        data: What the object holds beside ``exit_code`` and ``error``, or in place of them.
        render: Prints the tables.
        kept: What was kept although nothing could be printed, a sentence.

    Raises:
        StandardOutputError: Standard output takes nothing more, as where its disk is full.
    """
    if as_json:
        _show(partial(_print_json, {"exit_code": 0, "error": None, **data}), kept)
    else:
        _show(lambda: render(console()), kept)


def show_text(text: str) -> None:
    """Prints a text as it is.

    Raises:
        StandardOutputError: Standard output takes nothing more.
    """
    _show(partial(typer.echo, text, nl=False))


def _show(print_all: Callable[[], None], kept: str = "") -> None:
    """Prints what a command found, and says what was kept where stdout takes nothing more."""
    from tokexport.exporter.errors import StandardOutputError

    try:
        print_all()
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(kept) from error
    except OSError as error:
        _leave_stdout()
        raise StandardOutputError(
            f"Standard output cannot be written: {error.strerror or error}.", fix=kept
        ) from error


def show_judged(
    as_json: bool,
    data: Mapping[str, Any],
    render: Callable[[Console], None],
    failed: ExporterError | None,
) -> None:
    """Prints what a command measured, and ends with the error of a gate that it failed.

    Args:
        as_json: Whether it is printed as one JSON object.
        data: What the object holds.
        render: Prints the tables.
        failed: The error; None where it passed.

    Raises:
        ExporterError: That error, where tables were printed.
        typer.Exit: Its exit code, where the object has it already.
    """
    if failed is None:
        show(as_json, data, render)
        return
    end = describe(failed)
    show(as_json, {**end, **data}, render)
    if as_json:
        raise typer.Exit(end["exit_code"])
    raise failed


def _print_json(data: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def _leave_stdout() -> None:
    """Drops what standard output could not take, which would fail once more at the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def show_result(
    data: Mapping[str, Any],
    render: Callable[[Console], None],
    written: Sequence[Path],
    as_json: bool,
) -> None:
    """Prints what a measurement found, its files with it: as one JSON object, or as tables."""
    paths = [str(path) for path in written]

    def render_all(terminal: Console) -> None:
        render(terminal)
        typer.echo("\n".join(("", *paths)))

    show(as_json, {**data, "files": paths}, render_all, f"It is in {', '.join(paths)}.")


def _said(error: BaseException, is_bug: bool) -> SaidError:
    """Returns what happened, where, and what to do."""
    if isinstance(error, KeyboardInterrupt):
        return {
            "kind": "Interrupted",
            "what": f"Stopped. {str(error) or 'Nothing was left behind.'}",
            "where": "",
            "fix": "",
        }
    from tokexport.runtimes.printable import printable

    kind = type(error).__name__
    if isinstance(error, MemoryError):
        from tokexport.runtimes.memory import FIX

        return {
            "kind": kind,
            "what": "There is too little memory.",
            "where": str(error),
            "fix": FIX,
        }
    what, where, fix = (
        _cut(printable(str(getattr(error, name, "")))) for name in ("what", "where", "fix")
    )
    if not is_bug:
        return {"kind": kind, "what": what, "where": where, "fix": fix}
    trace = f"The trace: {_write_trace(error)}"
    return {
        "kind": kind,
        "what": f"This is a bug in tokexport: {what or f'{kind}: {error}'}",
        "where": f"{where}\n{trace}" if where else trace,
        "fix": f"{fix} Please report it with that file.".lstrip(),
    }


def _cut(text: str) -> str:
    """Returns a text, cut where it is too long: names from foreign files may be endless."""
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]} …"


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


def _print(said: SaidError, report: Any) -> None:
    from rich.text import Text

    if report is not None:
        from tokexport.exporter.report.report import render

        render(report, console())
    aside = console(stderr=True)
    aside.print(Text.assemble(("error: ", "bold red"), said["what"]), soft_wrap=True)
    for part in (said["where"], said["fix"]):
        if part:
            aside.print(Text(indent(part, "  ")), soft_wrap=True)
    sys.stderr.flush()
