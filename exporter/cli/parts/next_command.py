"""Adds to the error of a failed gate the command that finds the node behind it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer

from tokexport.exporter.errors import GateError

#: The arguments of bisect, and what other commands call them, in order.
_ARGUMENTS: Final = ("source", "against", "bundle")
#: The options that bisect has too, and that mean something else there.
_LEFT_OUT: Final = frozenset({"output", "force", "json"})


@contextmanager
def bisect_named(context: typer.Context) -> Iterator[None]:
    """Ends the advice of a failed parity gate with the command that finds the node."""
    try:
        yield
    except GateError as error:
        from tokexport.exporter.parity.proof import ParityError

        if isinstance(error, ParityError):
            name_bisect(error, context)
        raise


def name_bisect(error: GateError, context: typer.Context) -> None:
    """Ends the advice of an error with the bisect command for the command that runs."""
    error.fix = f"{error.fix} To find the node: {_bisect_command(context, error.batch)}".lstrip()


def _bisect_command(context: typer.Context, batch: int | None) -> str:
    """Returns the bisect command for what another command was asked for.

    Args:
        context: The command.
        batch: The batch of the artifact that failed; None where none was named.
    """
    assert context.parent is not None
    commands: Any = context.parent.command
    known = {one.name for one in commands.commands["bisect"].params} - _LEFT_OUT
    given = [name for name in _ARGUMENTS if context.params.get(name) is not None]
    words = ["tokexport", "bisect", *(str(context.params[name]) for name in given)]
    for option in context.command.params:
        if option.name in known and option.name not in given:
            value = context.params[option.name]
            words += _words(option, batch if option.name == "batch" and batch else value)
    return shlex.join(words)


def _words(option: Any, value: Any) -> list[str]:
    """Returns an option as it is written; nothing where it has its default."""
    name = option.opts[0]
    if value is None or value == option.default or value in ((), []):
        return []
    if isinstance(value, bool):
        return [name]
    if isinstance(value, Collection) and not isinstance(value, str):
        return [word for one in value for word in (name, str(one))]
    return [name, str(value)]
