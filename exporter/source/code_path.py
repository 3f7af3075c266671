"""Imports the user's modules from their folders, and finds the line where their code fails."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType

from tokexport.exporter.errors import SourceError, listed


@contextmanager
def on_code_path(folders: Sequence[Path]) -> Iterator[None]:
    """Puts folders before everything else on ``sys.path``, and takes them off at the end.

    Modules that were imported stay imported. A model whose ``forward`` imports something of its
    own needs this around every run of it.

    Raises:
        SourceError: One of the folders does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise SourceError(
                "A folder of --code-path is not there.",
                where=str(folder),
                fix="Pass the folder that holds the top package of your code.",
            )
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def import_module(name: str, folders: Sequence[Path]) -> ModuleType:
    """Imports a module of the user's; the folders are on ``sys.path`` already.

    Raises:
        SourceError: The module is not found, it fails while it is imported, or another module of
            the same name was imported before.
    """
    _check_shadow(name.partition(".")[0], folders)
    try:
        with _own_command_line(name):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _not_found(name, error.name, folders) from error
        raise SourceError(
            f"The module {name!r} needs {error.name!r}, which is not installed.",
            where=user_line(error, folders),
            fix=f"Install the package that brings {error.name!r}, or pass its folder with "
            "--code-path.",
        ) from error
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise SourceError(
            f"The module {name!r} ends the process when it is imported: exit {error.code}.",
            where=user_line(error, folders),
            fix='Put what parses a command line or runs under: if __name__ == "__main__".',
        ) from error
    except BaseException as error:
        raise failed_code(f"Importing the module {name!r} failed", error, folders) from error


@contextmanager
def _own_command_line(name: str) -> Iterator[None]:
    """Hides tokexport's command line from a module that parses ``sys.argv`` when imported."""
    before = sys.argv
    sys.argv = [name]
    try:
        yield
    finally:
        sys.argv = before


def failed_code(what: str, error: BaseException, folders: Sequence[Path]) -> SourceError:
    """Returns the error for an exception of the user's own code, with type, message and line."""
    try:
        said = str(error).strip()
    except Exception:  # their own class of errors, whose str() fails too
        said = ""
    kind = type(error).__name__
    return SourceError(
        f"{what}: {kind}: {said}" if said else f"{what}: {kind}.",
        where=user_line(error, folders),
        fix="The error comes from the model's own code: fix it there.",
    )


def user_line(error: BaseException, folders: Sequence[Path]) -> str:
    """Returns ``file:line`` of the innermost frame in the user's code.

    That is a file under one of the folders; without one, a file outside the installed packages;
    without that, the innermost frame of all.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in _frames(error.__traceback__)]
    roots = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
    under = [frame for frame in frames if roots and frame[0].startswith(roots)]
    outside = [frame for frame in frames if "site-packages" not in frame[0]]
    chosen = (under or outside or frames)[-1:]
    return f"{chosen[0][0]}:{chosen[0][1]}" if chosen else ""


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """Returns the frames below this package's own and the import system's."""
    here = str(Path(__file__).parent)
    return [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith((here, "<frozen importlib"))
        and not frame.filename.endswith("importlib/__init__.py")
    ]


def _check_shadow(top: str, folders: Sequence[Path]) -> None:
    """Refuses a module of the folders if another module of that name is imported already."""
    loaded = sys.modules.get(top)
    found = importlib.machinery.PathFinder.find_spec(top, [str(f.resolve()) for f in folders])
    if loaded is None or found is None or found.origin is None:
        return
    origin = getattr(loaded, "__file__", None)
    if origin is None or Path(origin).resolve() != Path(found.origin).resolve():
        raise SourceError(
            f"Another module named {top!r} is imported already.",
            where=f"{origin or 'built into Python'}, and not {found.origin}",
            fix="Give your module a name that no other module has.",
        )


def _not_found(name: str, missing: str, folders: Sequence[Path]) -> SourceError:
    searched = listed([str(folder) for folder in folders]) if folders else "no --code-path given"
    part = "" if missing == name else f" (there is no {missing!r})"
    return SourceError(
        f"There is no module {name!r}{part}.",
        where=f"Searched: {searched}, and the installed packages",
        fix="Pass --code-path DIR, the folder that holds the top package or the .py file.",
    )
