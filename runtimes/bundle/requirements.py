"""Says what an artifact needs of a machine, so that a manifest can be asked before it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Of a version, the numbers that order releases: at most four, none longer than nine digits.
_RELEASE: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")
_LISTS: Final = ("architectures", "systems", "instruction_sets", "compute_capabilities")
_TEXTS: Final = ("runtime", "at_least", "exactly", "why")
#: More is needed of no machine.
_MOST_NAMES: Final = 64


@dataclass(frozen=True)
class Requirements:
    """What an artifact needs of a machine.

    Attributes:
        runtime: The package of its runtime: ``onnxruntime``, ``openvino``, ``tensorrt`` or
            ``tensorrt-rtx``.
        at_least: The oldest version of it that reads the artifact; '' for any.
        exactly: The only version of it that does; '' where newer ones do too.
        why: What of the artifact needs that version, a clause.
        architectures: The processors it runs on, as ``platform.machine`` calls them in lower case,
            ``x86_64`` and ``aarch64``; none for any.
        systems: The operating systems, as ``sys.platform`` has them; none for any.
        instruction_sets: On x86, the processor has to have one of these, by the flags that Linux
            has for them; none for any.
        compute_capabilities: The GPUs it runs on; none where it takes no GPU.
    """

    runtime: str
    at_least: str = ""
    exactly: str = ""
    why: str = ""
    architectures: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    instruction_sets: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Requirements:
        """Reads what ``dataclasses.asdict`` made of one; unknown keys are ignored.

        Args:
            data: The parsed JSON.

        Raises:
            ValueError: A field is of another type, or a version is none; says which.
        """
        given: dict[str, Any] = {name: data.get(name, "") for name in _TEXTS}
        for name, text in given.items():
            if not isinstance(text, str):
                raise ValueError(f"{name} should be a text, and it is {text!r:.80}")
        for name in ("at_least", "exactly"):
            if given[name] and not _RELEASE.fullmatch(given[name]):
                raise ValueError(f"{name} should be a version, and it is {given[name]!r:.80}")
        for name in _LISTS:
            names = data.get(name, [])
            texts = isinstance(names, list) and all(isinstance(one, str) for one in names)
            if not texts or len(names) > _MOST_NAMES:
                raise ValueError(f"{name} should be a list of texts, and it is {names!r:.80}")
            given[name] = tuple(names)
        return cls(**given)


def release(version: str) -> tuple[int, ...] | None:
    """Returns the numbers of a version, without zeros at the end; None where it has none.

    What follows them (``rc1``, ``+cu12``, ``-18503-6fec``) does not count.

    Args:
        version: The version, as a package names it.
    """
    found = _RELEASE.match(version)
    if found is None:
        return None
    numbers = [int(part) for part in found[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
