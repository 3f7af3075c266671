"""The options of packaging."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Final

from tokexport.exporter.errors import UsageError

#: Names that all servers, registries and file systems take.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: The largest of the 32-bit numbers that configurations of servers hold.
_MOST: Final = 2**31 - 1


@dataclass(frozen=True)
class PackageOptions:
    """How a bundle is packaged, beside its format.

    Attributes:
        name: The name of the model; None for that of the bundle's folder.
        batching: Whether Triton joins waiting requests.
        delay_us: Microseconds for which a request waits for others, where they are joined.
        instances: How many instances of the model a server runs at once.
        threads: The threads of each; None leaves the choice to the runtime.
        kernels: The path of the library of native kernels on the server; None for none.
    """

    name: str | None = None
    batching: bool = False
    delay_us: int = 0
    instances: int = 1
    threads: int | None = None
    kernels: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing.

        Raises:
            UsageError: There is no instance or thread, a delay is negative, or a number is more
                than servers read.
        """
        for name, least in (("delay_us", 0), ("instances", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= _MOST:
                raise UsageError(
                    f"--{name.replace('_', '-')} is {value}, and {least} to {_MOST} are possible.",
                    fix="Pass another number, or leave it out.",
                )

    def given(self) -> set[str]:
        """The options that are not at their defaults, ``--name`` apart."""
        return {
            each.name
            for each in dataclasses.fields(self)
            if each.name != "name" and getattr(self, each.name) != each.default
        }


def check_name(name: str, *, given: bool) -> None:
    """Refuses a name that a server, a registry or a file system may not take.

    Args:
        name: The name of the model.
        given: Whether ``--name`` gave it; else it is that of the bundle's folder.

    Raises:
        UsageError: It holds other letters, or is empty or too long.
    """
    if _NAME.fullmatch(name):
        return
    whose = "--name is" if given else "The folder of the bundle is named"
    raise UsageError(
        f"{whose} {name!r:.160}, which is no name for a package.",
        fix="Pass --name with letters, digits, '.', '_' and '-', as --name vit.",
    )
