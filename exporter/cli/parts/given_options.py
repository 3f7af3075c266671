"""Says which options of a command stand on its command line."""

from __future__ import annotations

from collections.abc import Collection

import typer


def given_options(context: typer.Context, names: Collection[str]) -> list[str]:
    """Returns those of some options that stand on the command line, as they are written.

    Args:
        context: The command.
        names: The parameters of the options.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params if name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
