"""Runs the worker: ``python -m tokexport.exporter.worker.main PARENT RUNTIME…``.

It reads questions from its stdin and writes answers to what was its stdout; everything that is
printed goes to its stderr, which the other process keeps the end of. It ends with its parent: at
the end of its stdin, and on Linux also in the middle of native code.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tokexport.exporter.backends.known import BACKENDS
from tokexport.exporter.worker.messages import Message, described, read_message, write_message
from tokexport.exporter.worker.own_process import (
    be_the_first_to_go,
    end_with,
    leave_no_core,
    pipes,
)
from tokexport.exporter.worker.steps import Steps
from tokexport.runtimes.errors import RuntimesError


def main(parent: int, runtimes: Sequence[str]) -> None:
    """Answers questions until its stdin ends.

    Args:
        parent: The process that asks.
        runtimes: Those that it will be asked for, by their targets; they are imported at once.
    """
    end_with(parent)
    leave_no_core()
    be_the_first_to_go()
    questions, answers = pipes()
    with suppress(RuntimesError):  # the question that needs it will say so
        for name in runtimes:
            BACKENDS[name].import_runtime()
    write_message(answers, Message({"ready": True}))
    steps = Steps()
    with suppress(EOFError):
        while True:
            question = read_message(questions)
            write_message(answers, Message({"read": True}))
            write_message(answers, _answer(steps, question))


def _answer(steps: Steps, question: Message) -> Message:
    try:
        with _as_asked(question.fields["surroundings"]), _in(question.fields.get("scratch")):
            return steps.answer(question)
    except Exception as error:
        return Message({"error": described(error)})


@contextmanager
def _as_asked(surroundings: Mapping[str, Any]) -> Iterator[None]:
    """Takes over the environment, the working folder and the import path of the parent."""
    for name, value in surroundings["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    with suppress(OSError):  # it may be gone: all paths that are asked for are absolute
        os.chdir(surroundings["folder"])
    sys.path += [entry for entry in surroundings["path"] if entry not in sys.path]
    modules: dict[str, Any] = sys.modules
    hidden = {name: modules.get(name) for name in surroundings["missing"]}
    modules |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        for name, module in hidden.items():
            if module is None:
                modules.pop(name, None)
            else:
                modules[name] = module


@contextmanager
def _in(scratch: str | None) -> Iterator[None]:
    """Puts temporary files into a folder that the parent removes."""
    before = tempfile.tempdir
    tempfile.tempdir = scratch or before
    try:
        yield
    finally:
        tempfile.tempdir = before


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
