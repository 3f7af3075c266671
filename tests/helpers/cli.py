"""Runs the command as a person does, in this process or in one of its own, and reads its answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.json_schemas import check_bundle, check_printed
from helpers.torchvision_ops import child_environment
from typer.testing import CliRunner

from tokexport.exporter.cli.app import app

TESTS = Path(__file__).parents[1]
MODELS = "models.cli_models"


@dataclass(frozen=True)
class Answer:
    """What the command printed, and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails where anything else is printed beside it."""
        assert self.stderr == ""
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    @property
    def said(self) -> str:
        """All that a person sees, on one line."""
        return " ".join(f"{self.stdout} {self.stderr}".split())


@dataclass(frozen=True)
class Compiled:
    """A bundle that the command compiled once, for all tests that only read it."""

    bundle: Path
    inputs: Path
    answer: Answer


def tokexport(*arguments: object) -> Answer:
    """Runs the command in this process; it prints no traceback, and JSON as the schemas say."""
    given = tuple(map(str, arguments))
    result = CliRunner().invoke(app, given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return _checked(given, Answer(result.exit_code, result.stdout, result.stderr))


def compile_model(source: object, output: Path, *arguments: object, target: str = "ort") -> Answer:
    """Runs ``tokexport compile`` in this process; what it writes is as the schemas say."""
    answer = tokexport("compile", source, "--target", target, "--output", output, *arguments)
    if answer.code == 0:
        check_bundle(output)
    return answer


def in_own_process(
    *arguments: object,
    prefix: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    before: str = "",
) -> Answer:
    """Runs the command in a process of its own, where every warning is an error.

    Args:
        arguments: Those of the command.
        prefix: A command that runs the rest.
        environment: Variables to add.
        before: Python that runs first in that process.
    """
    done = subprocess.run(
        command(*arguments, prefix=prefix, before=before),
        env={**child_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    given = tuple(map(str, arguments))
    return _checked(given, Answer(done.returncode, done.stdout, done.stderr))


def command(*arguments: object, prefix: tuple[str, ...] = (), before: str = "") -> list[str]:
    """Returns the command line that runs the command in a process of its own."""
    program = f"{before}\nfrom tokexport.exporter.cli.app import main\nmain()"
    given = [str(argument) for argument in arguments]
    return [*prefix, sys.executable, "-W", "error", "-c", program, *given]


def refusal(answer: Answer, code: int, folder: Path, *parts: str) -> str:
    """Holds a refusal to its exit code, to what it must say, and to having left nothing behind.

    Args:
        answer: What the command answered.
        code: The exit code that it must have.
        folder: Where the output would have gone.
        parts: What the message must hold.

    Returns:
        The message.
    """
    assert answer.code == code, answer
    assert answer.stderr.startswith("error: "), answer.stderr
    message = answer.stderr.removeprefix("error: ")
    assert message[0].isupper() or message[0] in "'-", message
    for part in parts:
        assert part in message, message
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert left == [], left
    return message


def _checked(arguments: tuple[str, ...], answer: Answer) -> Answer:
    assert "Traceback" not in answer.stdout + answer.stderr, answer.stderr
    check_printed(arguments, answer.stdout)
    return answer
