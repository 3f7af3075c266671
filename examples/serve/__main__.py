"""Starts the service: ``python -m serve BUNDLE``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from dataclasses import fields
from pathlib import Path

import uvicorn

import tokexport.runtimes
from serve.app import Limits, Service
from tokexport.runtimes.errors import RuntimesError


def main() -> int:
    """Loads the bundle, warms it up, and serves it until it is asked to stop."""
    parser = argparse.ArgumentParser(prog="serve", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8000)
    parser.add_argument("--threads", type=positive, help="Those of the runtime.")
    said = "How many classes a picture gets."
    parser.add_argument("--top", type=positive, default=5, help=said)
    for one in fields(Limits):
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=seconds if isinstance(one.default, float) else positive,
            default=one.default,
            help=f"{one.default} by default",
        )
    options = vars(parser.parse_args())
    limits = Limits(**{one.name: options[one.name] for one in fields(Limits)})
    # The server raises the signal that stopped it once more: it ended as it should.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        try:
            with tokexport.runtimes.load(options["bundle"], threads=options["threads"]) as runner:
                runner.warm_up()
                uvicorn.run(
                    Service(runner, limits, options["top"]).app(),
                    host=options["host"],
                    port=options["port"],
                    access_log=False,
                    timeout_graceful_shutdown=round(2 * limits.seconds + 5),
                )
        except RuntimesError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def port(text: str) -> int:
    """Reads the number of a port; of 0 the system chooses one."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return number


def positive(text: str) -> int:
    """Reads a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def seconds(text: str) -> float:
    """Reads a number of seconds, 0 or more."""
    number = float(text)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


if __name__ == "__main__":
    sys.exit(main())
